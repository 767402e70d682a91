"""The token tables that a run leaves behind, and `tokenrlhf explain`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from agents.cli import main
from agents.credit import read_tokens, token_files
from tokenenv.maths import generalized_advantages

TRAIN = [
    *("train", "--task", "reviews", "--total-tokens", "1500", "--n-envs", "16", "--n-steps", "16"),
    *("--batch-size", "128", "--n-epochs", "2", "--eval-prompts", "4", "--eval-responses", "4"),
    *("--eval-every", "0", "--checkpoint-every", "0", "--device", "cpu"),
    *("--explain-every", "2", "--explain-prompts", "3"),
]
PROMPT = "On Sunday we watched this western. I"


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("tokens") / "run"
    assert main([*TRAIN, "--out", str(out)]) == 0
    return out


def test_there_is_a_file_before_the_first_update_every_second_and_after_the_last(run):
    """1,500 tokens in rollouts of 256 are 6 updates."""
    assert list(token_files(run)) == [0, 512, 1024, 1536]
    assert [read_tokens(run, step).header["update"] for step in token_files(run)] == [0, 2, 4, 6]


def test_a_file_holds_fresh_and_fixed_responses_and_a_sample_of_the_rollout(run):
    for step in token_files(run):
        table = read_tokens(run, step)
        kinds = [r["kind"] for r in table.responses]
        assert kinds.count("fresh") == kinds.count("fixed") == 6
        assert kinds.count("rollout") == (6 if step else 0)
        of = {"fresh": "these responses" if step == 0 else "the last rollout"}
        assert table.header["whitening"]["of"] == of["fresh"]


def test_the_fixed_responses_stay_the_same_and_the_policy_moves(run):
    first, last = read_tokens(run, 0), read_tokens(run)
    log_probs = []
    for table in (first, last):
        is_fixed = [r["kind"] == "fixed" for r in table.responses]
        fixed = [i for i, is_it in enumerate(is_fixed) if is_it]
        log_probs.append(np.concatenate([table.columns_of(i)["log_prob"] for i in fixed]))
        assert [table.responses[i]["response"] for i in fixed] == [
            r["response"] for r in first.responses if r["kind"] == "fixed"
        ]
    assert log_probs[0].shape == log_probs[1].shape
    assert np.abs(log_probs[0] - log_probs[1]).max() > 1e-3


def test_ratio_and_clip_are_known_of_the_rollout_alone(run):
    table = read_tokens(run)
    for i, response in enumerate(table.responses):
        columns = table.columns_of(i)
        used = response["kind"] == "rollout"
        assert np.isfinite(columns["ratio"]).all() == used
        assert all((side is not None) == used for side in columns["clip"])


def test_advantages_follow_from_the_files_own_rewards_and_values(run):
    """What the sliders of a page recompute: to the nine digits of a file."""
    table = read_tokens(run)
    header = table.header
    for i, response in enumerate(table.responses):
        columns = table.columns_of(i)
        advantages = generalized_advantages(
            columns["reward"][None],
            columns["value"][None],
            np.array([len(columns["reward"])]),
            np.array([response["bootstrap_value"]]),
            header["gamma"],
            header["gae_lambda"],
        )[0]
        np.testing.assert_allclose(columns["advantage"], advantages, atol=2e-6)


@pytest.mark.slow
def test_explain_every_0_writes_none(tmp_path, capsys):
    arguments = [*TRAIN, "--explain-every", "0", "--out", str(tmp_path / "run")]
    assert main(arguments) == 0
    assert not (tmp_path / "run" / "tokens").exists()
    assert main(["explain", str(tmp_path / "run"), "--prompt", PROMPT]) == 0
    assert "of these responses" in capsys.readouterr().out


def test_explain_shows_every_token_with_its_numbers(run, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "150")
    response = " loved the music."
    arguments = ["explain", str(run), "--prompt", PROMPT, "--response", response]
    assert main([*arguments, "--exact"]) == 0
    shown = capsys.readouterr().out
    for text in ("' loved'", "' the'", "' music'", "'.'", "'<eos>'", "exact", "whitened", "█"):
        assert text in shown
    assert "of the last rollout" in shown
    assert main([*arguments, "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    columns = content["response"]["columns"]
    assert columns["text"] == [" loved", " the", " music", ".", "<eos>"]
    assert content["header"]["whitening"] == read_tokens(run).header["whitening"]
    paid = sum(columns["reward_kl"]) + content["response"]["score"]
    assert sum(columns["reward"]) == pytest.approx(paid, abs=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--response", " loved the music." * 10], "more than max_new_tokens"),
        (["--response", ""], "gives? a value|empty"),
    ],
)
def test_a_response_that_cannot_be_is_refused(run, capsys, arguments, message):
    import re

    assert main(["explain", str(run), "--prompt", PROMPT, *arguments]) == 2
    assert re.search(message, " ".join(capsys.readouterr().err.split()))


def test_no_run_is_refused(tmp_path, capsys):
    assert main(["explain", str(tmp_path), "--prompt", "x"]) == 2
    assert "holds no run" in " ".join(capsys.readouterr().err.split())


def test_tables_change_nothing_of_the_training(tmp_path, monkeypatch):
    """Not even where the reward draws from the generators that training draws from."""
    (tmp_path / "noisy.py").write_text(
        "import numpy as np, random, torch\n"
        "def reward(prompts, responses):\n"
        "    noise = np.random.rand() + random.random() + float(torch.rand(()))\n"
        "    return [0.1 * len(r) + noise for r in responses]\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    weights = []
    for every in ("0", "1"):
        out = tmp_path / every
        arguments = [*TRAIN, "--reward-model", "noisy:reward", "--explain-every", every]
        assert main([*arguments, "--total-tokens", "512", "--out", str(out)]) == 0
        weights.append((out / "policy" / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]
    assert list(token_files(tmp_path / "1")) == [0, 256, 512]


@pytest.mark.slow
def test_a_fault_in_a_table_ends_the_tables_and_not_the_training(tmp_path, monkeypatch, caplog):
    """The reward fails for the responses of the second table alone: it has three more of them."""
    (tmp_path / "moody.py").write_text(
        "calls = []\n"
        "def reward(prompts, responses):\n"
        "    calls.append(len(responses))\n"
        "    if len(responses) == 6 and calls.count(6) == 3:\n"
        "        raise RuntimeError('not these')\n"
        "    return [float(len(r)) for r in responses]\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    out = tmp_path / "run"
    arguments = [*TRAIN, "--reward-model", "moody:reward", "--explain-every", "1"]
    assert main([*arguments, "--total-tokens", "1024", "--out", str(out)]) == 0
    assert list(token_files(out)) == [0]
    assert "no more token tables in this run" in caplog.text and "not these" in caplog.text
    assert json.loads((out / "summary.json").read_text())["finished"]
