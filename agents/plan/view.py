"""A plan as tables on a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from agents.console import literal
from agents.plan.advice import Plan
from agents.plan.memory import GIB

__all__ = ["print_plan"]

_MIB = 2**20


def print_plan(plan: Plan, console: Console) -> None:
    """Print the parts at the peak, the stages, the verdict, and what to change."""
    config, memory = plan.config, plan.memory
    console.print(
        Text.assemble(
            literal(config.model, "bold"),
            f": {plan.parameters:,} parameters; {config.gpus:,} GPU{'s' * (config.gpus > 1)} of "
            f"{config.gpu_memory:g} GiB, {plan.limit / GIB:,.2f} GiB of each to be used",
        )
    )
    console.print(_parts(plan))
    console.print(_stages(plan))
    style, word = ("bold green", "fits") if plan.fits else ("bold red", "does not fit")
    console.print(
        Text.assemble(
            (f"{word}: ", style),
            f"{size(memory.peak)} at the peak, in the {memory.worst.name}, against "
            f"{size(plan.limit)}; the largest part is {memory.bound}.",
        )
    )
    if config.device == "cpu":
        console.print(
            Text.assemble(
                ("note: ", "yellow"),
                "glibc keeps what is freed below 32 MiB: set MALLOC_MMAP_THRESHOLD_=262144, or "
                "count on up to 1.7 times as much (docs/scaling.md).",
            )
        )
    if plan.fits:
        tokens = plan.micro_batch_tokens
        told = "whole minibatches (leave --micro-batch-tokens out)"
        if tokens is not None:
            told = f"--micro-batch-tokens {tokens}"
        count = memory.sequences
        console.print(f"micro-batch: {told}, {count:,} sequence{'s' * (count > 1)} at once.")
        return
    is_enough = any(change.fits for change in plan.changes)
    said = "any one of these makes it fit:" if is_enough else "these lower the peak, not enough:"
    if not plan.changes:
        said = "no option helps: take a smaller model, or a GPU with more memory."
    console.print(Text(said, "bold"))
    for change in plan.changes:
        console.print(literal(f"  {change.options}: {size(change.peak)}"))


def size(count: int) -> str:
    """Bytes as GiB, or as MiB below one."""
    return f"{count / GIB:,.2f} GiB" if count >= GIB else f"{count / _MIB:,.1f} MiB"


def _parts(plan: Plan) -> Table:
    memory = plan.memory
    table = Table(title=f"at the peak, in the {memory.worst.name}", title_justify="left")
    table.add_column("")
    for header in ("memory", "of the peak"):
        table.add_column(header, justify="right")
    for name, count in memory.parts.items():
        style = "bold" if name == memory.bound else ""
        table.add_row(Text(name, style), size(count), f"{count / memory.peak:.1%}")
    table.add_section()
    table.add_row("peak", size(memory.peak), "100.0%")
    return table


def _stages(plan: Plan) -> Table:
    memory = plan.memory
    table = Table(title="by stage", title_justify="left")
    table.add_column("")
    for header in ("adds", "together", "of the limit"):
        table.add_column(header, justify="right")
    for stage in memory.stages:
        total = memory.together(stage)
        table.add_row(stage.name, size(stage.total), size(total), f"{total / plan.limit:.1%}")
    return table
