"""What `tokenrlhf plan` predicts over what a training takes, at the peak.

Each case trains two updates in a process of its own (`plan_case.py`): the most memory that it held
over what it held after a tiny training with the same options. glibc keeps freed blocks of less than
32 MiB, so that a process holds more than its tensors; each case is measured with
MALLOC_MMAP_THRESHOLD_=262144, which gives them back, and as it comes.

Ratios: predicted over measured; "as it comes", measured without that setting over measured with it.
Models are random GPT-2 shapes. `--quick` shows that it runs: one case. Linux only.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from random_models import GPT2_4M, GPT2_124M, ModelShape, write_models
from reporting import Row, arguments_parser, report

from agents.plan.config import PlanConfig
from agents.plan.memory import Planned

__all__ = ["CASES", "SHAPES", "measure", "planned_bytes", "settings"]

SHAPES = {
    "1m": ModelShape(vocabulary=2048, width=128, layers=3),
    "4m": GPT2_4M,
    "26m": ModelShape(vocabulary=12_800, width=512, layers=6),
    "124m": GPT2_124M,
}
_SHORT = {"max_prompt_tokens": 8, "max_new_tokens": 8, "n_envs": 2, "n_steps": 8, "batch_size": 16}
_LONG = {"max_prompt_tokens": 32, "max_new_tokens": 96, "n_envs": 32, "n_steps": 96}
_LONG |= {"batch_size": 3072}
_LONGER = {"max_prompt_tokens": 32, "max_new_tokens": 224, "n_envs": 64, "n_steps": 224}
_LONGER |= {"batch_size": 14_336}
SMALL_PARTS = {"micro_batch_tokens": 508}
LORA = {"lora_rank": 16}

CASES: list[tuple[str, str, dict[str, Any]]] = [
    ("1m", "all weights", _LONG),
    ("4m", "all weights", _LONG),
    ("4m", "micro-batches of 508 tokens", {**_LONG, **SMALL_PARTS}),
    ("4m", "longer", _LONGER),
    ("4m", "longer, checkpointing", {**_LONGER, "gradient_checkpointing": True}),
    ("4m", "LoRA", {**_LONG, **LORA}),
    ("26m", "separate critic", {**_LONG, "n_envs": 16, "value_head": "separate"}),
    ("26m", "stepwise scoring", {**_LONG, **SMALL_PARTS, "scoring": "step"}),
    ("124m", "all weights", _SHORT),
    ("124m", "LoRA", {**_SHORT, **LORA}),
    ("124m", "LoRA, bfloat16", {**_SHORT, **LORA, "dtype": "bfloat16"}),
]
"""Model, what it is, settings of `PlanConfig`."""

MIB = 2**20
TABLE = "predicted peak over measured peak"
GIVES_BACK = {"MALLOC_MMAP_THRESHOLD_": "262144"}


def settings(models: Path, case: dict[str, Any]) -> PlanConfig:
    """The plan of a case: on a CPU, without an evaluation."""
    base = {"model": str(models / "lm"), "reward_model": str(models / "rm"), "gpu_memory": 100.0}
    return PlanConfig(**base, device="cpu", eval_responses=0, reserve=0.0, **case)


def planned_bytes(config: PlanConfig) -> dict[str, int]:
    """`training`, and `loading` where it is planned: bytes at the peak."""
    planned, micro = Planned(config), config.micro_batch_tokens
    sequences = planned.most_sequences if micro is None else planned.sequences_of(micro)
    memory = planned.memory(sequences)
    found = {"training": 0}
    for stage in memory.stages:
        name = "loading" if stage.is_before else "training"
        found[name] = max(found.get(name, 0), memory.together(stage))
    return found


def measure(models: Path, config: PlanConfig, environment: dict[str, str]) -> dict[str, int]:
    """What a fresh process found: see `plan_case.py`."""
    script = Path(__file__).parent / "plan_case.py"
    content = {k: v for k, v in dataclasses.asdict(config).items() if v is not None}
    words = [sys.executable, str(script), str(models), json.dumps(content)]
    done = subprocess.run(words, capture_output=True, text=True, env={**os.environ, **environment})
    if done.returncode:
        raise RuntimeError(f"{content} failed ({done.returncode}):\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def case_rows(models: Path, name: str, case: dict[str, Any]) -> list[Row]:
    """A row for training, and one for loading where it is planned."""
    config = settings(models, case)
    predicted = planned_bytes(config)
    found, as_it_comes = measure(models, config, GIVES_BACK), measure(models, config, {})
    return [
        {
            "table": TABLE,
            "what": f"{name}: {stage}",
            "ratio": count / found[stage],
            "predicted, MiB": count / MIB,
            "measured, MiB": found[stage] / MIB,
            "as it comes": as_it_comes[stage] / found[stage],
        }
        for stage, count in predicted.items()
    ]


def main(arguments: argparse.Namespace) -> None:
    """Measure every case, print the table, and write JSON where asked."""
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for model, option, case in CASES[:1] if arguments.quick else CASES:
            models = Path(folder) / model
            if not models.exists():
                write_models(models, SHAPES[model])
            rows += case_rows(models, f"{model}, {option}", case)
            sys.stderr.write(f"{rows[-1]['what']}: {rows[-1]['ratio']:.3f}\n")
    report(rows, {"updates": 2}, arguments.json)


if __name__ == "__main__":
    main(arguments_parser(__doc__, repetitions=1).parse_args())
