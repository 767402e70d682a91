"""What an option of other tools is called here: `--lr`, `--beta` and their kind."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

__all__ = ["refuse_other_names"]

_OTHER_NAMES: dict[str, tuple[str, ...]] = {
    "learning_rate": ("lr", "learning-rates", "actor-lr", "actor-learning-rate"),
    "kl_coef": (
        "beta",
        "kl-beta",
        "init-kl-coef",
        "kl-coefficient",
        "kl-penalty-coef",
        "kl-weight",
    ),
    "max_prompt_tokens": (
        "max-prompt-length",
        "max-prompt-len",
        "max-query-length",
        "prompt-length",
    ),
    "max_new_tokens": (
        *("max-length", "max-completion-length", "max-response-length", "response-length"),
        *("max-new-token", "max-tokens", "gen-length", "max-gen-len"),
    ),
    "total_tokens": ("total-timesteps", "total-episodes", "total-steps", "max-steps", "timesteps"),
    "n_envs": ("num-envs", "envs", "n-env", "rollout-batch-size"),
    "n_steps": ("num-steps", "rollout-steps", "rollout-length"),
    "n_epochs": ("num-epochs", "ppo-epochs", "num-ppo-epochs", "num-train-epochs"),
    "epochs": ("n-epochs", "num-epochs", "num-train-epochs"),
    "batch_size": (
        "mini-batch-size",
        "minibatch-size",
        "per-device-train-batch-size",
        "train-batch-size",
    ),
    "micro_batch_tokens": ("micro-batch-size", "gradient-accumulation-steps", "accumulation-steps"),
    "gae_lambda": ("lam", "lambda", "lambd", "gae-lam"),
    "clip_range": ("cliprange", "clip", "clip-eps", "clip-epsilon", "epsilon", "eps-clip"),
    "clip_range_high": ("epsilon-high", "eps-clip-high"),
    "clip_range_vf": ("cliprange-value", "value-clip", "vf-clip"),
    "vf_coef": ("value-coef", "value-loss-coef", "critic-coef"),
    "ent_coef": ("entropy-coef", "entropy-coeff", "entropy-weight"),
    "max_grad_norm": ("grad-clip", "clip-grad", "max-norm", "gradient-clipping"),
    "group_size": ("num-generations", "num-samples", "n-samples", "rloo-k", "group"),
    "actor": ("model", "model-name", "model-name-or-path", "policy", "sft-model-path", "pretrain"),
    "reference": ("ref", "ref-model", "reference-model"),
    "base": ("model", "model-name", "model-name-or-path", "base-model"),
    "reward_model": (
        "rm",
        "reward",
        "reward-fn",
        "reward-func",
        "reward-funcs",
        "reward-model-path",
    ),
    "combine": ("reward-combine", "ensemble", "ensemble-mode", "aggregation"),
    "prompts": ("dataset", "data", "prompt-file", "prompts-file", "dataset-name", "prompt-data"),
    "pairs": ("dataset", "data", "preferences", "dataset-name"),
    "out": ("output", "output-dir", "out-dir", "save-path", "outdir", "run-name"),
    "lora_rank": ("lora-r", "lora", "rank", "use-lora", "use-peft"),
    "lora_target_modules": ("target-modules", "lora-modules"),
    "precision": ("bf16", "fp16", "amp", "mixed-precision", "autocast"),
    "tracker": ("wandb", "report-to", "use-wandb", "trackio", "log-with", "logger"),
    "cut": ("partial-rollouts",),
    "missing_eos_penalty": ("eos-penalty", "length-penalty"),
    "num_threads": ("threads", "n-threads", "cpus"),
    "seed": ("random-seed",),
    "seeds": ("num-seeds", "n-seeds", "repeats"),
    "checkpoint_every": ("save-steps", "save-every", "save-freq", "checkpoint-freq"),
    "eval_every": ("eval-steps", "eval-freq", "evaluate-every"),
    "task": ("env", "environment", "env-id"),
}
"""Names here → names of the same in other tools."""


def refuse_other_names(command: str, config: type[Any], arguments: Sequence[str]) -> None:
    """Raise ValueError for an option that is known, but by another name, and say by which.

    Args:
        command: the command's name.
        config: the dataclass of its options.
        arguments: the arguments behind the command.
    """
    fields = {field.name for field in dataclasses.fields(config)}
    theirs = {other: name for name in fields for other in _OTHER_NAMES.get(name, ())}
    for argument in arguments:
        if argument == "--":
            return
        option = argument.partition("=")[0].removeprefix("--").replace("_", "-")
        is_option = argument.startswith("--") and option.replace("-", "_") not in fields
        if is_option and option in theirs:
            here = theirs[option].replace("_", "-")
            raise ValueError(
                f"{command} has no option --{option}: it is --{here} here "
                f"(tokenrlhf {command} --help explains it)."
            )
