"""One GPU: how near sampling comes to the card's memory, and whole updates per second.

The models are random, of the shape `gpt2-124m` (vocabulary 50,257, width 768, 12 layers), or those
of MODELS or `--lm`; prompts have 32 tokens and responses 128. Measured in turns within this run:

- Sampling, at batch 64 and 256: milliseconds per token step of the policy in the environment (one
  transfer to the host per step), with the decode step captured in a CUDA graph and without, and of
  transformers' `generate`. Weights are bfloat16 on all sides (`--dtype`). Ratio: `generate`'s time
  over this one.
- The decode step alone, one new token for all sequences, without an environment: the trunk, and the
  whole step with logits and a draw. The host does not wait for the device in between. Every step
  must read all weights that a matrix product uses, once, and the keys and values of all tokens so
  far, whose mean number over the response is P + (T+1)/2. The ratio is the time that these bytes
  take at the bandwidth of a device-to-device copy, measured here (a copy of n bytes moves 2n), over
  the time of the step: the share of the bandwidth limit that is reached.
- Whole updates, as in `bench_ppo.py`: batch 256, 4 epochs, float32 weights, in float32 and in the
  precision that is faster, against the sum of parts and, where `--peer` and `--peer-script` are
  given, a peer on the same card in both precisions; and where the time of ours goes.
- The most memory that torch held on the card in one update, over what no update does without: the
  weights of actor, reference and reward model, the gradients, and Adam's two moments.

Without CUDA there is nothing to measure; `--device cpu --quick` runs all of it on a tiny model, all
steps eagerly, and shows that it runs (the memory is then the process's).
"""

from __future__ import annotations

import argparse
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bench_ppo
import numpy as np
import torch
from bench_rollout import ByGenerate, InEnvironment
from ppo_updates import Workload, add_peer_arguments, parse_with_peer, token_ppo
from random_models import GPT2_124M, ModelShape, add_model_arguments, model_folder
from reporting import Row, arguments_parser, medians, report, seconds_of, take_turns

from agents import TokenPPO
from tokenenv.models import (
    SlotDecoder,
    graph_capture,
    load_frozen,
    log_softmax,
    no_capture,
    quiet_loading,
    sample_tokens,
)

SAMPLING = "time per token step: generate's over this one's"
DECODING = "decode step: share of the bandwidth limit"
MEMORY = "peak memory of an update over weights, gradients and Adam's state"
GENERATE = "generate"
CAPTURES = {"eager": no_capture, "CUDA graph": graph_capture}
"""Name → the argument `capture` of `SlotDecoder`."""

TINY = ModelShape(vocabulary=256, width=64, layers=2, positions=64)
MIB = 2**20


# Sampling ----------------------------------------------------------------------------------------


def sampling_rows(folder: Path, batch: int, arguments: argparse.Namespace) -> list[Row]:
    """Rows for `generate` and for ours, with a graph and without."""
    response, device = arguments.response, arguments.device
    shape = (folder, batch, arguments.prompt, response, ())
    cases: dict[str, Callable[[], float]] = {
        GENERATE: ByGenerate(*shape, device=device, dtype=arguments.dtype)
    }
    decoders: list[SlotDecoder] = []
    for name, capture in CAPTURES.items():
        ours = InEnvironment(*shape, device=device, dtype=arguments.dtype)
        width = arguments.prompt + response
        decoder = SlotDecoder(ours.policy.actor, batch, width, capture=capture)
        ours.policy.decoders.by_purpose["rollout"] = (decoder,)
        decoders.append(decoder)
        cases[f"policy and env.step, {name}"] = ours
    take_turns(cases, 1)  # warms up, captures
    seconds = medians(take_turns(cases, arguments.repetitions))
    assert all(decoder.forwards for decoder in decoders), "the policy made decoders of its own"
    return [
        {
            "table": SAMPLING,
            "what": name,
            "batch": batch,
            "ratio": seconds[GENERATE] / found,
            "ms per step": 1e3 * batch * found,
            "tokens/s": 1 / found,
        }
        for name, found in seconds.items()
    ]


