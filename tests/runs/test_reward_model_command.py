"""`tokenrlhf reward-model`: ensembles, adapters, what is printed and left behind, bad numbers."""

from __future__ import annotations

import json

import numpy as np
import pytest
from support.pairs import separable_pairs

from agents.cli import main
from agents.runs import reward_model as command
from tokenenv.rewards import load_reward_model


@pytest.fixture
def train(tmp_path, monkeypatch, capsys, reference_folder, rng):
    """Runs the command on separable pairs; gives status, output and folder."""
    monkeypatch.setenv("COLUMNS", "1000")
    file, out = tmp_path / "pairs.jsonl", tmp_path / "rm"
    rows = [
        {"prompt": p.prompt, "chosen": p.chosen, "rejected": p.rejected}
        for p in separable_pairs(rng, 60)
    ]
    file.write_text("\n".join(map(json.dumps, rows)))

    def run(*arguments):
        line = ["reward-model", "--pairs", str(file), "--base", reference_folder]
        line += ["--out", str(out), "--device", "cpu", "--epochs", "1", *arguments]
        capsys.readouterr()
        status = main(line)
        captured = capsys.readouterr()
        return status, captured.out + captured.err, out

    return run


@pytest.mark.slow
def test_members_are_folders_that_one_model_replaces(train):
    status, said, out = train("--members", "2")
    assert status == 0
    names = {path.name for path in out.iterdir()}
    assert names == {"member-1", "member-2", "report.json", "report.png"}
    assert "by prompt: " in said and " choose the weights, " in said
    assert f"their mean with: tokenrlhf train --reward-model {out} (or, with" in said
    assert "member 2: accuracy" in said and "shorter wins" in said
    report = json.loads((out / "report.json").read_text())
    assert len(report["training"]) == len(report["details"]["members"]) == 2
    members = [load_reward_model(str(out / f"member-{k}")).model for k in (1, 2)]
    assert not np.array_equal(*(m.score.weight.detach().numpy() for m in members))
    (out / "mine.txt").write_text("stays")
    (out / "audit.json").write_text("{}")  # of the old one
    assert train("--overwrite")[0] == 0
    names = {path.name for path in out.iterdir()}
    assert {"config.json", "model.safetensors", "mine.txt"} <= names
    assert not names & {"member-1", "audit.json"}


def test_the_end_says_which_weights_were_kept_and_the_report_has_all_parts(train, reference_folder):
    options = ("--reference", reference_folder, "--reference-samples", "4", "--no-early-stopping")
    status, said, out = train(*options, "--lora-rank", "2")
    assert status == 0 and "are kept, the last ones: early stopping is off" in said
    assert "step " in said and "held-out loss" in said
    assert (out / "adapter" / "adapter_model.safetensors").is_file()
    report = json.loads((out / "report.json").read_text())
    assert report["finished"] and report["training"]["kept_step"] == report["training"]["steps"]
    details = report["details"]
    assert set(details["scores"]) == {"chosen", "rejected", "reference"}
    assert {"by_margin", "by_length_difference", "calibration", "shorter_wins"} <= set(details)
    assert report["settings"]["lora_rank"] == 2
    assert "fewer than 30" in said
    assert (out / "report.png").read_bytes()[:4] == b"\x89PNG"


def test_a_training_that_diverges_is_written_and_named(train, monkeypatch):
    original = command.train_reward_model

    def diverging(pairs, member, *rest):
        member.model.score.weight.data.fill_(float("inf"))
        return original(pairs, member, *rest)

    monkeypatch.setattr(command, "train_reward_model", diverging)
    status, said, out = train()
    assert status == 2 and "error: the loss of step 1 is nan" in said
    assert f"is in {out}." in said
    report = json.loads((out / "report.json").read_text())
    assert not report["finished"] and "step 1" in report["ended_by"]
    assert report["training"]["stopped"] == "not finite"


@pytest.mark.parametrize(
    ("options", "telling"),
    [
        (("--members", "0"), "members=0"),
        (("--lora-alpha", "2"), "lora_alpha is for adapters"),
        (("--eval-fraction", "0"), "eval_fraction=0 holds out no pairs"),
        (("--reference", "reviews"), "have different tokenizers"),
    ],
)
def test_what_can_not_be_is_refused_before_training(train, tmp_path, options, telling):
    try:
        status, said, out = train(*options)
    except SystemExit as stopped:  # of the parser, for what the settings themselves refuse
        assert stopped.code == 2 and not (tmp_path / "rm" / "report.json").exists()
        return
    assert status == 2 and telling in said and not (out / "report.json").exists()
