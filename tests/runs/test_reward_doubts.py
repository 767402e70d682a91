"""What is said of a reward model before a training, by its own report."""

from __future__ import annotations

import json

import pytest

from agents.config import TrainConfig
from agents.reward_quality.hacking.rules import RULES
from agents.runs.reward_doubts import doubts_about, rules_about


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


def test_one_that_is_worse_than_a_coin_is_said_to_be(tmp_path):
    details = {"accuracy_interval": [0.2, 0.4]}
    report = json.dumps({"accuracy": 0.3, "pairs": 90, "details": details})
    (said,) = doubts_about(folder_with(tmp_path / "rm", report))
    assert "(20% to 40%): a coin does better" in said


@pytest.mark.parametrize("text", ["", "[1]", "{}", '{"accuracy": 0.5, "pairs": 3, "details": []}'])
def test_a_report_of_another_kind_says_nothing(tmp_path, text):
    assert doubts_about(folder_with(tmp_path / "rm", text)) == []
    assert doubts_about(str(tmp_path / "gone")) == []


def test_without_pairs_there_is_no_interval(tmp_path):
    text = '{"accuracy": null, "pairs": 0, "details": {"accuracy_interval": [null, null]}}'
    assert doubts_about(folder_with(tmp_path / "rm", text)) == []
    text = '{"accuracy": 0.5, "pairs": 9, "details": {"accuracy_interval": ["nan", "nan"]}}'
    assert doubts_about(folder_with(tmp_path / "rm", text)) == []


def test_a_training_against_coins_alone_is_an_alarm_before_it(tmp_path):
    weak, good = reporting(tmp_path / "weak", 0.4), reporting(tmp_path / "good", 0.51)
    also_weak, unknown = reporting(tmp_path / "other", 0.3), str(tmp_path)

    def further(*rewards: str, **settings):
        given = rewards[0] if len(rewards) == 1 else rewards
        return rules_about(TrainConfig(reward_model=given, **settings))[len(RULES) :]

    (rule,) = further(weak)
    assert rule.name == "no accuracy" and repr(weak) in rule.check(None, None)
    (rule,) = further(weak, also_weak)
    assert repr(weak) in rule.check(None, None) and repr(also_weak) in rule.check(None, None)
    assert further(weak, "os:sep"), "a function beside it, as a penalty of length"
    for rewards in ((good,), (unknown,), (weak, good), (weak, unknown), ("os:sep",)):
        assert not further(*rewards), rewards
    assert rules_about(TrainConfig()) == RULES
    assert not further(weak, refresh_every=2), "it learns on, and is not that of its report"
    assert further(weak, refresh_every=2, refresh_epochs=0), "it is measured, and learns nothing"
