"""`HackingMonitor` in a training: what it logs, says and does, and that it changes nothing else."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from stable_baselines3.common.callbacks import BaseCallback
from support.tiny_task import Spy, begin, collect, largest_difference, make_agent, weights

from agents import RLHFCallback, TokenPPO
from agents.reward_quality.hacking import monitor as monitor_module
from agents.reward_quality.hacking import rules
from agents.reward_quality.hacking.monitor import HackingMonitor
from agents.reward_quality.hacking.rules import RULES, Alarm, Rule, no_accuracy
from agents.reward_quality.text_features import text_features

ALWAYS = Rule("always", "always", lambda start, now: f"KL {now.kl.mean:.2f}")
NEVER = Rule("never", "never", lambda start, now: None)


@pytest.fixture(autouse=True)
def few_responses(monkeypatch):
    """A rollout of the tiny task has fewer responses than a judgement otherwise needs."""
    monkeypatch.setattr(rules, "FEWEST_RESPONSES", 8)


class Logged(BaseCallback):
    """Keeps what was logged in every rollout, and β after it."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[dict] = []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        kl_coef = self.training_env.get_attr("kl_coef")[0]
        self.rows.append({**self.logger.name_to_value, "kl_coef": kl_coef})


def watched(kwargs, rollouts=4, agent_kwargs=(), **given):
    """Rollouts with a monitor and no updates: it, what was logged, what was said, the agent."""
    rlhf, spoken, logged = RLHFCallback(), [], Logged()
    monitor = HackingMonitor(rlhf, **{"say": spoken.append, **given})
    model = make_agent(kwargs, n_steps=12, **dict(agent_kwargs))
    callback = begin(model, rlhf, monitor, logged)
    for _ in range(rollouts):
        collect(model, callback)
    return monitor, logged.rows, spoken, model


def trained(kwargs, *callbacks):
    """An agent after up to five updates."""
    model = make_agent(kwargs, n_steps=12, n_epochs=1)
    model.learn(5 * 12 * 6, callback=list(callbacks))
    return model


@pytest.mark.parametrize("scoring", ["step", "deferred"])
def test_the_features_that_are_logged_are_those_of_the_texts(tiny_task_kwargs, scoring):
    kwargs = {**tiny_task_kwargs, "scoring": scoring}
    model, rlhf, spy = make_agent(kwargs), RLHFCallback(), Spy()
    callback = begin(model, rlhf, HackingMonitor(rlhf), spy)
    for _ in range(2):
        spy.steps.clear()
        collect(model, callback)
        ended = [
            i for step in spy.steps for i, d in zip(step["infos"], step["dones"], strict=True) if d
        ]
        texts, lengths = zip(*((i["response"], i["response_length"]) for i in ended), strict=True)
        expected = text_features(texts, lengths)
        logged = model.logger.name_to_value
        for name, values in expected.items():
            assert logged[f"rlhf/features/{name}"] == pytest.approx(values.mean(), rel=1e-12)
        assert logged["rlhf/features/tokens"] == pytest.approx(logged["rlhf/response_length"])


def test_a_monitor_changes_no_weight(tiny_task_kwargs):
    """Not one bit: it draws no random number and touches no tensor."""
    rlhf, names = RLHFCallback(), Logged()
    monitor = HackingMonitor(rlhf, rules=[ALWAYS])
    model = trained(tiny_task_kwargs, rlhf, monitor)
    plain = trained(tiny_task_kwargs, RLHFCallback(), names)
    assert monitor.alarms and not any("features" in name for name in names.rows[-1])
    assert largest_difference(weights(model.policy), weights(plain.policy)) == 0.0


def test_an_alarm_is_raised_once_for_each_rule_and_logged_as_long_as_it_holds(tiny_task_kwargs):
    """T = 8 and 12 steps: the first rollout is the start, the other three are judged."""
    kept = []
    monitor, rows, spoken, _ = watched(tiny_task_kwargs, rules=[ALWAYS, NEVER], record=kept.append)
    assert [row.get("rlhf/hacking_alarm") for row in rows] == [None, 1.0, 1.0, 1.0]
    assert [alarm.rule for alarm in monitor.alarms] == ["always"] and kept == monitor.alarms
    assert kept[0].tokens == 2 * 12 * 6 and len(spoken) == 1
    assert "after 144 tokens" in spoken[0] and kept[0].text in spoken[0]
    monitor, rows, spoken, _ = watched(tiny_task_kwargs, rules=[NEVER])
    assert [row.get("rlhf/hacking_alarm") for row in rows] == [None, 0.0, 0.0, 0.0]
    assert not monitor.alarms and not spoken


def test_what_is_known_without_a_look_is_an_alarm_before_the_first_rollout(tiny_task_kwargs):
    kept = []
    given = {"rules": [NEVER, no_accuracy(["a coin"])], "record": kept.append}
    monitor, rows, spoken, _ = watched(tiny_task_kwargs, **given)
    assert monitor.alarms == kept == [Alarm("no accuracy", 0, "a coin")] and not spoken
    assert [row.get("rlhf/hacking_alarm") for row in rows] == [None, 1.0, 1.0, 1.0]
    monitor.load_state_dict(monitor.state_dict())  # as a run that goes on
    monitor.on_rollout_start()
    assert len(kept) == 1


