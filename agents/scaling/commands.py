"""What the commands that train have in common as one of several processes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

from agents.scaling.agreement import digest_of_arrays, digest_of_texts, refuse_different
from agents.scaling.launched import launched_ranks
from agents.scaling.ranks import Ranks

__all__ = ["ranks_of_command", "refuse_different_models"]


@contextlib.contextmanager
def ranks_of_command(device: str) -> Iterator[Ranks]:
    """The ranks of a command, which know how each of them ends.

    Args:
        device: of the settings.
    """
    ranks = launched_ranks(device)
    try:
        yield ranks
    except BaseException as error:
        ranks.fail(error)
        ranks.leave(is_done=False)
        raise
    ranks.leave()


def refuse_different_models(
    ranks: Ranks, settings: dict[str, Any], examples: Iterable[Any], model: Any
) -> None:
    """Raise AgreedError where ranks would train different models on different examples.

    Args:
        ranks: that are about to train together.
        settings: of the command, as JSON; where to write is not compared.
        examples: by their `repr`.
        model: that is trained.
    """
    if ranks.count > 1:
        seen = {
            **{name: value for name, value in settings.items() if name != "out"},
            "the examples": digest_of_texts(examples),
            "the weights": digest_of_arrays(model.state_dict().items()),
        }
        refuse_different(ranks, seen, "the ranks can't train together")
