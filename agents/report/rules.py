"""The rules of the verdict.

A curve is judged by the quarters of its updates: a quarter's mean, and the standard error of that
mean from the scatter in the quarter (which a trend in it makes larger, never smaller). Two means
differ where they are more than two standard errors of their difference apart.
"""

from __future__ import annotations

import math

import numpy as np

from agents.report.curves import Curve
from agents.report.verdict import Answer, Evidence, Rule
from agents.runs.outcome import gain_of

__all__ = ["RULES", "is_above", "quarter_mean"]

FEWEST = 8
"""Updates below which a curve is not judged: two in each quarter."""

EXPLAINS_NOTHING = 0.1
RUNS_AWAY = 1.5
COLLAPSED = 0.1
HALF = 0.5
CLIPPED = 0.3
LENGTHENED = 1.5
STILL = 0.01
NEAR = 0.95


def _percent(share: float, digits: int = 0) -> str:
    return f"{100 * share:.{digits}f} %"


def quarter_mean(curve: Curve, number: int) -> tuple[float, float]:
    """Mean of a quarter of a curve, and the standard error of that mean.

    Args:
        curve: of `FEWEST` points or more.
        number: of the quarter, 0 … 3; −1 for the last.
    """
    values = curve.quarter(number)
    return float(values.mean()), float(values.std(ddof=1) / math.sqrt(len(values)))


def is_above(one: tuple[float, float], other: tuple[float, float]) -> bool:
    """Whether a mean is above another one by more than two standard errors of the difference.

    Args:
        one: mean and standard error.
        other: the same.
    """
    return one[0] - other[0] > 2 * math.hypot(one[1], other[1])


def _judged(evidence: Evidence, *names: str) -> tuple[Curve, ...] | None:
    """The curves of these names, or None where one is too short to be judged."""
    curves = tuple(evidence.curves.get(name, Curve(np.empty(0), np.empty(0))) for name in names)
    return curves if all(len(curve) >= FEWEST for curve in curves) else None


def _best_quarter(curve: Curve) -> tuple[float, float]:
    return max(quarter_mean(curve, number) for number in range(4))


def _gain(evidence: Evidence) -> tuple[str, bool, bool] | None:
    """J against J of the untrained model: in words, whether it is below, whether above."""
    gain = gain_of(evidence.summary)
    if gain is not None:
        return gain.words(), gain.is_fall, gain.is_rise
    after, before = (evidence.summary.get(n) for n in ("objective", "objective_reference"))
    if after is not None and before is not None:  # of an older run, without that interval
        words = f"J is {after:.3g} after training and {before:.3g} before"
        interval = evidence.summary.get("fraction_interval")
        if interval is None:
            return words, after < before, after > before
        low, high = interval
        words += f"; the fraction of the way to the optimum lies in {low:.2f} … {high:.2f} (95 %)"
        return words, high < 0, low > 0
    curves = _judged(evidence, "objective")
    if curves is None:
        return None
    first, last = quarter_mean(curves[0], 0), quarter_mean(curves[0], -1)
    words = (
        f"J of the training samples is {last[0]:.3g} ± {last[1]:.2g} in the last quarter and "
        f"{first[0]:.3g} ± {first[1]:.2g} in the first"
    )
    return words, is_above(first, last), is_above(last, first)


def worse_than_untrained(evidence: Evidence) -> Answer | None:
    """Whether J fell."""
    gain = _gain(evidence)
    return None if gain is None else Answer(gain[1], gain[0])


def better_than_untrained(evidence: Evidence) -> Answer | None:
    """Whether J rose."""
    gain = _gain(evidence)
    return None if gain is None else Answer(gain[2], gain[0])


def no_difference(evidence: Evidence) -> Answer | None:
    """Whether J can't be told from that of the untrained model."""
    gain = _gain(evidence)
    return None if gain is None else Answer(not gain[1] and not gain[2], gain[0])


def near_the_optimum(evidence: Evidence) -> Answer | None:
    """Whether most of the way to J* is done."""
    fraction = evidence.summary.get("objective_fraction")
    if fraction is None:
        return None
    at_most = "" if evidence.summary.get("optimum") is not None else "at most "
    return Answer(fraction >= NEAR, f"{at_most}{fraction:.3g} of the way from J_ref to J*")


def critic_explains_nothing(evidence: Evidence) -> Answer | None:
    """Whether V predicts the returns no better than their mean would."""
    curves = _judged(evidence, "explained_variance")
    if curves is None:
        return None
    median = float(np.median(curves[0].quarter(-1)))
    return Answer(median < EXPLAINS_NOTHING, f"explained variance {median:.2f}")


