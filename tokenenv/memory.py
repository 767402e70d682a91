"""Telling that a machine's memory is too small from everything else that can go wrong."""

from __future__ import annotations

__all__ = ["is_out_of_memory"]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there is no memory left, on the host or on a device.

    Python raises MemoryError, torch's GPU allocator `torch.OutOfMemoryError`, and its CPU
    allocator a plain RuntimeError. torch is not imported for this.
    """
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
