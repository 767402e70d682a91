"""`tokenrlhf zoo`: what is in the zoo, and a file of it."""

from __future__ import annotations

from pathlib import Path

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from agents.console import literal
from agents.zoo.config import ZooConfig
from agents.zoo.settings_files import near, read_mapping
from agents.zoo.train_settings import FOLDER, PREFIX

__all__ = ["show"]


def show(config: ZooConfig, console: Console) -> None:
    """Print the list of files, or one of them.

    Raises:
        ValueError: there is no file of that name.
    """
    files = {path.stem: path for path in sorted(FOLDER.glob("*.yaml"))}
    if config.name is None:
        _print_list(list(files.values()), console)
        return
    name = config.name.removeprefix(PREFIX)
    if name not in files:
        raise ValueError(
            f"name={config.name!r}: the zoo has no file {name!r}{near(name, set(files))} "
            f"There are {', '.join(files)}."
        )
    text = files[name].read_text(encoding="utf-8")
    console.print(Text(text), end="", soft_wrap=True)


def _print_list(paths: list[Path], console: Console) -> None:
    table = Table(title="the zoo", title_justify="left", box=SIMPLE)
    for header in ("name", "for", "agents"):
        table.add_column(header, overflow="fold")
    for path in paths:
        content = read_mapping(path)
        if "env" in content:
            row = (path.stem, "tokenrlhf compare", ", ".join(content["agents"]))
        else:
            row = (path.stem, f"tokenrlhf train --config {PREFIX}{path.stem}", "token-ppo")
        table.add_row(*map(literal, row))
    console.print(table)
    console.print(f"`tokenrlhf zoo NAME` shows a file; they are in {FOLDER}", highlight=False)
