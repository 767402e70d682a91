"""What is said of a reward model before a training, by its own report."""

from __future__ import annotations

import json

import pytest

from agents.runs.reward_doubts import doubts_about


def folder_with(place, text: str) -> str:
    place.mkdir(exist_ok=True)
    (place / "report.json").write_text(text)
    return str(place)


def reporting(place, low: float, accuracy: float = 0.55) -> str:
    details = {"accuracy_interval": [low, 0.7]}
    return folder_with(place, json.dumps({"accuracy": accuracy, "pairs": 40, "details": details}))


def test_a_reward_model_that_is_not_told_from_a_coin_is_named(tmp_path):
    weak, good = reporting(tmp_path / "weak", 0.4), reporting(tmp_path / "good", 0.51)
    (said,) = doubts_about((weak, good, "os:sep", "some/hub-id"))
    assert repr(weak) in said and "55% of 40 held-out pairs (40% to 70%)" in said
    assert len(doubts_about(reporting(tmp_path / "edge", 0.5))) == 1
    assert doubts_about(good) == [] and doubts_about(None) == []


@pytest.mark.parametrize("text", ["", "[1]", "{}", '{"accuracy": 0.5, "pairs": 3, "details": []}'])
def test_a_report_of_another_kind_says_nothing(tmp_path, text):
    assert doubts_about(folder_with(tmp_path / "rm", text)) == []
    assert doubts_about(str(tmp_path / "gone")) == []


def test_without_pairs_there_is_no_interval(tmp_path):
    text = '{"accuracy": null, "pairs": 0, "details": {"accuracy_interval": [null, null]}}'
    assert doubts_about(folder_with(tmp_path / "rm", text)) == []
    text = '{"accuracy": 0.5, "pairs": 9, "details": {"accuracy_interval": ["nan", "nan"]}}'
    assert doubts_about(folder_with(tmp_path / "rm", text)) == []
