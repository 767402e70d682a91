"""`Trained`: the module whose gradients are taken: alone, in DDP, or sharded by FSDP2.

Whoever trains adds up the gradient of a loss over all ranks, Σ_r L_r, where L_r is what rank r's
examples add to it: each is divided by the counts of all ranks already, so that ranks with more
tokens weigh more. DDP and FSDP2 average over ranks; `factor` undoes that.

DDP (`torch.nn.parallel.DistributedDataParallel`, prepared by `accelerate`) keeps everything on
every rank. FSDP2 (`torch.distributed.fsdp.fully_shard`, called directly) shards weights, gradients
and the optimiser's state; a whole copy of the weights stays on every rank, for sampling.
"""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from agents.scaling.ranks import ALONE, Ranks

__all__ = ["InDDP", "Sharded", "Trained"]

MakeOptimizer = Callable[[list[nn.Parameter]], torch.optim.Optimizer]


class _Calls(nn.Module):
    """A module whose forward pass is a method of another, by its name, or a function of it.

    What surrounds a module's forward, as DDP and FSDP2 do, then surrounds any of them.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, what: str | Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The result of a method of the module, or of a function of it."""
        if callable(what):
            return what(self.module, *args, **kwargs)
        return getattr(self.module, what)(*args, **kwargs)


