"""Conversations, columns and several rewards through the commands, from pairs to samples."""

from __future__ import annotations

import json
import sys

import pytest
from support.chat import save_chat_model

from agents.cli import main
from agents.config import TrainConfig
from agents.runs.curves import read_metrics
from agents.runs.folder import RunFolder

QUESTION = [{"role": "user", "content": "w4 w5"}]
RULES = """\
def right(responses, answer):
    return [float(a in r.split()) for a, r in zip(answer, responses)]

def short(completions, answer, **kwargs):
    assert kwargs["prompts"][0][0]["role"] == "user"
    return [-len(c[0]["content"]) if a == "w7" else None for c, a in zip(completions, answer)]
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run on conversations with answers, against two rules and a reward model of pairs."""
    folder = tmp_path_factory.mktemp("conversations")
    (folder / "chat_rules.py").write_text(RULES)
    sys.path.insert(0, str(folder))
    base = save_chat_model(folder / "base")
    pairs = [
        {"prompt": [{"role": "user", "content": f"w{4 + i}"}], "chosen": "w7", "rejected": " w9"}
        for i in range(8)
    ]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    reward = ["reward-model", "--pairs", str(folder / "pairs.jsonl"), "--base", base]
    assert main([*reward, "--out", str(folder / "rm"), "--device", "cpu", "--epochs", "1"]) == 0
    rows = [
        {"prompt": QUESTION, "answer": "w7"},
        {"prompt": QUESTION, "answer": "w8"},
        {"prompt": [{"role": "user", "content": "w4 " * 30}], "answer": "w8"},
    ]
    (folder / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    command = ["train", "--reference", base, "--prompts", str(folder / "prompts.jsonl")]
    command += ["--reward-model", "chat_rules:right", "chat_rules:short", str(folder / "rm")]
    command += ["--reward-weights", "1", "0.1", "0.5", "--prompt-truncation", "drop"]
    command += ["--max-prompt-tokens", "12", "--max-new-tokens", "5", "--kl-coef", "0.1"]
    command += ["--total-tokens", "256", "--n-envs", "8", "--n-steps", "16", "--device", "cpu"]
    command += ["--eval-prompts", "2", "--eval-responses", "4", "--eval-every", "1"]
    assert main([*command, "--out", str(folder / "run")]) == 0
    yield folder
    sys.path.remove(str(folder))
    sys.modules.pop("chat_rules", None)


def test_the_run_logs_every_reward_and_keeps_its_settings(made):
    rows = read_metrics(made / "run" / "metrics.jsonl")
    assert {"rlhf/reward/right", "rlhf/reward/short", "rlhf/reward/rm"} <= set(rows[0])
    assert 0.0 <= rows[0]["rlhf/reward/right"] <= 1.0 and rows[0]["rlhf/reward/short"] <= 0.0
    assert (made / "run" / "reward_model" / "rm" / "config.json").is_file()
    content = json.loads((made / "run" / "config.json").read_text())
    assert content["reward_model"][:2] == ["chat_rules:right", "chat_rules:short"]
    config = RunFolder.open(made / "run").read_config(trust_code=True)
    assert config.reward_weights == (1.0, 0.1, 0.5) and config.prompt_truncation == "drop"
    code = config.names_of_code()
    assert code == {"reward_model 1": "chat_rules:right", "reward_model 2": "chat_rules:short"}
    with pytest.raises(ValueError, match=r"reward_model 1='chat_rules:right', which names code"):
        RunFolder.open(made / "run").read_config()
    assert (made / "run" / "summary.json").stat().st_size and any((made / "run/tokens").iterdir())


@pytest.mark.parametrize("command", ["sample", "explain"])
def test_prompts_of_messages_and_rows_on_the_command_line(made, command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "1000")
    run = [command, str(made / "run"), "--trust-code"]
    row = json.dumps({"prompt": QUESTION, "answer": "w7"})
    assert main([*run, "--prompt", row, "--prompt-json"]) == 0
    assert main([*run, "--prompt", json.dumps(QUESTION), "--prompt-json"]) == 2
    assert "2 times among the prompts, with different columns" in capsys.readouterr().err
    assert main([*run, "--prompt", "w4"]) == 2
    assert "asks for the column 'answer'" in capsys.readouterr().err
    assert main([*run, "--prompt", "[{", "--prompt-json"]) == 2
    assert "--prompt" in capsys.readouterr().err


def test_evaluate_and_play_use_the_columns(made, capsys, monkeypatch):
    run = str(made / "run")
    evaluate = ["evaluate", run, "--trust-code", "--eval-responses", "4"]
    assert main(evaluate) == 0
    lines = iter(["w7\n", "e\n", "q\n"])
    monkeypatch.setattr("agents.play.command.typed_lines", lambda: lines)
    row = json.dumps({"prompt": QUESTION, "answer": "w7"})
    play = ["play", "--run", run, "--trust-code", "--prompt", row, "--prompt-json"]
    capsys.readouterr()
    assert main(play) == 0
    assert "w7" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stopped:
        main(["play", "--run", run, "--prompt-json"])
    assert stopped.value.code == 2 and "--prompt-json" in capsys.readouterr().err


def test_a_reward_model_of_pairs_of_conversations_reports_its_seams(made):
    data = json.loads((made / "rm" / "report.json").read_text())["data"]
    # Words are split at spaces, so that an answer merges with nothing.
    assert (data["seam_differences"], data["seams"]) == (0, 16)


def test_a_configuration_from_before_these_settings_loads():
    old = TrainConfig(reward_model="reviews").as_json()
    for name in ("reward_weights", "prompt_truncation"):
        del old[name]
    assert TrainConfig.from_json(old) == TrainConfig(reward_model="reviews")
    several = TrainConfig(reward_model=("a", "b"), reward_weights=(1.0, 2.0))
    assert TrainConfig.from_json(json.loads(json.dumps(several.as_json()))) == several


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"reward_model": ("a", "b"), "reward_weights": (1.0,)}, "one for each of the 2 rewards"),
        ({"reward_weights": (1.0,)}, "one for each of the 0 rewards"),
        ({"reward_model": ("a", " ")}, "reward_model=' ' is empty"),
        ({"reward_model": ()}, "empty list"),
        (
            {"reward_model": ("a", "b"), "critic": "reward_model", "value_head": "separate"},
            "names 2 rewards: give the folder",
        ),
    ],
)
def test_rewards_that_do_not_fit_their_weights_are_refused(given, words):
    with pytest.raises(ValueError, match=words):
        TrainConfig(**given)


@pytest.mark.parametrize(
    "content", [{"reward_model": [1]}, {"reward_weights": ["1"]}, {"reward_weights": 1.0}]
)
def test_a_configuration_with_other_types_is_refused(content):
    with pytest.raises(ValueError, match=rf"{next(iter(content))}=.* must be .*a list"):
        TrainConfig.from_json({**TrainConfig().as_json(), **content})
