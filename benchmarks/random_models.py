"""Models of any shape with random weights, and prompts of random tokens: good for speed alone."""

from __future__ import annotations

import argparse
import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoTokenizer,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
)

from agents import make_vec_env
from agents.vec_env import TokenVecEnv
from tokenenv.models import quiet_loading
from tokenenv.rewards import new_reward_model

__all__ = [
    "GPT2_4M",
    "GPT2_124M",
    "ModelShape",
    "add_model_arguments",
    "environment",
    "model_folder",
    "random_prompts",
    "write_models",
]

_SPECIAL = {"<pad>": 0, "<eos>": 1, "<unk>": 2}


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Of a GPT-2.

    Attributes:
        vocabulary: V.
        width: of the hidden states; a head has 64 of them.
        layers: how many.
        positions: the longest prompt and response.
    """

    vocabulary: int = 2048
    width: int = 256
    layers: int = 4
    positions: int = 1088


GPT2_4M = ModelShape()
"""4 M parameters."""

GPT2_124M = ModelShape(vocabulary=50_257, width=768, layers=12, positions=1024)
"""GPT-2 small's shape: 124 M parameters."""


def write_models(folder: Path, shape: ModelShape = GPT2_4M) -> Path:
    """Write `folder`/lm and `folder`/rm: a causal LM and a reward model that share a tokenizer."""
    words = {f"w{i}": i for i in range(len(_SPECIAL), shape.vocabulary)}
    tokenizer = Tokenizer(models.WordLevel({**_SPECIAL, **words}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    )
    config: dict[str, Any] = {
        "vocab_size": shape.vocabulary,
        "n_positions": shape.positions,
        "n_embd": shape.width,
        "n_layer": shape.layers,
        "n_head": max(1, shape.width // 64),
        "bos_token_id": 1,
        "eos_token_id": 1,
        "pad_token_id": 0,
        **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0),
    }
    torch.manual_seed(0)
    causal = GPT2LMHeadModel(GPT2Config(**config))
    classifier = GPT2ForSequenceClassification(GPT2Config(**config, num_labels=1))
    with quiet_loading():
        for name, model in (("lm", causal), ("rm", classifier)):
            model.save_pretrained(folder / name)
            wrapped.save_pretrained(folder / name)
    return folder


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `MODELS` and `--lm`, of which one at the most may be given, to `parser`."""
    given = parser.add_mutually_exclusive_group()
    given.add_argument("models", type=Path, nargs="?", help="holds lm/ and rm/; default: random")
    given.add_argument(
        "--lm", type=Path, help="a causal LM; the reward model is its trunk with a random head"
    )


@contextlib.contextmanager
def model_folder(
    given: Path | None, shape: ModelShape = GPT2_4M, lm: Path | None = None
) -> Iterator[Path]:
    """A folder with lm/ and rm/, temporary unless it was given.

    Args:
        given: that folder; None: one is made.
        shape: of the random models, where neither `given` nor `lm` is.
        lm: the causal LM to take as lm/; rm/ is then its trunk with a random score head.
    """
    if given is not None:
        yield given
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if lm is None:
            yield write_models(folder, shape)
        else:
            (folder / "lm").symlink_to(lm.resolve(), target_is_directory=True)
            new_reward_model(str(lm)).save_pretrained(folder / "rm")
            yield folder


def random_prompts(tokenizer: Any, count: int, length: int, seed: int = 0) -> list[str]:
    """Texts that the tokenizer reads as `length` tokens each, drawn from its whole vocabulary.

    Raises:
        ValueError: random ids, decoded, hardly ever encode to as many ids again.
    """
    special = set(tokenizer.all_special_ids)
    ordinary = np.array([i for i in tokenizer.get_vocab().values() if i not in special])
    rng, texts = np.random.default_rng(seed), []
    for _ in range(1000 * count):
        # A subword tokenizer may read the same text as other tokens: keep what comes out right.
        read = tokenizer(tokenizer.decode(rng.choice(ordinary, size=length)))["input_ids"]
        text = tokenizer.decode(read[:length], skip_special_tokens=True)
        if text.strip() and len(tokenizer(text)["input_ids"]) == length:
            texts.append(text)
        if len(texts) == count:
            return texts
    raise ValueError(
        f"of {1000 * count} random prompts, {len(texts)} have {length} tokens, not {count}: use "
        "models with another tokenizer."
    )


def environment(
    folder: Path,
    num_envs: int,
    prompt_tokens: int,
    response_tokens: int,
    eos_token_ids: tuple[int, ...] = (),
    num_prompts: int = 256,
    **settings: Any,
) -> TokenVecEnv:
    """The token MDP over the models in `folder`, with prompts of random tokens.

    Args:
        folder: holds lm/ and rm/.
        num_envs: N.
        prompt_tokens: P; every prompt has as many.
        response_tokens: T.
        eos_token_ids: what ends a response, instead of the models' own EOS; none of them: every
            response has T tokens.
        num_prompts: how many prompts there are.
        **settings: further arguments of `TokenEnv`.
    """
    prompts = random_prompts(
        AutoTokenizer.from_pretrained(folder / "lm"), num_prompts, prompt_tokens
    )
    env = make_vec_env(
        "TokenRLHF-v0",
        n_envs=num_envs,
        seed=0,
        reference=str(folder / "lm"),
        reward_model=str(folder / "rm"),
        prompts=prompts,
        max_prompt_tokens=prompt_tokens,
        max_new_tokens=response_tokens,
        **{"kl_coef": 0.05, **settings},
    )
    ends = env.env.mdp.episodes.is_eos
    ends[:] = False
    ends[list(eos_token_ids)] = True
    return env