class Trained:
    """A module that one process trains.

    Args:
        module: with methods that compute what a loss is made of.
        optimizer: over its weights.

    Attributes:
        module: the one whose weights the optimiser steps.
        factor: what the loss of this rank's examples is multiplied by, before `backward`.
        needs_equal_passes: whether all ranks must make as many forward passes.
    """

    ranks: Ranks = ALONE
    factor = 1.0
    needs_equal_passes = False

    def __init__(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.module, self.optimizer = module, optimizer

    def call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """The result of the module's method `name`, differentiable."""
        return getattr(self.module, name)(*args, **kwargs)

    @contextlib.contextmanager
    def one_pass(self, is_last: bool) -> Iterator[None]:
        """A forward and backward pass; gradients of all ranks are there after the last one."""
        yield

    def clip(self, max_norm: float) -> torch.Tensor:
        """Clip the gradient of all ranks to a norm; returns () the norm before."""
        return torch.nn.utils.clip_grad_norm_(self.module.parameters(), max_norm)

    def begin(self) -> None:
        """Take over what was done to the weights since the last update."""

    def end(self) -> None:
        """Let everyone see the weights after an update."""

    def whole(self, state: Any) -> Any:
        """A state of the optimiser with whole tensors; on every rank."""
        return state

    def part(self, state: dict[str, Any], weight: torch.Tensor) -> dict[str, Any]:
        """Of what the optimiser knows of a weight, whole, what this rank keeps."""
        return state


class InDDP(Trained):
    """A module that every rank has whole; gradients are averaged in the last backward pass.

    Args:
        module: the same on every rank; the first rank's weights are taken by all.
        optimizer: over its weights.
        ranks: that train it.
    """

    def __init__(self, module: nn.Module, optimizer: torch.optim.Optimizer, ranks: Ranks) -> None:
        super().__init__(module, optimizer)
        from accelerate import Accelerator, DistributedDataParallelKwargs

        self.ranks, self.factor = ranks, float(ranks.count)
        # Which weights get a gradient differs: with the critic, without, with the actor at rest.
        how = DistributedDataParallelKwargs(find_unused_parameters=True, broadcast_buffers=False)
        accelerator = Accelerator(
            cpu=str(ranks.device).startswith("cpu"),
            mixed_precision="no",
            kwargs_handlers=[how],
        )
        calls = _Calls(module)
        # DDP warns where it looks for weights without a gradient and there are none.
        calls.idle = nn.Parameter(torch.zeros(1, device=next(module.parameters()).device))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated")
            self._ddp = accelerator.prepare_model(calls, device_placement=False)

    def call(self, name: str | Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The result of the module's method `name`, or of a function of it, differentiable."""
        return self._ddp(name, *args, **kwargs)

    @contextlib.contextmanager
    def one_pass(self, is_last: bool) -> Iterator[None]:
        """A forward and backward pass; only the last one communicates."""
        with contextlib.nullcontext() if is_last else self._ddp.no_sync():
            yield


class Sharded(Trained):
    """A module whose training is sharded over the ranks: a copy of it, by FSDP2.

    Weights, gradients and the optimiser's state of the copy are sharded; a layer's weights are
    gathered for its forward and its backward pass, one layer after another. The module itself
    stays whole on every rank and gets the weights after every update.

    Args:
        whole: the module that everyone else sees.
        make_optimizer: gives the optimiser over the copy's weights.
        ranks: that train it.

    Attributes:
        module: the copy. Its parameters are `torch.distributed.tensor.DTensor`s.
    """

    needs_equal_passes = True

    def __init__(self, whole: nn.Module, make_optimizer: MakeOptimizer, ranks: Ranks) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        kind = str(ranks.device).partition(":")[0]
        mesh = init_device_mesh(kind, (ranks.count,))
        self.whole_module, copied = whole, copy.deepcopy(whole)
        self._calls = _Calls(copied)
        for layer in _layers(copied):
            fully_shard(layer, mesh=mesh)
        fully_shard(self._calls, mesh=mesh)
        trained = [weight for weight in copied.parameters() if weight.requires_grad]
        super().__init__(copied, make_optimizer(trained))
        self.ranks, self.factor = ranks, float(ranks.count)

    def call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """The result of the module's method `name`, differentiable."""
        return self._calls(name, *args, **kwargs)

    def clip(self, max_norm: float) -> torch.Tensor:
        """Clip the gradient of all ranks to a norm; returns () the norm before."""
        norm: Any = torch.nn.utils.clip_grad_norm_(self.module.parameters(), max_norm)
        return norm.full_tensor()

    @torch.no_grad()
    def begin(self) -> None:
        """Take the whole module's weights and buffers; no rank talks to another."""
        for kept, whole in self._pairs():
            if hasattr(kept, "placements"):
                kept.to_local().copy_(_shard(whole, kept).to_local())
            else:
                kept.copy_(whole)

    @torch.no_grad()
    def end(self) -> None:
        """Give the whole module the weights of all ranks, and the buffers."""
        for kept, whole in self._pairs():
            whole.copy_(kept.full_tensor() if hasattr(kept, "placements") else kept)

    def _pairs(self) -> Iterator[tuple[Any, torch.Tensor]]:
        """A tensor of the copy and the same of the whole module, one after another."""
        ours = [*self.module.named_parameters(), *self.module.named_buffers()]
        theirs = [*self.whole_module.named_parameters(), *self.whole_module.named_buffers()]
        for (name, kept), (same, whole) in zip(ours, theirs, strict=True):
            assert name == same
            yield kept, whole

    def whole(self, state: Any) -> Any:
        """A state of the optimiser with whole tensors; on every rank, which all must ask."""
        if isinstance(state, dict):
            return {name: self.whole(value) for name, value in state.items()}
        return state.full_tensor() if hasattr(state, "placements") else state

    def part(self, state: dict[str, Any], weight: torch.Tensor) -> dict[str, Any]:
        """Of what the optimiser knows of a weight, whole, what this rank keeps."""
        return {
            name: _shard(value, weight)
            if isinstance(value, torch.Tensor) and value.shape == weight.shape
            else value
            for name, value in state.items()
        }


def _shard(whole: torch.Tensor, like: Any) -> Any:
    """A whole tensor as a DTensor that is sharded as another."""
    from torch.distributed.tensor import distribute_tensor

    placed = whole.detach().to(like.device)
    return distribute_tensor(placed, like.device_mesh, like.placements, src_data_rank=None)


def _layers(module: nn.Module) -> list[nn.Module]:
    """The layers that are gathered one at a time: those that transformers keeps together."""
    names = {
        name
        for part in module.modules()
        for name in (getattr(part, "_no_split_modules", None) or ())
    }
    return [part for part in module.modules() if type(part).__name__ in names]
