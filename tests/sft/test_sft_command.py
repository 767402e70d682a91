"""`tokenrlhf sft`: from a file to a folder that every other command takes."""

from __future__ import annotations

import csv
import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.models import save_language_model
from support.tiny_task import make_agent
from transformers import AutoModelForCausalLM, AutoTokenizer

from agents.cli import main
from agents.runs.sft import fine_tune_from_file
from agents.sft.config import SFTConfig
from tokenenv.models import load_frozen, response_log_probs
from tokenenv.stop_signals import signal_is_pending

pytestmark = pytest.mark.usefixtures("usual_signals")

ROWS = [{"prompt": f"w{4 + i} w{5 + i}", "response": f" w{6 + i}"} for i in range(30)]


@pytest.fixture
def model(tmp_path: Path) -> str:
    return save_language_model(tmp_path / "model")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(map(json.dumps, ROWS)))
    return path


def sft(model: str, data: Path, out: Path, *more: str) -> int:
    arguments = ["sft", "--model", model, "--data", str(data), "--out", str(out)]
    small = ["--device", "cpu", "--epochs", "2", "--batch-tokens", "64", "--learning-rate", "1e-2"]
    try:
        return main([*arguments, *small, *more])
    except SystemExit as stopped:  # refused by the argument parser
        return int(str(stopped.code))


def report_of(out: Path) -> dict[str, Any]:
    return json.loads((out / "report.json").read_text())


def log_probs(model: Any) -> list[np.ndarray]:
    return response_log_probs(model, [np.array([1, 4, 5])], [np.array([6, 7, 2])], 1.0)


def test_the_folder_is_a_model_with_its_tokenizer_and_a_report(model, data, tmp_path, capsys):
    out = tmp_path / "out"
    assert sft(model, data, out) == 0
    report = report_of(out)
    trained = AutoModelForCausalLM.from_pretrained(out)
    assert AutoTokenizer.from_pretrained(out)("w4")["input_ids"] == [1, 4]
    assert report["eval_loss"] < report["eval_loss_before"] - 1
    assert report["finished"] is True and report["data"]["layout"] == "prompt and response"
    assert report["settings"]["learning_rate"] == 0.01 and report["settings"]["model"] == model
    assert report["training_examples"] + report["held_out_examples"] == 30
    assert report["data"]["encoding"]["examples"] == 30
    before = AutoModelForCausalLM.from_pretrained(model)
    weights = dict(before.named_parameters())
    assert any(not torch.equal(p, weights[n]) for n, p in trained.named_parameters())
    said = " ".join(capsys.readouterr().out.split())
    assert "30 examples of" in said and "held-out loss" in said
    assert f"tokenrlhf train --reference {out}" in said.replace(" /", "/").replace("e/", "e /")
    assert not list(out.glob(".*"))


def test_files_of_other_formats_and_columns_are_read(model, tmp_path):
    table = tmp_path / "data.csv"
    with table.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerows([["question", "reply"], *([r["prompt"], r["response"]] for r in ROWS)])
    columns = ["--columns", "prompt=question", "response=reply"]
    assert sft(model, table, tmp_path / "a", *columns) == 0
    text = tmp_path / "stories.txt"
    text.write_text("<|endoftext|>".join(f"w{4 + i} w{5 + i} w6" for i in range(20)))
    assert sft(model, text, tmp_path / "b", "--documents", "<|endoftext|>") == 0
    assert report_of(tmp_path / "b")["data"]["encoding"]["examples"] == 20
    # Every token but BOS is learned, and EOS.
    counts = report_of(tmp_path / "b")
    assert counts["learned_tokens"] == counts["tokens"] * 4 / 5


def test_bad_rows_are_refused_or_left_out(model, data, tmp_path, capsys):
    data.write_text(data.read_text() + '\n{"prompt": "w4"}\n')
    assert sft(model, data, tmp_path / "out") == 2
    assert (
        "line 31" in " ".join(capsys.readouterr().err.split()) and not (tmp_path / "out").exists()
    )
    assert sft(model, data, tmp_path / "out", "--skip-bad") == 0
    assert report_of(tmp_path / "out")["data"]["bad_rows"] == 1


