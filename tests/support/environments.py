"""Virtual environments that share installed libraries: nothing large is installed twice."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
from collections.abc import Iterable
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def closure(requirements: Iterable[str]) -> list[importlib.metadata.Distribution]:
    """The installed distributions that requirements ask for, and those that these ask for in turn.

    Raises:
        importlib.metadata.PackageNotFoundError: one of them is not installed.
    """
    found: dict[str, importlib.metadata.Distribution] = {}
    waiting = [(Requirement(line), "") for line in requirements]
    seen: set[tuple[str, str]] = set()
    while waiting:
        requirement, extra = waiting.pop()
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(requirement.name)
        found.setdefault(name, importlib.metadata.distribution(name))
        for its_extra in ("", *requirement.extras):
            if (name, its_extra) not in seen:
                seen.add((name, its_extra))
                lines = found[name].requires or []
                waiting += [(Requirement(line), its_extra) for line in lines]
    return list(found.values())


def new_environment(
    folder: Path, python: Path | str, distributions: Iterable[importlib.metadata.Distribution] = ()
) -> Path:
    """Make an environment without pip that links to installed distributions; its interpreter.

    Args:
        folder: where.
        python: the interpreter; where distributions are linked, of the version of this process.
        distributions: those that are there. pip must not replace them: it would remove the files
            that the links lead to.
    """
    subprocess.run([python, "-m", "venv", "--without-pip", folder], check=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    for distribution in distributions:
        for top in {file.parts[0] for file in distribution.files or () if file.parts[0] != ".."}:
            link = packages / top
            if top != "__pycache__" and not link.exists():
                link.symlink_to(Path(str(distribution.locate_file(top))))
    return folder / "bin" / "python"


def variables(**more: str) -> dict[str, str]:
    """The environment variables of this process without those that lead to other packages."""
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    return {**kept, "HF_HUB_OFFLINE": "1", "NO_COLOR": "1", **more}