# The decode step ---------------------------------------------------------------------------------


class Decoding:
    """A call: seconds per decode step of N sequences, over a response of T random tokens.

    Args:
        model: a causal LM.
        batch: N.
        arguments: prompt, response and device.
        capture: of `SlotDecoder`.
        draws: whether logits are computed and a token is drawn; the token that is fed next is
            another one, known beforehand, so that the host need not wait.
    """

    def __init__(
        self,
        model: Any,
        batch: int,
        arguments: argparse.Namespace,
        capture: Callable[[torch.device], Any],
        draws: bool,
    ) -> None:
        self.model, self.draws, self.device = model, draws, arguments.device
        self.prompt, self.response = arguments.prompt, arguments.response
        vocabulary = model.get_output_embeddings().weight.shape[0]
        width = self.prompt + self.response
        self.tokens = np.random.default_rng(0).integers(vocabulary, size=(batch, width))
        self.decoder = SlotDecoder(model, batch, width, capture=capture)

    def __call__(self) -> float:
        """The prompts are read beforehand."""
        self.decoder.drop()
        self.seen = np.full_like(self.tokens, -1)
        self.seen[:, : self.prompt] = self.tokens[:, : self.prompt]
        self.decoder.hidden_states(self.seen)
        return seconds_of(self._decode, self.device) / self.response

    @torch.no_grad()
    def _decode(self) -> None:
        for column in range(self.prompt, self.prompt + self.response):
            self.seen[:, column] = self.tokens[:, column]
            hidden = self.decoder.hidden_states(self.seen)
            if self.draws:
                sample_tokens(log_softmax(self.model, hidden, 1.0))


def decoding_rows(
    folder: Path, batch: int, bandwidth: float, arguments: argparse.Namespace
) -> list[Row]:
    """Rows for the trunk and the whole step, with a graph and without."""
    model = load_frozen(str(folder / "lm"), arguments.device, arguments.dtype).model
    cases: dict[tuple[str, bool], Decoding] = {}
    for name, capture in CAPTURES.items():
        cases[f"trunk, {name}", False] = Decoding(model, batch, arguments, capture, False)
        cases[f"trunk, logits and a draw, {name}", True] = Decoding(
            model, batch, arguments, capture, True
        )
    take_turns(cases, 1)
    seconds = medians(take_turns(cases, arguments.repetitions))
    tokens = arguments.prompt + (arguments.response + 1) / 2
    rows = []
    for (name, draws), found in seconds.items():
        moved = weight_bytes(model, draws) + cache_bytes(model, batch, tokens)
        rows.append(
            {
                "table": DECODING,
                "what": name,
                "batch": batch,
                "ratio": moved / bandwidth / found,
                "ms per step": 1e3 * found,
                "limit, ms": 1e3 * moved / bandwidth,
                "must move, MiB": moved / MIB,
            }
        )
    return rows


def weight_bytes(model: Any, has_output_layer: bool) -> int:
    """Bytes of the weights that a step reads whole: not those of embeddings that it looks up.

    Args:
        model: a causal LM.
        has_output_layer: whether the step computes logits; a tied input embedding is then read.
    """
    output = model.get_output_embeddings().weight
    skipped = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Embedding)}
    skipped = skipped - {id(output)} if has_output_layer else skipped | {id(output)}
    return sum(p.nbytes for p in model.parameters() if id(p) not in skipped)


def cache_bytes(model: Any, batch: int, tokens: float) -> float:
    """Bytes of the keys and values of `tokens` tokens in `batch` sequences."""
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    per_token = 2 * config.num_hidden_layers * heads * size * model.dtype.itemsize
    return batch * tokens * per_token