def test_an_old_model_is_replaced_whole_and_only_on_demand(model, data, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    for name in ("model-00001-of-00002.safetensors", "model.safetensors.index.json", "notes.txt"):
        (out / name).write_text("{}")
    (out / "adapter").mkdir()
    assert sft(model, data, out) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert sft(model, data, out, "--overwrite") == 0
    names = {path.name for path in out.iterdir()}
    assert {"notes.txt", "model.safetensors", "config.json", "report.json"} <= names
    assert not {"adapter", "model.safetensors.index.json"} & names
    AutoModelForCausalLM.from_pretrained(out)


def test_settings_out_of_range_are_refused_by_name(model, data, tmp_path, capsys):
    for arguments, name in (
        (["--eval-fraction", "0.95"], "eval_fraction"),
        (["--max-tokens", "1"], "max_tokens"),
        (["--lora-alpha", "2"], "lora_rank"),
        (["--lora-rank", "2", "--lora-target-modules", "nothing"], "nothing"),
        (["--documents", " "], "--documents"),
        (["--columns", "prompt"], "columns"),
        (["--warmup-fraction", "2"], "warmup_fraction"),
    ):
        assert sft(model, data, tmp_path / "out", *arguments) == 2
        assert name in capsys.readouterr().err
        assert not (tmp_path / "out").exists()


def test_a_diverged_training_leaves_the_last_good_weights_and_says_so(
    model, data, tmp_path, capsys
):
    out = tmp_path / "out"
    explode = ["--optimizer", "sgd", "--learning-rate", "1e38", "--max-grad-norm", "1e30"]
    assert sft(model, data, out, *explode, "--warmup-fraction", "0") == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "training ended" in said and "until step 0" in said
    assert report_of(out)["finished"] is False and report_of(out)["stopped"] == "not finite"
    ours, theirs = (log_probs(AutoModelForCausalLM.from_pretrained(f)) for f in (out, model))
    assert np.array_equal(ours[0], theirs[0])


def test_a_signal_keeps_what_was_learned(model, data, tmp_path, monkeypatch, capsys):
    import agents.sft.training as training

    step = training._Trainer._step

    def interrupted(self: Any, examples: Any) -> float:
        if self.report.steps == 2 and not signal_is_pending():
            signal.raise_signal(signal.SIGTERM)
        return step(self, examples)

    monkeypatch.setattr(training._Trainer, "_step", interrupted)
    out = tmp_path / "out"
    assert sft(model, data, out, "--epochs", "50") == 143
    report = report_of(out)
    assert report["stopped"] == "signal" and report["steps"] == 3 and report["finished"] is False
    assert "what was learned so far" in " ".join(capsys.readouterr().out.split())
    AutoModelForCausalLM.from_pretrained(out)


def test_bfloat16_and_checkpointing_train_the_same_thing(model, data, tmp_path):
    plain, other = tmp_path / "a", tmp_path / "b"
    assert sft(model, data, plain) == 0
    assert sft(model, data, other, "--precision", "bfloat16", "--gradient-checkpointing") == 0
    losses = [report_of(out)["eval_loss"] for out in (plain, other)]
    assert losses[0] != losses[1] and losses[1] == pytest.approx(losses[0], rel=0.05)
    assert AutoModelForCausalLM.from_pretrained(other).dtype == torch.float32


# Adapters -----------------------------------------------------------------------------------------


@pytest.fixture
def adapted(model: str, data: Path, tmp_path: Path) -> Path:
    pytest.importorskip("peft", reason="the extra `lora` is not installed")
    out = tmp_path / "out"
    assert sft(model, data, out, "--lora-rank", "2", "--learning-rate", "5e-2") == 0
    return out


def test_an_adapter_is_written_beside_the_merged_model(adapted, model):
    assert report_of(adapted)["eval_loss"] < report_of(adapted)["eval_loss_before"]
    ours, merged, base = (
        log_probs(load_frozen(str(folder)).model)[0]
        for folder in (adapted / "adapter", adapted, model)
    )
    assert np.allclose(ours, merged, rtol=0, atol=1e-5)
    assert np.abs(ours - base).max() > 1e-2
    config = json.loads((adapted / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == model and config["r"] == 2


def test_the_adapter_of_sft_is_where_ppo_starts_with_a_kl_of_exactly_0(adapted, tiny_task_kwargs):
    kwargs = {**tiny_task_kwargs, "reference": str(adapted / "adapter"), "scoring": "deferred"}
    kwargs["max_prompt_tokens"] = 8
    for policy_kwargs in ({}, {"lora": {"rank": 2}}):
        agent = make_agent(kwargs, policy_kwargs=policy_kwargs)
        frozen = load_frozen(kwargs["reference"]).model
        of_actor, of_reference = (log_probs(m)[0] for m in (agent.policy.actor, frozen))
        assert np.array_equal(of_actor, of_reference)


def test_an_adapter_is_not_written_over_the_model_that_it_adapts(model, data, capsys):
    pytest.importorskip("peft", reason="the extra `lora` is not installed")
    assert sft(model, data, Path(model), "--lora-rank", "2", "--overwrite") == 2
    assert "is the model itself" in " ".join(capsys.readouterr().err.split())


def test_the_settings_of_the_command_are_those_of_the_training():
    config = SFTConfig("m", Path("d"), Path("o"), epochs=5, seed=3, precision="bfloat16")
    assert (config.settings().epochs, config.settings().seed) == (5, 3)
    with pytest.raises(ValueError, match="epochs"):
        SFTConfig("m", Path("d"), Path("o"), epochs=0)
    assert fine_tune_from_file.__doc__
