"""The folder of a reward model, or of several: transformers' format, report and figure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from agents.atomic_files import discard, write_json, writing
from agents.runs.output_folder import OutputFolder
from agents.runs.reward_model_figure import draw_reward_report
from agents.sft.files import ADAPTER_FOLDER
from tokenenv.models import save_adapter
from tokenenv.rewards import RewardModel

__all__ = ["STAGE", "write_reward_models"]

STAGE = "model"
"""Folder that a reward model is written to before it is moved to its place."""

_OF_OTHERS = (
    *("model*.safetensors", "pytorch_model*.bin", "*.index.json", "adapter_*", "member-*"),
    *("config.json", "tokenizer*", "special_tokens_map.json", "chat_template*", "audit.json"),
)
"""Files that would be taken for a part of the new model, or be about it, if they stayed from an old
one."""


def write_reward_models(
    output: OutputFolder,
    members: Sequence[RewardModel],
    base: str,
    report: dict[str, Any],
    scores: dict[str, np.ndarray],
) -> None:
    """Put whole reward models in the place of old ones, and touch no other file.

    A single one is the folder itself, several are member-1, member-2, … in it. Models with adapters
    are written merged, with the adapter and the head in adapter/.

    Args:
        output: the folder.
        members: what was trained.
        base: folder or hub id of the model that adapters belong to.
        report: for `report.json`.
        scores: `"chosen"`, `"rejected"` and perhaps `"reference"` → normalised rewards, for the
            figure.
    """
    stage = output.root / f".{STAGE}.tmp"
    try:
        with writing(output.root):
            stage.mkdir()
            for number, member in enumerate(members, 1):
                folder = stage if len(members) == 1 else stage / f"member-{number}"
                member.save_pretrained(folder)
                if member.is_adapted:
                    save_adapter(member.model, folder / ADAPTER_FOLDER, base, has_head=True)
        write_json(stage / "report.json", report)
        draw_reward_report(report, scores, stage / "report.png")
        leftovers = {path.name for pattern in _OF_OTHERS for path in output.root.glob(pattern)}
        output.take_in(stage, {ADAPTER_FOLDER, *leftovers})
    finally:
        discard(stage)