def test_stop_ends_the_training_after_the_update_on_the_second_alarmed_rollout(tiny_task_kwargs):
    rlhf = RLHFCallback()
    monitor = HackingMonitor(rlhf, "stop", rules=[ALWAYS])
    model = trained(tiny_task_kwargs, rlhf, monitor)
    assert model._n_updates == 3 and monitor.stopped_by.rule == monitor.alarms[0].rule
    assert model.num_timesteps == 3 * 12 * 6 + 6  # a step of the fourth rollout, not learned from
    other = trained(tiny_task_kwargs, RLHFCallback(), _StopsAfter(3))  # the same updates
    assert largest_difference(weights(model.policy), weights(other.policy)) == 0.0


class _StopsAfter(BaseCallback):
    def __init__(self, rollouts: int) -> None:
        super().__init__()
        self.left = rollouts

    def _on_rollout_end(self) -> None:
        self.left -= 1

    def _on_step(self) -> bool:
        return self.left > 0


@pytest.mark.parametrize("scoring", ["step", "deferred"])
def test_raise_kl_multiplies_the_environments_beta_a_few_times_at_most(
    tiny_task_kwargs, scoring, monkeypatch
):
    """0.1 · 3 in the second rollout with an alarm, · 3 two rollouts later, and no more."""
    wait = 2
    monkeypatch.setattr(monitor_module, "ROLLOUTS_BETWEEN_RAISES", wait)
    monitor, rows, spoken, _ = watched(
        {**tiny_task_kwargs, "scoring": scoring},
        3 + 2 * wait,
        rules=[ALWAYS],
        on_alarm="raise-kl",
        kl_factor=3.0,
        kl_raises=2,
    )
    expected = [0.1] * 2 + [0.3] * wait + [0.9] * (1 + wait)
    np.testing.assert_allclose([row["kl_coef"] for row in rows], expected)
    paid = [row["rlhf/kl_coef"] for row in rows]  # of the rollout itself, before it moves
    np.testing.assert_allclose(paid, [0.1, *expected[:-1]])
    assert monitor.raised == 2 and "from 0.3 to 0.9 (2 of 2 times)" in spoken[-1]


def test_a_raised_beta_is_that_of_the_saved_model(tiny_task_kwargs, tmp_path):
    given = {"rules": [ALWAYS], "on_alarm": "raise-kl", "kl_factor": 5.0}
    model = watched(tiny_task_kwargs, 3, **given)[-1]
    model.save(tmp_path / "model")
    fresh = make_agent(tiny_task_kwargs, n_steps=12)
    loaded = TokenPPO.load(tmp_path / "model", env=fresh.env)
    assert fresh.env.get_attr("kl_coef")[0] == 0.1
    begin(loaded)
    assert fresh.env.get_attr("kl_coef")[0] == pytest.approx(0.5)


def test_a_controller_goes_on_from_the_raised_beta(tiny_task_kwargs):
    """Adaptive, with no KL at all: each rollout · 0.8, and · 4 once, after the third."""
    settings = {"kl_controller": "adaptive", "kl_target": 1.0, "kl_horizon": 1.0}
    given = {"rules": [ALWAYS], "on_alarm": "raise-kl", "kl_factor": 4.0, "kl_raises": 1}
    rows = watched(tiny_task_kwargs, 4, settings.items(), **given)[1]
    expected = 0.1 * np.array([0.8, 0.8**2, 4 * 0.8**3, 4 * 0.8**4])
    np.testing.assert_allclose([row["kl_coef"] for row in rows], expected)


@pytest.mark.parametrize(
    "wrong, said",
    [
        ({"on_alarm": "ignore"}, "on_alarm='ignore'.*leave the monitor out"),
        ({"kl_factor": 1.0}, "kl_factor=1.0 must be a finite number above 1"),
        ({"kl_factor": float("nan")}, "kl_factor=nan"),
        ({"kl_raises": 0}, "kl_raises=0 must be a whole number"),
        ({"kl_raises": True}, "kl_raises=True"),
    ],
)
def test_wrong_arguments_are_refused(wrong, said):
    with pytest.raises(ValueError, match=said):
        HackingMonitor(RLHFCallback(), **wrong)


def test_a_monitor_before_its_rlhf_callback_or_without_it_is_refused(tiny_task_kwargs):
    rlhf = RLHFCallback()
    for callbacks in ([HackingMonitor(rlhf), rlhf], [RLHFCallback(), HackingMonitor(rlhf)]):
        with pytest.raises(ValueError, match=r"put the RLHFCallback .* before it"):
            make_agent(tiny_task_kwargs).learn(64, callback=callbacks)


def test_raising_a_beta_of_0_is_refused_at_the_start(tiny_task_kwargs):
    rlhf = RLHFCallback()
    model = make_agent({**tiny_task_kwargs, "kl_coef": 0.0})
    with pytest.raises(ValueError, match="kl_coef is 0"):
        model.learn(64, callback=[rlhf, HackingMonitor(rlhf, "raise-kl")])


def test_every_rule_has_a_name_and_a_statement():
    assert len({rule.name for rule in RULES}) == len(RULES)
    assert all(rule.statement for rule in RULES)


def test_a_policy_that_jumps_and_comes_back_is_an_alarm_and_no_reason_to_stop(tiny_task_kwargs):
    """A rule that holds in every second look: never twice in a row."""
    looks = itertools.count()
    every_second = Rule("now and then", "-", lambda start, now: "x" if next(looks) % 2 else None)
    rlhf = RLHFCallback()
    monitor = HackingMonitor(rlhf, "stop", rules=[every_second])
    model = trained(tiny_task_kwargs, rlhf, monitor)
    assert model._n_updates == 5 and monitor.alarms and monitor.stopped_by is None
