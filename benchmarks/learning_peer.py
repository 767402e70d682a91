"""How fast TRL's `PPOTrainer` learns, in its environment, by the evaluator of our runs."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch
from learning_runs import BEFORE, Run, Say, evaluator
from transformers import AutoModelForCausalLM

from tokenenv.models import quiet_loading

__all__ = ["check_peer", "train_peer"]

PEER_SCRIPT = Path(__file__).with_name("trl_learning.py")
PEER_OPTIONS = ("learning_rate", "batch", "epochs", "minibatches")
"""Settings of a peer's run."""


def check_peer(python: Path) -> None:
    """Exit with a sentence where the peer is not installed."""
    command = [str(python), "-c", "import trl.experimental.ppo"]
    try:
        done = subprocess.run(command, capture_output=True, env=_quiet())
    except OSError:
        done = None
    if done is None or done.returncode:
        raise SystemExit(
            f"--peer {python}: no TRL with its PPO there. It needs other versions than this "
            "project, so an environment of its own: python -m venv .venv-trl && "
            ".venv-trl/bin/pip install torch==2.13.0 trl==1.12.0, then --peer .venv-trl/bin/python."
        )


def _quiet() -> dict[str, str]:
    return {**os.environ, "TRL_EXPERIMENTAL_SILENCE": "1", "HF_HUB_OFFLINE": "1"}


def _policy(folder: str) -> Any:
    """The causal LM in a folder, in the precision that the reference has."""
    with quiet_loading():
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def train_peer(python: Path, run: Run, say: Say) -> None:
    """The same of TRL's PPOTrainer: its policies are measured here, by the same evaluator.

    While one is measured the peer waits, and its clock stands still.

    Args:
        python: of the peer's environment.
        run: the run.
        say: called with each point.

    Raises:
        RuntimeError: the peer failed.
        ValueError: a setting is unknown.
    """
    unknown = set(run.settings) - set(PEER_OPTIONS)
    if unknown:
        raise ValueError(
            f"the peer has no setting {', '.join(sorted(unknown))}: {', '.join(PEER_OPTIONS)} are."
        )
    judge = evaluator(run.task, run.prompts, run.responses)
    say({**BEFORE, **judge(judge.reference)})
    settings = {"batch": 64, **run.settings}
    updates = max(1, round(run.tokens / (settings["batch"] * judge.held_out.max_new_tokens)))
    options = {
        **settings,
        "response": judge.held_out.max_new_tokens,
        "kl_coef": judge.held_out.settings.kl_coef,
        "updates": updates,
        "every": max(1, updates // run.points),
        "seed": run.seed,
    }
    words = [w for name, x in options.items() for w in (f"--{name.replace('_', '-')}", str(x))]
    with tempfile.TemporaryDirectory() as policies, tempfile.TemporaryFile("w+") as errors:
        files = [run.task, str(Path(run.task) / "prompts.jsonl"), "--policies", policies]
        command = [str(python), str(PEER_SCRIPT), *files, *words]
        with subprocess.Popen(
            command,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=_quiet(),
        ) as process:
            assert process.stdout is not None and process.stdin is not None
            for line in process.stdout:
                if not line.startswith('{"tokens"'):
                    continue
                point = json.loads(line)
                actor = _policy(point.pop("policy"))
                say({**point, **judge(actor), "is_last": point["updates"] == updates})
                process.stdin.write("\n")
                process.stdin.flush()
        if process.returncode:
            errors.seek(0)
            raise RuntimeError(f"{' '.join(command)} failed:\n{errors.read()[-2000:]}")