def copy_bandwidth(device: str, megabytes: int, repetitions: int) -> float:
    """Bytes per second, read and written, of a copy on the device; the best of several."""
    source = torch.ones(megabytes * MIB, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    times = [seconds_of(lambda: target.copy_(source), device) for _ in range(3 + repetitions)]
    return 2 * source.nbytes / min(times)


# Whole updates -----------------------------------------------------------------------------------


def memory_rows(work: Workload) -> list[Row]:
    """A row: the peak of one update, after one that warmed up."""
    model = token_ppo(work)
    model.learn(work.tokens)
    on_gpu = work.device.startswith("cuda")
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    model.learn(work.tokens)
    peak = torch.cuda.max_memory_allocated() if on_gpu else _process_peak()
    needed = indispensable_bytes(model)
    where = "on the card" if on_gpu else "of the process"
    return [
        {
            "table": MEMORY,
            "what": f"TokenPPO, {model.update_precision}, {where}",
            "ratio": peak / needed,
            "peak, MiB": peak / MIB,
            "indispensable, MiB": needed / MIB,
        }
    ]


def indispensable_bytes(model: TokenPPO) -> int:
    """Weights of all models, and gradients and two moments of those that are trained."""
    buffer: Any = model.rollout_buffer
    scorer = buffer.binding.scorer
    frozen = (scorer.reference.language_model.model, scorer.reward.reward_model.model)
    trained = sum(p.nbytes for p in model.policy.parameters())
    return 4 * trained + sum(p.nbytes for m in frozen for p in m.parameters())


def _process_peak() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def main(arguments: argparse.Namespace) -> None:
    """Measure, print the tables, and write JSON where asked."""
    shape, megabytes, batch = GPT2_124M, 1024, 256
    if arguments.quick:
        shape, megabytes, batch = TINY, 16, 4
        arguments.batches, arguments.prompt, arguments.response = [2, 4], 4, 6
        arguments.repetitions = arguments.updates = 1
    bandwidth = copy_bandwidth(arguments.device, megabytes, arguments.repetitions)
    with model_folder(arguments.models, shape, arguments.lm) as folder, quiet_loading():
        work = Workload(
            folder,
            batch,
            arguments.prompt,
            arguments.response,
            micro_batch_tokens=arguments.micro_batch_tokens,
            precision="auto",
            device=arguments.device,
        )
        rows = memory_rows(work)  # first, while nothing else is on the card
        for size in arguments.batches:
            rows += sampling_rows(folder, size, arguments)
            rows += decoding_rows(folder, size, bandwidth, arguments)
        rows += bench_ppo.updates(work, arguments)
        rows += bench_ppo.stages(work, arguments.updates)
    card = torch.cuda.get_device_name() if arguments.device.startswith("cuda") else "none"
    setting = {"card": card, "copy GB/s": round(bandwidth / 1e9), "update batch": batch}
    names = ("prompt", "response", "dtype", "micro_batch_tokens", "updates", "repetitions")
    report(rows, {**setting, **{n: getattr(arguments, n) for n in names}}, arguments.json)


def _arguments() -> argparse.Namespace:
    parser = arguments_parser(__doc__, repetitions=3)
    add_model_arguments(parser)
    parser.add_argument("--batches", type=int, nargs="+", default=[64, 256], help="of sampling")
    for name, default in (("prompt", 32), ("response", 128), ("updates", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--micro-batch-tokens", type=int)
    parser.add_argument("--device", default="cuda")
    add_peer_arguments(parser)
    parser.set_defaults(precisions=["float32", "auto"], without_stock=True)
    arguments = parse_with_peer(parser)
    is_exercise = arguments.device == "cpu" and arguments.quick
    if not is_exercise and not (arguments.device.startswith("cuda") and torch.cuda.is_available()):
        sys.exit(
            f"bench_gpu measures a CUDA device, and device={arguments.device!r} is none that torch "
            "finds here: run it where there is one, or exercise it with --device cpu --quick."
        )
    return arguments


if __name__ == "__main__":
    main(_arguments())
