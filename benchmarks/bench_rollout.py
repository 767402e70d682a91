"""Useful tokens per second: the policy in the environment, beside `generate` of transformers.

Ours is the loop that Stable-Baselines3 runs, `policy(observations)` and `env.step(actions)` with
deferred scoring; an environment whose episode ends starts the next at once, so every token of every
step is useful. `generate` (sampling, `top_k=0`, the same model and prompts) goes on until the last
row of its batch has ended; what it feeds to rows that have ended already is useless. Ours computes
values and log-probabilities as well, which an update needs; `generate` does not.

Responses have T tokens each, or vary: a random set of ids counts as EOS for both, so large that a
model whose tokens are about equally likely (random weights) stops with a constant probability at
every token, and the lengths are geometric, cut at T, with a mean of T/3. The models need no change
for it, and `generate` checks for ids of EOS in either case. With models given as MODELS that are
not random the mean is another one (it stands in the table), but still the same for both.

The ratio is that of useful tokens per second, ours to `generate`'s.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from random_models import add_model_arguments, environment, model_folder, random_prompts
from reporting import Row, arguments_parser, medians, report, seconds_of, take_turns
from stable_baselines3.common.utils import ConstantSchedule
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from agents import LMActorCriticPolicy
from tokenenv.models import quiet_loading

TABLE = "useful tokens per second while sampling, over transformers' generate"


def stopping_probability(mean: float, longest: int) -> float:
    """Of the geometric distribution that, cut at `longest`, has this mean: (1 − (1−p)^T)/p."""
    low, high = 1e-6, 1.0
    while high - low > 1e-9:
        middle = (low + high) / 2
        if (1 - (1 - middle) ** longest) / middle > mean:
            low = middle
        else:
            high = middle
    return low


def end_tokens(vocabulary: int, longest: int) -> tuple[int, ...]:
    """Ids that end a response so that lengths have a mean of T/3, were all ids equally likely."""
    count = max(1, round(stopping_probability(longest / 3, longest) * vocabulary))
    rng = np.random.default_rng(0)
    return tuple(sorted(rng.choice(vocabulary, size=count, replace=False).tolist()))


class InEnvironment:
    """The policy and the environment: a call samples T tokens in each of N environments."""

    def __init__(
        self,
        folder: Path,
        batch: int,
        prompt: int,
        response: int,
        ends: tuple[int, ...],
        device: str,
        dtype: str = "float32",
    ) -> None:
        on: dict[str, Any] = {"device": device, "dtype": dtype}
        self.env = environment(folder, batch, prompt, response, ends, scoring="deferred", **on)
        self.env.env_method("leave_scoring_to_caller")
        self.policy = LMActorCriticPolicy(
            self.env.observation_space,
            self.env.action_space,
            ConstantSchedule(0.0),
            actor=str(folder / "lm"),
            dtype=dtype,
        ).to(device)
        self.policy.set_training_mode(False)
        self.steps = response

    def __call__(self) -> float:
        """Seconds per useful token; the prompts are read anew."""
        self.policy.drop_caches()
        return seconds_of(self._sample) / (self.steps * self.env.num_envs)

    def _sample(self) -> None:
        observations = self.env.reset()
        with self.policy.reading(lambda: observations):
            for _ in range(self.steps):
                with torch.no_grad():
                    uploaded = torch.as_tensor(observations, device=self.policy.device)  # as SB3
                    actions, _, _ = self.policy(uploaded)
                observations, *_ = self.env.step(actions.cpu().numpy())


class ByGenerate:
    """transformers' `generate`: a call samples one response for each of N prompts."""

    def __init__(
        self,
        folder: Path,
        batch: int,
        prompt: int,
        response: int,
        ends: tuple[int, ...],
        device: str,
        dtype: str = "float32",
    ) -> None:
        tokenizer = AutoTokenizer.from_pretrained(folder / "lm")
        with quiet_loading():
            self.model = AutoModelForCausalLM.from_pretrained(folder / "lm", dtype=dtype)
        self.model.eval().to(device)
        texts = random_prompts(tokenizer, batch, prompt)
        self.prompts = torch.tensor([tokenizer(t)["input_ids"] for t in texts]).to(device)
        self.ends = torch.tensor(ends)
        self.model.generation_config = GenerationConfig(
            do_sample=True,
            top_k=0,
            max_new_tokens=response,
            eos_token_id=list(ends) or None,
            pad_token_id=tokenizer.pad_token_id or 0,
        )
        self.lengths: list[int] = []
        self.num_sampled = 0

    def __call__(self) -> float:
        """Seconds per useful token: up to the EOS, which counts."""
        responses: list[torch.Tensor] = []
        seconds = seconds_of(lambda: responses.append(self._sample()))
        is_end = torch.isin(responses[0], self.ends)
        first = torch.where(is_end.any(1), is_end.int().argmax(1) + 1, is_end.shape[1])
        self.lengths += first.tolist()
        self.num_sampled += is_end.numel()
        return seconds / int(first.sum())

    def _sample(self) -> torch.Tensor:
        mask = torch.ones_like(self.prompts)
        found = self.model.generate(input_ids=self.prompts, attention_mask=mask)
        return found[:, self.prompts.shape[1] :].cpu()


def measure(folder: Path, batch: int, varies: bool, arguments: argparse.Namespace) -> list[Row]:
    """Two rows: `generate`, and ours."""
    response = arguments.response
    vocabulary = AutoModelForCausalLM.from_pretrained(folder / "lm").config.vocab_size
    ends = end_tokens(vocabulary, response) if varies else ()
    shape = (folder, batch, arguments.prompt, response, ends)
    generate = ByGenerate(*shape, device=arguments.device)
    ours = InEnvironment(*shape, device=arguments.device)
    cases: dict[str, Callable[[], float]] = {"generate": generate, "policy and env.step": ours}
    take_turns(cases, 1)  # warms up
    seconds = medians(take_turns(cases, arguments.repetitions))
    useful = {"generate": sum(generate.lengths) / generate.num_sampled, "policy and env.step": 1.0}
    return [
        {
            "table": TABLE,
            "what": name,
            "batch": batch,
            "lengths": "vary" if varies else "all T",
            "ratio": seconds["generate"] / found,
            "tokens/s": 1 / found,
            "useful": useful[name],
            "mean length": float(np.mean(generate.lengths)),
        }
        for name, found in seconds.items()
    ]


def main(arguments: argparse.Namespace) -> None:
    """Measure, print a table, and write JSON where asked."""
    batches = arguments.batches
    if arguments.quick:
        batches, arguments.response, arguments.repetitions = [4], 12, 1
    with model_folder(arguments.models, lm=arguments.lm) as folder, quiet_loading():
        rows = [
            row
            for batch in batches
            for varies in (False, True)
            for row in measure(folder, batch, varies, arguments)
        ]
    names = ("prompt", "response", "device", "repetitions")
    report(rows, {name: getattr(arguments, name) for name in names}, arguments.json)


def _arguments() -> argparse.Namespace:
    parser = arguments_parser(__doc__, repetitions=5)
    add_model_arguments(parser)
    parser.add_argument("--batches", type=int, nargs="+", default=[16, 64, 256])
    parser.add_argument("--prompt", type=int, default=16)
    parser.add_argument("--response", type=int, default=48)
    parser.add_argument("--device", default="cpu")
    return parser.parse_args()


if __name__ == "__main__":
    main(_arguments())
