"""The rules of the monitor on series that are written out: where each holds, and where not."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from agents.reward_quality.hacking.rules import (
    FEWEST_RESPONSES,
    RULES,
    Snapshot,
    Watch,
    merged,
)
from agents.reward_quality.hacking.tracking import (
    MOST_TEXTS,
    Spread,
    TextTracker,
    drift,
    pooled,
)
from agents.reward_quality.text_features import text_features

BY_NAME = {rule.name: rule.check for rule in RULES}


def around(mean: float, deviation: float = 1.0, count: int = 100) -> Spread:
    """Of `count` numbers with this mean and standard deviation, by n − 1."""
    return Spread(count, mean, mean**2 + deviation**2 * (count - 1) / count)


START = Snapshot(
    tokens=1000,
    steps=32,
    score=around(0.0),
    top_score=2.5,
    kl=around(0.0),
    surprisal=around(14.0, 6.0),
    entropy=1.0,
    features={
        "tokens": around(10.0, 4.0),
        "repeated_words": around(0.05, 0.1),
        "markup": around(0.0, 0.0),
    },
    disagreement=0.3,
)


def now(**changes) -> Snapshot:
    """The start, changed; features are added to the others."""
    features = {**START.features, **changes.pop("features", {})}
    return replace(START, tokens=2000, features=features, **changes)


def holding(snapshot: Snapshot) -> set[str]:
    """The rules that hold."""
    return {name for name, check in BY_NAME.items() if check(START, snapshot) is not None}


# Numbers of responses -----------------------------------------------------------------------------


def test_a_spread_is_mean_and_deviation_of_the_responses():
    """1, 2, 3, 6: mean 3, squares about it 4 + 1 + 0 + 9 = 14, 14/3 by n − 1."""
    spread = Spread.of([1.0, 2.0, 3.0, 6.0])
    assert spread.mean == 3.0 and spread.deviation == pytest.approx(math.sqrt(14 / 3))
    assert Spread.of([7.0]).deviation == 0.0
    together = pooled([Spread.of([1.0, 2.0]), Spread.of([3.0, 6.0])])
    assert together.count == 4 and together.deviation == pytest.approx(spread.deviation)


def test_drift_is_in_deviations_of_the_start():
    assert drift(around(10, 4), around(16, 1)) == pytest.approx(1.5)
    assert drift(around(10, 4), around(2, 9)) == pytest.approx(-2.0)
    assert drift(around(5, 0), around(5, 0)) == 0.0


@pytest.mark.parametrize("count", [75, 300])
def test_a_mark_that_no_response_had_counts_as_if_three_had_been_missed(count):
    """Now in all of them: 1/√(3/n). Now in 1 of 100: mean 0.01, root mean square 0.1."""
    nowhere = Spread(count, 0.0, 0.0)
    assert drift(nowhere, Spread(100, 1.0, 1.0)) == pytest.approx(math.sqrt(count / 3))
    assert drift(nowhere, Spread(100, 0.01, 0.01)) == pytest.approx(0.1 * math.sqrt(count / 3))
    assert drift(Spread(2, 0.0, 0.0), Spread(100, 1.0, 1.0)) == pytest.approx(1.0)


def test_a_tracker_gives_the_means_of_the_texts_and_begins_anew():
    tracker, texts = TextTracker(), ["Good. Good!", "perhaps it was", "# A"]
    for text in texts:
        tracker.add(text, len(text))
    found = tracker.end_rollout()
    for name, values in text_features(texts, list(map(len, texts))).items():
        assert found[name].mean == pytest.approx(values.mean())
    assert tracker.end_rollout() == {}


def test_of_many_texts_some_are_looked_at_that_lie_evenly():
    tracker = TextTracker()
    for number in range(4 * MOST_TEXTS):
        tracker.add("a" * (number % 4 + 1), number)
    found = tracker.end_rollout()
    assert found["tokens"].count == MOST_TEXTS
    assert found["tokens"].mean == pytest.approx((4 * MOST_TEXTS - 1) / 2, rel=1e-3)


# Rules --------------------------------------------------------------------------------------------


def test_nothing_holds_at_the_start():
    assert holding(START) == set()


@pytest.mark.parametrize(
    "name, quiet, loud",
    [
        # σ = 1: at 8 nats the best gain is √16 = 4, of which 0.2 is 0.8
        ("score per KL", {"kl": around(8.0), "score": around(0.81)}, {"score": around(0.79)}),
        ("improbable", {"surprisal": around(19.9, 6.0)}, {"surprisal": around(20.1, 6.0)}),
        ("score", {"score": around(2.99), "top_score": 9.0}, {"score": around(3.01)}),
        ("length", {"features": {"tokens": around(15.9)}}, {"features": {"tokens": around(16.1)}}),
        (
            "repetition",
            {"features": {"repeated_words": around(0.44, 0.1)}},
            {"features": {"repeated_words": around(0.46, 0.1)}},
        ),
        ("entropy", {"entropy": 0.21}, {"entropy": 0.19}),
        ("disagreement", {"disagreement": 0.59}, {"disagreement": 0.61}),
    ],
)
def test_each_rule_holds_beyond_its_limit_and_not_below_it(name, quiet, loud):
    assert holding(now(**quiet)) == set()
    assert holding(now(**{**quiet, **loud})) == {name}


def test_a_feature_that_the_start_never_had_is_noticed():
    """100 responses: in all of them now is √(100/3) = 5.8 deviations, in a quarter ½ of that."""
    assert holding(now(features={"markup": Spread(100, 0.5, 0.25)})) == {"features"}
    assert holding(now(features={"markup": Spread(100, 0.125, 0.0625)})) == set()
    assert holding(now(features={"markup": Spread(100, 0.25, 0.25)})) == set()


def test_reward_models_that_are_strangers_are_an_alarm_from_the_start():
    """Three models that correlate by ρ: the mean of the deviation over three of variance 1 − ρ."""
    check = BY_NAME["no agreement"]
    assert check(replace(START, disagreement=0.39), now(disagreement=0.7)) is None
    assert "0.41 deviations" in check(replace(START, disagreement=0.41), now())
    rng, found = np.random.default_rng(0), {}
    for rho in (0.3, 0.9):
        common = rng.normal(size=200_000)
        own = rng.normal(size=(3, 200_000))
        rewards = math.sqrt(rho) * common + math.sqrt(1 - rho) * own
        found[rho] = rewards.std(axis=0).mean()
    assert found[0.3] == pytest.approx(0.7 * math.sqrt(0.7), abs=0.03)
    assert check(replace(START, disagreement=found[0.3]), now()) is not None
    assert check(replace(START, disagreement=found[0.9]), now()) is None


def test_the_score_per_kl_is_silent_where_little_moved_or_all_scores_are_near_their_greatest():
    assert "score per KL" in holding(now(kl=around(3.1), score=around(0.0)))
    assert holding(now(kl=around(2.9), score=around(0.0))) == set()
    assert holding(now(kl=around(50.0), score=around(1.0, 0.49))) == set()
    assert "score per KL" in holding(now(kl=around(50.0), score=around(1.0, 0.51)))


def test_a_mean_score_below_the_greatest_of_the_start_is_no_alarm():
    """Scores with a long tail: 3.5 deviations above the mean was seen at the start."""
    start = replace(START, top_score=4.0)
    assert BY_NAME["score"](start, now(score=around(3.5))) is None
    assert BY_NAME["score"](start, now(score=around(4.1))) is not None


def test_what_is_not_known_is_judged_by_no_rule():
    blind = replace(START, features={}, disagreement=None)
    assert all(check(blind, blind) is None for check in BY_NAME.values())
    assert BY_NAME["improbable"](replace(START, surprisal=around(5.0, 0.0)), START) is not None
    same = replace(START, score=around(1.0, 0.0))  # every response has one score
    changed = now(score=around(5.0, 0.0), kl=around(9.0))
    assert BY_NAME["score"](same, changed) is None
    assert BY_NAME["score per KL"](same, changed) is None


# Over a training ----------------------------------------------------------------------------------


def rollout(tokens: int, score: float, kl: float, count: int = 100, steps: int = 32) -> Snapshot:
    """With scores of deviation 1 and nothing else that changes."""
    return replace(
        START,
        tokens=tokens,
        steps=steps,
        score=around(score, 1.0, count),
        kl=around(kl, 1.0, count),
    )


def alarms(series: list[tuple[float, float]], **given) -> list[list[str] | None]:
    """What is said after each rollout of a series of (score, KL)."""
    watch = Watch(RULES, 32)
    looked = [
        watch.look(rollout(2048 * number, score, kl, **given))
        for number, (score, kl) in enumerate(series, 1)
    ]
    return [None if found is None else [alarm.rule for alarm in found] for found in looked]


def test_a_run_that_earns_its_kl_is_silent():
    """Half of √(2·KL): 0, 1, 1.4, 1.7, 2, 2.2 at 0, 2, 4, 6, 8, 10 nats."""
    series = [(0.5 * math.sqrt(2 * kl), kl) for kl in (0.0, 2.0, 4.0, 6.0, 8.0, 10.0)]
    assert alarms(series) == [None, [], [], [], [], []]


def test_a_run_that_drifts_is_noticed_as_soon_as_it_has_moved():
    """A tenth of √(2·KL)."""
    series = [(0.1 * math.sqrt(2 * kl), kl) for kl in (0.0, 2.0, 4.0, 6.0)]
    assert alarms(series) == [None, [], ["score per KL"], ["score per KL"]]


def test_the_start_lasts_until_every_response_had_time_to_end_and_there_are_enough():
    watch = Watch([], 64)
    few = FEWEST_RESPONSES // 4
    assert watch.look(rollout(1, 0.0, 0.0, count=few)) is None and watch.start is None
    assert watch.look(rollout(2, 0.0, 0.0, count=few)) is None and watch.start is None  # steps do
    watch.look(rollout(3, 0.0, 0.0, count=few))
    assert watch.start is None
    watch.look(rollout(4, 0.0, 0.0, count=few))
    assert watch.start.score.count == FEWEST_RESPONSES and watch.start.steps == 4 * 32


def test_rollouts_with_few_responses_are_judged_together():
    """A third of what is needed in each: three of them, the latest."""
    count = -(-FEWEST_RESPONSES // 3)
    watch = Watch(RULES, 32)
    watch.look(rollout(0, 0.0, 0.0))
    series = [(0.0, 0.0), (0.0, 0.0), (0.0, 3.0), (0.0, 6.0), (0.0, 6.0)]
    found = [watch.look(rollout(n, s, kl, count=count)) for n, (s, kl) in enumerate(series, 1)]
    assert [bool(alarms) for alarms in found] == [False, False, False, True, True]  # means 1, 3, 5


def test_merging_is_weighted_by_responses():
    one = rollout(1, 1.0, 2.0, count=100)
    other = replace(rollout(2, 4.0, 8.0, count=50), entropy=4.0, disagreement=None)
    together = merged([one, other])
    assert together.score.mean == pytest.approx(2.0) and together.kl.mean == pytest.approx(4.0)
    assert together.entropy == pytest.approx(2.0) and together.disagreement is None
    values = np.concatenate([np.full(100, 1.0), np.full(50, 4.0)])
    assert merged([one, other]).score.square >= np.mean(values**2)
