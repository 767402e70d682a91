"""One case of `bench_plan.py`, in a process of its own: `plan_case.py MODELS CASE`.

A tiny training warms up what a process loads once. What it holds then is the baseline. From there
on the kernel keeps the most that the process held, set back between loading and training (Linux:
/proc/self/clear_refs). Prints JSON: bytes above the baseline.
"""

from __future__ import annotations

import ctypes
import dataclasses
import gc
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from random_models import ModelShape, environment, write_models

from agents import LMActorCriticPolicy, RLHFCallback, TokenPPO
from agents.plan.config import PlanConfig
from tokenenv.models import quiet_loading

__all__ = ["measured"]

UPDATES = 2
"""The second one starts with gradients and optimiser state."""


def trained(models: Path, config: PlanConfig) -> Any:
    """The model of a training as `config` plans it, set up."""
    lora = None if config.lora_rank is None else {"rank": config.lora_rank}
    env = environment(
        models,
        config.n_envs,
        config.prompt_tokens,
        config.response_tokens,
        num_prompts=8,
        scoring=config.scoring,
        device="cpu",
        dtype=config.dtype,
    )
    return TokenPPO(
        LMActorCriticPolicy,
        env,
        n_steps=config.n_steps,
        batch_size=config.batch_size,
        micro_batch_tokens=config.micro_batch_tokens,
        n_epochs=1,
        max_skipped_updates=2,  # as of `tokenrlhf train`: it keeps a copy of the weights
        precision=config.precision,
        policy_kwargs={
            "actor": str(models / "lm"),
            "value_head": config.value_head,
            "dtype": config.dtype,
            "lora": lora,
            "gradient_checkpointing": config.gradient_checkpointing,
            "optimizer_class": config.optimizer,
        },
        seed=0,
        device="cpu",
    )


def warm_up(config: PlanConfig) -> None:
    """Train a tiny model with the same options."""
    sizes = {"max_prompt_tokens": 8, "max_new_tokens": 8, "n_envs": 4, "n_steps": 8}
    tiny = dataclasses.replace(config, **sizes, batch_size=32, micro_batch_tokens=None)
    with tempfile.TemporaryDirectory() as folder, quiet_loading():
        models = write_models(Path(folder), ModelShape(256, 64, 2, 64))
        trained(models, tiny).learn(2 * 32, callback=RLHFCallback())


def held(name: str) -> int:
    """A number of bytes in /proc/self/status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return 1024 * int(line.split()[1])
    raise ValueError(f"/proc/self/status has no {name}: this needs Linux")


def forget() -> None:
    """Give back what is free, and let the most that was held be what is held now."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def measured(models: Path, config: PlanConfig) -> dict[str, int]:
    """What loading and what training took above the baseline, at the most, in bytes."""
    warm_up(config)
    forget()
    baseline = held("VmRSS")
    with quiet_loading():
        model = trained(models, config)
    loading = held("VmHWM") - baseline
    forget()
    loaded = held("VmRSS") - baseline
    model.learn(UPDATES * config.n_envs * config.n_steps, callback=RLHFCallback())
    training = held("VmHWM") - baseline
    return {"loading": loading, "loaded": loaded, "training": training, "baseline": baseline}


def main() -> None:
    """Run the case of the command line and print what it took."""
    config = PlanConfig(**json.loads(sys.argv[2]))
    sys.stdout.write(json.dumps(measured(Path(sys.argv[1]), config)) + "\n")


if __name__ == "__main__":
    main()