def kl_runs_away(evidence: Evidence) -> Answer | None:
    """Whether the KL grows and J pays for it."""
    curves = _judged(evidence, "kl", "objective")
    if curves is None:
        return None
    kl, objective = curves
    earlier, last = quarter_mean(kl, 1)[0], quarter_mean(kl, -1)[0]
    best, end = _best_quarter(objective), quarter_mean(objective, -1)
    return Answer(
        last > RUNS_AWAY * max(earlier, STILL) and is_above(best, end),
        f"KL {earlier:.3g} nats in the second quarter and {last:.3g} in the last; J {best[0]:.3g} "
        f"in its best quarter and {end[0]:.3g} in the last",
    )


def entropy_collapsed(evidence: Evidence) -> Answer | None:
    """Whether hardly any randomness is left."""
    curves = _judged(evidence, "entropy")
    if curves is None:
        return None
    first, last = float(curves[0].values[0]), quarter_mean(curves[0], -1)[0]
    words = f"entropy {first:.3g} nats per token at first and {last:.3g} in the last quarter"
    return Answer(last < COLLAPSED * first, words)


def reward_is_exploited(evidence: Evidence) -> Answer | None:
    """Whether the score holds while the true reward falls."""
    curves = _judged(evidence, "gold_reward", "score")
    if curves is None:
        return None
    gold, score = curves
    quarter = max(range(4), key=lambda number: quarter_mean(gold, number)[0])
    best, end = quarter_mean(gold, quarter), quarter_mean(gold, -1)
    then, now = quarter_mean(score, quarter), quarter_mean(score, -1)
    return Answer(
        is_above(best, end) and now[0] >= then[0],
        f"gold reward {best[0]:.3g} in its best quarter and {end[0]:.3g} in the last; score "
        f"{then[0]:.3g} and {now[0]:.3g}",
    )


def looks_like_hacking(evidence: Evidence) -> Answer | None:
    """Whether the monitor raised an alarm, which knows no true reward."""
    alarms = evidence.summary.get("hacking_alarms")
    if not isinstance(alarms, list):
        return None
    said = [
        f"{alarm['rule']} "
        + (f"after {alarm['tokens']:,} tokens" if alarm["tokens"] else "before the training")
        for alarm in alarms
        if isinstance(alarm, dict)
        and isinstance(alarm.get("rule"), str)
        and isinstance(alarm.get("tokens"), int)
    ]
    return Answer(bool(said), ", ".join(said) or "no alarm")


def responses_do_not_end(evidence: Evidence) -> Answer | None:
    """Whether responses run into the limit of their length."""
    curves = _judged(evidence, "eos_rate")
    if curves is None:
        return None
    first, last = float(curves[0].values[0]), quarter_mean(curves[0], -1)[0]
    words = (
        f"{_percent(first)} of the responses ended by themselves at first, {_percent(last)} at last"
    )
    return Answer(last < HALF * first, words)


def length_changed(evidence: Evidence) -> Answer | None:
    """Whether responses have become much longer or shorter."""
    curves = _judged(evidence, "response_length")
    if curves is None:
        return None
    first, last = float(curves[0].values[0]), quarter_mean(curves[0], -1)[0]
    changed = last > LENGTHENED * first or last * LENGTHENED < first
    return Answer(changed, f"{first:.3g} tokens at first and {last:.3g} in the last quarter")


def steps_are_large(evidence: Evidence) -> Answer | None:
    """Whether the clip holds many tokens."""
    curves = _judged(evidence, "clip_fraction")
    if curves is None:
        return None
    median = float(np.median(curves[0].quarter(-1)))
    return Answer(median > CLIPPED, f"the clip holds {_percent(median)} of the tokens")


def hardly_moved(evidence: Evidence) -> Answer | None:
    """Whether the policy is still the reference."""
    curves = _judged(evidence, "kl")
    if curves is None:
        return None
    last = quarter_mean(curves[0], -1)[0]
    return Answer(abs(last) < STILL, f"KL {last:.2g} nats per response in the last quarter")


def still_rising(evidence: Evidence) -> Answer | None:
    """Whether more training would have helped."""
    curves = _judged(evidence, "objective")
    if curves is None:
        return None
    before, last = quarter_mean(curves[0], 2), quarter_mean(curves[0], -1)
    words = f"J of the training samples {before[0]:.3g} in the third quarter, {last[0]:.3g} in the"
    return Answer(is_above(last, before), f"{words} last")


