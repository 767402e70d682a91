"""Memory of a training by model size and option, and the time of an update.

Every case is a process of its own: environment, actor, one rollout, one update. Options: all
weights in float32; the update computed in bfloat16; activations computed again in the backward pass
(`--gradient-checkpointing`); adapters over shared weights (`--lora-rank 16`); those with the frozen
weights in bfloat16; and all of it. The critic is a head on the trunk, the reward a function,
so that actor and reference are the only models.

- Copies: the bytes of all tensors of actor and reference, over those of one copy of the weights,
  without the adapters; adapters' bytes stand beside it.
- Peak: on a GPU the most that torch held on the card; on a CPU the most memory that the process
  held, interpreter and libraries included.
- Ratios: peak over that of the first option; so is the time of the update.

Models are random GPT-2 shapes; `--models 4m 124m 774m 1500m`. `--quick` shows that it runs: a tiny
model, and all cases but the first in one process, where a peak is none of the case's own.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from random_models import ModelShape, random_prompts, write_models
from reporting import Row, arguments_parser, report

from agents import LMActorCriticPolicy, RLHFCallback, TokenPPO, make_vec_env
from tokenenv.models import is_adapter_weight, load_tokenizer, quiet_loading

SHAPES = {
    "4m": ModelShape(),
    "124m": ModelShape(vocabulary=50_257, width=768, layers=12, positions=1024),
    "774m": ModelShape(vocabulary=50_257, width=1280, layers=36, positions=1024),
    "1500m": ModelShape(vocabulary=50_257, width=1600, layers=48, positions=1024),
}
LORA = {"lora": {"rank": 16}}
OPTIONS: dict[str, dict[str, Any]] = {
    "all weights, float32": {},
    "computed in bfloat16": {"precision": "bfloat16"},
    "checkpointing": {"policy": {"gradient_checkpointing": True}},
    "checkpointing, bfloat16": {
        "precision": "bfloat16",
        "policy": {"gradient_checkpointing": True},
    },
    "LoRA": {"policy": LORA},
    "LoRA, frozen bfloat16": {"policy": LORA, "dtype": "bfloat16"},
    "LoRA, frozen bfloat16, checkpointing": {
        "policy": {**LORA, "gradient_checkpointing": True},
        "dtype": "bfloat16",
    },
}
MIB = 2**20
TABLE = "a training by option"


def lengths(prompts: list[str], responses: list[str]) -> list[float]:
    """A reward that costs nothing."""
    return [float(len(response)) for response in responses]


def run_case(models: Path, option: str, arguments: argparse.Namespace) -> Row:
    """One rollout and one update; the numbers of a row."""
    settings, device = OPTIONS[option], arguments.device
    dtype, folder = settings.get("dtype", "float32"), str(models / "lm")
    with quiet_loading():
        prompts = random_prompts(load_tokenizer(folder, "reference"), 8, arguments.prompt)
        env = make_vec_env(
            n_envs=arguments.batch,
            seed=0,
            reference=folder,
            reward_model=lengths,
            prompts=prompts,
            max_prompt_tokens=arguments.prompt,
            max_new_tokens=arguments.response,
            scoring="deferred",
            device=device,
            dtype=dtype,
        )
        model = TokenPPO(
            LMActorCriticPolicy,
            env,
            n_steps=arguments.response,
            batch_size=arguments.batch * arguments.response,
            micro_batch_tokens=arguments.micro_batch_tokens,
            n_epochs=1,
            precision=settings.get("precision", "float32"),
            policy_kwargs={"dtype": dtype, **settings.get("policy", {})},
            seed=0,
            device=device,
        )
    seconds: list[float] = []
    train = model.train

    def timed() -> None:
        start = time.perf_counter()
        train()
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)

    model.train = timed  # type: ignore[method-assign]
    model.learn(2 * arguments.batch * arguments.response, callback=RLHFCallback())
    reference, actor = env.inner.mdp.language_model.model, model.policy.actor
    tensors = {
        t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
        for m in (reference, actor)
        for t in (*m.parameters(), *m.buffers())
    }
    adapters = sum(w.nbytes for n, w in actor.named_parameters() if is_adapter_weight(n))
    once = sum(w.nbytes for w in reference.parameters())
    return {
        "copies": (sum(tensors.values()) - adapters) / once,
        "one copy, MiB": once / MIB,
        "adapters, MiB": adapters / MIB,
        "peak, MiB": _peak(device) / MIB,
        "seconds": min(seconds),
    }


def _peak(device: str) -> int:
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def main(arguments: argparse.Namespace) -> None:
    """Measure every case in a process of its own, print the table, and write JSON where asked."""
    if arguments.case is not None:
        row = run_case(Path(arguments.case[0]), arguments.case[1], arguments)
        sys.stdout.write(json.dumps(row) + "\n")
        return
    rows: list[Row] = []
    shapes = {"tiny": ModelShape(256, 64, 2, 64)} if arguments.quick else SHAPES
    for name in ["tiny"] if arguments.quick else arguments.models:
        with tempfile.TemporaryDirectory() as folder, quiet_loading():
            models = write_models(Path(folder), shapes[name])
            first: Row | None = None
            for option in arguments.options:
                if arguments.quick and first is not None:  # what the process held before counts
                    found = run_case(models, option, arguments)
                else:
                    found = _in_process(models, option, arguments)
                first = first or found
                rows.append(
                    {
                        "table": TABLE,
                        "what": f"{name}, {option}",
                        "ratio": found["peak, MiB"] / first["peak, MiB"],
                        "time": found["seconds"] / first["seconds"],
                        **{key: value for key, value in found.items() if key != "seconds"},
                    }
                )
                peak = f"peak {found['peak, MiB']:,.0f} MiB, {found['seconds']:.1f} s an update"
                sys.stderr.write(f"{name}, {option}: {peak}\n")  # the table comes at the end
    card = torch.cuda.get_device_name() if arguments.device.startswith("cuda") else "none"
    names = ("batch", "prompt", "response", "micro_batch_tokens", "device")
    report(rows, {"card": card, **{n: getattr(arguments, n) for n in names}}, arguments.json)


def _in_process(models: Path, option: str, arguments: argparse.Namespace) -> Row:
    names = ("batch", "prompt", "response", "micro_batch_tokens", "device")
    known = {name: getattr(arguments, name) for name in names}
    words = [w for n, v in known.items() if v is not None for w in (_option(n), str(v))]
    command = [sys.executable, __file__, *words, "--case", str(models), option]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{option} failed ({done.returncode}):\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _arguments() -> argparse.Namespace:
    parser = arguments_parser(__doc__, repetitions=1)
    parser.add_argument("--models", nargs="+", choices=list(SHAPES), default=["4m", "124m"])
    for name, default in (("batch", 16), ("prompt", 32), ("response", 128)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--micro-batch-tokens", type=int)
    parser.add_argument("--options", nargs="+", choices=list(OPTIONS), default=list(OPTIONS))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--case", nargs=2, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main(_arguments())
