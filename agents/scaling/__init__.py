"""Many processes: what ranks tell each other, and gradients over all of them.

`accelerate` and `torch.distributed` do the work; one process needs neither, and imports neither.

* `ranks`: a process among others, or alone: sums, values of all ranks, what only one of them does.
* `launched`: the ranks that `torchrun` or `accelerate launch` started this process as.
* `watch`: a rank that dies or falls silent stops the others, with a message.
* `agreement`: refuse to begin where ranks see different files, settings or weights; weights
  compared as a training goes on.
* `commands`: what the commands that train have in common.
* `data_parallel`: trainings on batches of examples, which ranks share.
* `trained`: the modules whose gradients are taken: alone, in DDP, or sharded by FSDP2.
"""

from agents.scaling.agreement import digest_of_arrays, digest_of_texts, refuse_different
from agents.scaling.commands import ranks_of_command, refuse_different_models
from agents.scaling.launched import is_launched, launched_ranks, rank_of_environment
from agents.scaling.ranks import ALONE, AgreedError, RankLost, Ranks, share_of

__all__ = [
    "ALONE",
    "AgreedError",
    "RankLost",
    "Ranks",
    "digest_of_arrays",
    "digest_of_texts",
    "is_launched",
    "launched_ranks",
    "rank_of_environment",
    "ranks_of_command",
    "refuse_different",
    "refuse_different_models",
    "share_of",
]
