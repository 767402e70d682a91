"""A training whose reward server goes away stops with what it has, and goes on when it is back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.reward_servers import Handler, free_port, scripted

from agents.cli import main
from tokenenv.remote import client as client_module

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")

from tokenenv.serving.served import served_reward

SIZES = [
    *("--task", "exact", "--total-tokens", "512", "--n-envs", "8", "--n-steps", "16"),
    *("--batch-size", "64", "--n-epochs", "1", "--eval-prompts", "2", "--eval-responses", "0"),
    *("--eval-every", "0", "--explain-every", "0", "--checkpoint-every", "1", "--device", "cpu"),
]
"""Four updates, with a checkpoint after each."""


class Mortal:
    """The reward of `exact` on a server that answers so many requests, and is out of order then."""

    def __init__(self, requests: int) -> None:
        self.left, self.served = requests, served_reward("exact", "cpu", "float32")

    def __call__(self, handler: Handler, request: dict[str, Any] | None) -> None:
        if request is None:
            handler.say(200, json.dumps(self.served.info(64).as_json()).encode())
            return
        self.left -= 1
        if self.left < 0:
            handler.say(503, b"\x1b[2Jout of order")
            return
        content = {
            "schema": request["schema"],
            "request_id": request["request_id"],
            "fingerprint": self.served.fingerprint,
            "rewards": self.served.scores(request["items"]),
        }
        handler.say(200, json.dumps(content).encode())


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "policy" / "model.safetensors")


@pytest.mark.parametrize(
    "scoring",
    [
        pytest.param("deferred", marks=pytest.mark.slow),
        pytest.param("step", marks=pytest.mark.long),
    ],
)
def test_a_training_stops_with_a_checkpoint_and_goes_on_to_the_same_end(
    scoring, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("COLUMNS", "2000")
    monkeypatch.setattr(client_module, "FIRST_PAUSE", 0.01)
    port = free_port()
    url = f"http://127.0.0.1:{port}#patience=0.2&timeout=20"
    command = ["train", *SIZES, "--scoring", scoring, "--reward-model", url, "--out"]

    whole = Mortal(10**6)
    with scripted(whole, port):
        assert main([*command, str(tmp_path / "whole")]) == 0
    asked = 10**6 - whole.left
    run = tmp_path / "stopped"
    with scripted(Mortal(asked // 2), port):
        assert main([*command, str(run)]) == 2
    said = capsys.readouterr()
    assert "503, saying '\\x1b[2Jout of order'" in said.err and "Traceback" not in said.err
    assert "\x1b" not in said.err + said.out
    assert f"Kept in {run}: policy/, checkpoints/" in said.out
    assert f"tokenrlhf train --resume {run} --trust-code" in said.out
    assert json.loads((run / "config.json").read_text())["reward_model"] == url
    summary = json.loads((run / "summary.json").read_text())
    assert not summary["finished"] and "RewardServerError" in summary["ended_by"]
    assert 0 < summary["tokens"] < 512 and weights(run)

    for arguments in (["train", "--resume"], ["evaluate"], ["sample", "--prompt", "do"]):
        assert main([*arguments, str(run)]) == 2
        assert "names a server" in (said := capsys.readouterr().err) and "--trust-code" in said
    assert main(["train", "--config", str(run / "config.json"), "--out", str(tmp_path / "x")]) == 2
    assert "a server to send texts to" in capsys.readouterr().err

    with scripted(Mortal(10**6), port):
        assert main(["train", "--resume", str(run), "--trust-code"]) == 0
    found, expected = weights(run), weights(tmp_path / "whole")
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    rows = [
        [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (run, tmp_path / "whole")
    ]
    key = "rlhf/score"
    assert [row.get(key) for row in rows[0]] == [row.get(key) for row in rows[1]]
    assert any(row.get(key) is not None for row in rows[0])
