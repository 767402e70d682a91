"""The baker: five tokens, one score, every number small enough to do by hand."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from experiment import COLORS, new_figure, options, write
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar

from agents import LMActorCriticPolicy, make_vec_env
from agents.credit import UpdateSettings, token_table
from tokenenv.maths import generalized_advantages, token_rewards
from tokenenv.rewards import Episode

WORDS = ["bread", "mix", "knead", "shape", "wait", "rush", "skip", "bake"]
LOAVES = ["mix knead shape wait bake", "mix knead shape rush bake"]  # `bake` ends the response
KL_COEF, LAMBDA = 0.1, 0.5
# What follows each word, and how likely; the reference, which the baker learned from, rushes.
FOLLOWING = {
    "bread": {"mix": 0.5, "skip": 0.5},
    "mix": {"knead": 0.5, "skip": 0.5},
    "knead": {"shape": 0.5, "skip": 0.5},
    "shape": {"wait": 0.8, "rush": 0.2},
    "wait": {"bake": 1.0},
    "rush": {"bake": 1.0},
    "skip": {"bake": 1.0},
}
OF_REFERENCE = {**FOLLOWING, "shape": {"wait": 0.2, "rush": 0.8}}
VALUES = {"bread": 0.5, "mix": 0.5, "knead": 0.6, "shape": 0.6, "wait": 0.9, "rush": 0.1}


def taste(prompts: list[str], responses: list[str], **_: Any) -> list[float]:
    """The one score of each: a loaf that had time is good."""
    return [1.0 if "wait" in response else 0.0 for response in responses]


def language_model(following: dict[str, dict[str, float]]) -> LlamaForCausalLM:
    """A transformer whose next word depends on the last one alone, with these probabilities.

    Attention and MLP add nothing; the hidden state after word i is the i-th unit vector, so that
    the output layer's weights are the table of log-probabilities.
    """
    size = len(WORDS)
    model = LlamaForCausalLM(
        LlamaConfig(
            **{"vocab_size": size, "hidden_size": size, "intermediate_size": size},
            **{"num_hidden_layers": 1, "num_attention_heads": 1, "max_position_embeddings": 16},
            **{"bos_token_id": None, "eos_token_id": WORDS.index("bake")},
            rms_norm_eps=1e-12,
        )
    )
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(torch.eye(size))
        model.model.norm.weight.fill_(size**-0.5)  # RMSNorm makes the norm √size
        model.model.layers[0].self_attn.o_proj.weight.zero_()
        model.model.layers[0].mlp.down_proj.weight.zero_()
        model.lm_head.weight.fill_(-40.0)
        for word, nexts in following.items():
            for following_word, probability in nexts.items():
                row = WORDS.index(following_word)
                model.lm_head.weight[row, WORDS.index(word)] = float(np.log(probability))
    return model.eval()


def baker_and_scorer(folder: Path) -> tuple[LMActorCriticPolicy, Any]:
    """The policy with its critic, and the token MDP with the reference."""
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="skip"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="skip", eos_token="bake", pad_token="bake"
    )
    for name, following in (("reference", OF_REFERENCE), ("baker", FOLLOWING)):
        language_model(following).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    env = make_vec_env(
        n_envs=1,
        reference=str(folder / "reference"),
        reward_model=taste,
        prompts=["bread"],
        max_prompt_tokens=1,
        max_new_tokens=5,
        kl_coef=KL_COEF,
        device="cpu",
    )
    policy = LMActorCriticPolicy(
        env.observation_space, env.action_space, lambda _: 0.0, actor=str(folder / "baker")
    )
    with torch.no_grad():
        policy.value_net.weight.copy_(torch.tensor([[VALUES.get(w, 0.0) for w in WORDS]]))
    return policy, env.inner.mdp


def by_formulas(response: list[str], score: float) -> dict[str, np.ndarray]:
    """The same numbers from `tokenenv.maths`: no model, no environment."""
    states = ["bread", *response[:-1]]
    log_probs = np.log([FOLLOWING[s][a] for s, a in zip(states, response, strict=True)])
    ref_log_probs = np.log([OF_REFERENCE[s][a] for s, a in zip(states, response, strict=True)])
    values = np.array([VALUES[state] for state in states])
    rewards = token_rewards(score, log_probs, ref_log_probs, KL_COEF)
    advantages = generalized_advantages(rewards[None], values[None], [5], [0.0], 1.0, LAMBDA)[0]
    return {"reward": rewards, "value": values, "advantage": advantages}


def main() -> None:
    arguments = options(__doc__)
    disable_progress_bar()
    with TemporaryDirectory() as folder:
        policy, mdp = baker_and_scorer(Path(folder))
    responses = [loaf.split() for loaf in LOAVES]
    ids = [np.array([WORDS.index(word) for word in response]) for response in responses]
    episodes = [Episode(mdp.encode_prompt("bread"), tokens, True) for tokens in ids]
    settings = UpdateSettings(gae_lambda=LAMBDA, kl_coef=KL_COEF)
    table = token_table(policy, mdp.scorer, episodes, settings)
    settings = UpdateSettings("rloo", group_size=2, kl_coef=KL_COEF)
    uniform = token_table(policy, mdp.scorer, episodes, settings)

    for words, response in zip(responses, table.responses, strict=True):
        for name, expected in by_formulas(words, response["score"]).items():
            np.testing.assert_allclose(response["columns"][name], expected, atol=1e-6)
        print_table(words, response)
    figure = draw(responses, {"GAE, λ = ½": table, "uniform (rloo)": uniform})
    tables = {"gae": table.responses, "rloo": uniform.responses}
    write(arguments.out, "baker", tables, figure)


def print_table(words: list[str], response: dict[str, Any]) -> None:
    uniform = f"rloo {response['uniform']['rloo']:+.3f} for all"
    shown = Table(title=f"{' '.join(words)}: score {response['score']:g}, {uniform}")
    names = ("reward", "value", "delta", "advantage", "whitened", "strength")
    for header in ("token", "r", "V", "δ", "A", "whitened A", "strength"):
        shown.add_column(header, justify="right")
    for t, word in enumerate(words):
        columns = response["columns"]
        shown.add_row(word, *(f"{round(columns[name][t], 3) + 0.0:.3f}" for name in names))
    Console(width=100).print(shown)


def draw(responses: list[list[str]], tables: dict[str, Any]) -> Any:
    figure, axes = new_figure(2, 2, 8.2, 4.4, sharey="row", sharex="col")
    for column, words in enumerate(responses):
        places = np.arange(len(words))
        for i, (label, table) in enumerate(tables.items()):
            columns = table.responses[column]["columns"]
            update = np.sign(columns["whitened"]) * np.array(columns["strength"])
            for axis, heights in zip(axes[:, column], (columns["advantage"], update), strict=True):
                place = places + 0.38 * (i - 0.5)
                axis.bar(place, heights, 0.36, color=COLORS[4 * i], label=label)
        for axis in axes[:, column]:
            axis.axhline(0, color="black", linewidth=0.8)
            axis.grid(axis="x", visible=False)
        axes[1, column].set_xticks(places, words)
        score = tables["uniform (rloo)"].responses[column]["score"]
        axes[0, column].set_title(f"“{' '.join(words)}”: score {score:g}")
    axes[0, 0].set_ylabel("advantage")
    axes[1, 0].set_ylabel("update strength, signed")
    axes[0, 1].legend(loc="upper right")
    return figure


if __name__ == "__main__":
    main()