def not_finite(evidence: Evidence) -> Answer | None:
    """Whether numbers were lost."""
    if not any(len(curve) for curve in evidence.curves.values()) and not evidence.lost:
        return None
    words = f"null at some time: {', '.join(evidence.lost)}" if evidence.lost else "all are finite"
    return Answer(bool(evidence.lost), words)


def optimum_is_rough(evidence: Evidence) -> Answer | None:
    """Whether the bound on J* rests on few samples."""
    is_reliable = evidence.summary.get("is_reliable")
    if is_reliable is None:
        return None
    share = evidence.summary.get("least_effective_sample_size")
    prompts, each = (evidence.summary.get(n) for n in ("prompts", "responses_per_prompt"))
    words = []
    if prompts is not None and each is not None:
        words.append(f"{prompts * each // 2:,.0f} samples of the reference")
    words += (
        [] if share is None else [f"{_percent(share, 1)} of the samples carry it at some prompt"]
    )
    return Answer(not is_reliable, ", ".join(words) or "the samples are not counted")


RULES = (
    Rule(
        "Worse than the untrained model",
        "bad",
        "J on held-out prompts is below that of the untrained model; where it is sampled, the 95 % "
        "interval of the difference lies below 0 (in older runs, that of the fraction of the way "
        "to the optimum). Without an evaluation: J of the training samples is lower in the last "
        "quarter than in the first.",
        worse_than_untrained,
    ),
    Rule(
        "The KL runs away",
        "bad",
        f"The KL of the last quarter is more than {RUNS_AWAY} times that of the second, and J is "
        "lower in the last quarter than in its best one.",
        kl_runs_away,
    ),
    Rule(
        "The reward model is exploited",
        "bad",
        "The gold reward is lower in the last quarter than in its best one, and the score is not.",
        reward_is_exploited,
    ),
    Rule(
        "It looked like reward hacking",
        "warning",
        "The monitor raised an alarm, before the training or in it, by rules that know no gold "
        "reward: docs/reward-models.md states them. alarms.jsonl has what they saw.",
        looks_like_hacking,
    ),
    Rule(
        "The entropy collapsed",
        "bad",
        f"The entropy of the last quarter is below {_percent(COLLAPSED)} of that of the first "
        "rollout.",
        entropy_collapsed,
    ),
    Rule(
        "Responses no longer end",
        "bad",
        "In the last quarter less than half as many responses end by themselves as in the first "
        "rollout.",
        responses_do_not_end,
    ),
    Rule(
        "Numbers were not finite",
        "bad",
        "A metric was NaN or infinite at some time.",
        not_finite,
    ),
    Rule(
        "The critic explains nothing",
        "warning",
        "The median explained variance of the last quarter of the updates is below "
        f"{EXPLAINS_NOTHING}.",
        critic_explains_nothing,
    ),
    Rule(
        "No difference from the untrained model can be seen",
        "warning",
        "Neither above nor below it by the rule for “worse”.",
        no_difference,
    ),
    Rule(
        "The policy hardly moved",
        "warning",
        f"The KL of the last quarter is below {STILL} nats per response.",
        hardly_moved,
    ),
    Rule(
        "Updates are large",
        "warning",
        f"In the last quarter the clip holds more than {_percent(CLIPPED)} of the tokens (median).",
        steps_are_large,
    ),
    Rule(
        "Better than the untrained model",
        "good",
        "J on held-out prompts is above that of the untrained model, by the same measure as for "
        "“worse”.",
        better_than_untrained,
    ),
    Rule(
        "Near the optimum",
        "good",
        f"(J − J_ref)/(J* − J_ref) is {NEAR} or more; with a lower bound in the place of J* that "
        "is at most so much.",
        near_the_optimum,
    ),
    Rule(
        "Still rising at the end",
        "note",
        "J of the training samples is higher in the last quarter than in the third.",
        still_rising,
    ),
    Rule(
        "The length of responses changed",
        "note",
        f"The longer of the lengths in the first rollout and in the last quarter is more than "
        f"{LENGTHENED} times the other: look at the score against the length.",
        length_changed,
    ),
    Rule(
        "The optimum is known roughly",
        "note",
        "The bound on J* is from fewer than 4,096 samples of the reference, or less than 5 % of "
        "the samples carry it at some prompt.",
        optimum_is_rough,
    ),
)
"""In the order of the page."""
