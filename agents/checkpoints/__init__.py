"""Checkpoints: everything that a training goes on from, in a folder that nothing unpickles.

A part of a training offers `state_dict()`, of JSON values, NumPy arrays and tensors alone, and
`load_state_dict(state)`. A checkpoint is a mapping of names to such states.

* `states`: a state as JSON and tensors, and back.
* `files`: the folder: written as a whole, versioned, checked when it is read.
* `places`: the checkpoints of a run: their names, the newest whole one, bounding their number.
* `generators`: the global random generators of Python, NumPy and torch.
* `weights`: weights of a policy, and the state of its optimiser by the names of the weights.
"""

from agents.checkpoints.files import (
    FORMAT_VERSION,
    BrokenCheckpoint,
    Checkpoint,
    OtherVersion,
    read_checkpoint,
    write_checkpoint,
)
from agents.checkpoints.generators import generators_state, load_generators
from agents.checkpoints.places import (
    checkpoint_name,
    newest_checkpoint,
    remove_after,
    remove_oldest,
)
from agents.checkpoints.weights import (
    load_optimizer,
    load_weights,
    optimizer_state,
    weights_state,
)

__all__ = [
    "FORMAT_VERSION",
    "BrokenCheckpoint",
    "Checkpoint",
    "OtherVersion",
    "checkpoint_name",
    "generators_state",
    "load_generators",
    "load_optimizer",
    "load_weights",
    "newest_checkpoint",
    "optimizer_state",
    "read_checkpoint",
    "remove_after",
    "remove_oldest",
    "weights_state",
    "write_checkpoint",
]
