"""Refreshing a reward model: pairs, labels, learning, the scale, and a training with it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from support.models import save_classifier, save_language_model, word_tokenizer
from support.tiny_task import largest_difference, weights

from agents.config import TrainConfig
from agents.evaluation import HeldOut
from agents.labelling.pair_file import PairFile
from agents.reward_quality.refresh import (
    OwnRewardModels,
    RefreshCallback,
    RefreshSettings,
    RewardRefresher,
    annotator,
    annotators,
)
from agents.reward_quality.refresh.annotators import AnnotatorError
from agents.reward_quality.refresh.refresher import set_scale
from agents.reward_quality.shift import ShiftMonitor
from agents.runs.folder import RunFolder
from tokenenv.rewards import load_reward_model, reference_episodes


def shorter(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    """The fewer words, the better: what the random reward model here knows nothing of."""
    return [-float(len(response.split())) for response in responses]


CALLS: list[int] = []
FAILURES: list[int] = []


def flaky(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    """As `shorter`, but it fails in the calls of `FAILURES`."""
    CALLS.append(len(responses))
    if len(CALLS) in FAILURES:
        raise OSError("nobody is there")
    return shorter(prompts, responses)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("refresh")


@pytest.fixture(scope="module")
def kwargs(folder):
    return {
        "reference": save_language_model(folder / "reference"),
        "reward_model": save_classifier(folder / "rm"),
        "prompts": [f"w{n}" for n in range(4, 20)],
        "max_prompt_tokens": 4,
        "max_new_tokens": 6,
        "kl_coef": 0.1,
        "device": "cpu",
    }


@pytest.fixture
def own(kwargs):
    with OwnRewardModels(kwargs) as models:
        yield models


def held_out_of(own) -> HeldOut:
    return HeldOut.from_env_kwargs(own.environment, 8)


def refresher_of(own, place, labels=f"{__name__}:shorter", say=lambda text: None, **how: Any):
    held_out = held_out_of(own)
    label = annotator(labels, held_out.scorer, "cpu", say=say)
    settings = RefreshSettings(**{"pairs": 32, "epochs": 4, "learning_rate": 1e-2, **how})
    return RewardRefresher(held_out.settings, held_out.scorer, label, place, settings)


def actor_of(refresher: RewardRefresher) -> Any:
    return refresher.language_model.model


# A round ------------------------------------------------------------------------------------------


def test_it_learns_what_the_labels_say_and_everybody_who_scores_follows(own, kwargs, tmp_path):
    before = load_reward_model(kwargs["reward_model"])
    texts = [np.array([1, 5, 6, 7, 2]), np.array([1, 9, 2])]
    others, same_model = before.raw_rewards(texts), held_out_of(own).scorer
    refresher = refresher_of(own, tmp_path)
    episodes = reference_episodes(refresher.settings, refresher.scorer.reference)[:8]
    scored = same_model.score(episodes).score
    done = [refresher.refresh(actor_of(refresher)) for _ in range(3)]
    assert done[-1].accuracy_after > 0.85 > done[0].accuracy
    assert done[-1].accuracy > done[0].accuracy, "fresh pairs, which it has not seen"
    assert [round.number for round in done] == [1, 2, 3]
    assert not np.allclose(same_model.score(episodes).score, scored)
    np.testing.assert_array_equal(
        held_out_of(own).scorer.score(episodes).score, same_model.score(episodes).score
    )
    # The model that it was copied from is what it was.
    np.testing.assert_array_equal(
        load_reward_model(kwargs["reward_model"]).raw_rewards(texts), others
    )


def test_beta_keeps_its_meaning(own, tmp_path):
    """Normalised rewards of the reference's responses keep their mean and deviation."""
    refresher = refresher_of(own, tmp_path)
    episodes = reference_episodes(refresher.settings, refresher.scorer.reference)

    def scores() -> np.ndarray:
        return refresher.scorer.reward(episodes).normalized

    def raw() -> np.ndarray:
        return refresher.scorer.reward(episodes).raw

    before, raw_before = scores(), raw()
    done = refresher.refresh(actor_of(refresher))
    after = scores()
    assert not np.allclose(after, before)
    assert after.mean() == pytest.approx(before.mean(), abs=1e-5)
    assert after.std() == pytest.approx(before.std(), rel=1e-5)
    assert done.scale == pytest.approx(raw().std() / raw_before.std(), rel=1e-6)


def test_a_scale_by_hand(folder):
    """1, 3: mean 2, deviation 1. To mean 5 and deviation 0.5: (r − (2 − 5·2)) / 2."""
    model = load_reward_model(save_classifier(folder / "scale"))
    version = model.version
    set_scale(model, np.array([1.0, 3.0]), 5.0, 0.5)
    np.testing.assert_allclose(model.normalize(np.array([1.0, 3.0])), [4.5, 5.5])
    assert (model.mean, model.std) == (-8.0, 2.0) and model.version == version + 1
    with pytest.raises(ValueError, match="can't normalise a reward"):
        model.set_normalization(0.0, 0.0)


def test_an_ensemble_is_combined_on_its_new_scale(kwargs, folder, tmp_path):
    """Of each member and of the combination: mean 0 and deviation 1 on the reference's texts."""
    other = save_classifier(folder / "other", seed=7, tokenizer=word_tokenizer(reverse=True))
    several = {**kwargs, "reward_model": [kwargs["reward_model"], other], "reward_combine": "min"}
    with OwnRewardModels(several) as own:
        refresher = refresher_of(own, tmp_path)
        shift = ShiftMonitor(held_out_of(own), responses=16)
        known = shift._known
        episodes = reference_episodes(refresher.settings, refresher.scorer.reference)
        before = refresher.scorer.reward(episodes).normalized
        done = refresher.refresh(actor_of(refresher))
        after = refresher.scorer.reward(episodes)
        shift.measure(actor_of(refresher), 1)
    assert len(refresher.learned) == 2 and done.accuracy_after > done.accuracy
    assert not np.allclose(before, after.normalized)
    assert after.normalized.mean() == pytest.approx(0.0, abs=1e-6)
    assert after.normalized.std() == pytest.approx(1.0, abs=1e-6)
    assert not np.allclose(known.raw, shift._known.raw), "known texts as the new models read them"


def test_without_epochs_it_measures_and_learns_nothing(own, tmp_path):
    refresher = refresher_of(own, tmp_path, epochs=0)
    model = refresher.learned[0].reward_model
    before = {name: value.clone() for name, value in model.model.state_dict().items()}
    done = refresher.refresh(actor_of(refresher))
    assert done.accuracy == done.accuracy_after and done.scale == 1.0 and done.labels == 32
    assert all(value.equal(before[name]) for name, value in model.model.state_dict().items())
    # By hand, from the file: the share of pairs whose better response has the higher reward.
    rows = [row for row in PairFile(tmp_path / "round-0001.jsonl").rows if row.label != "tie"]
    assert all((row.label == "a") == (row.reward_a > row.reward_b) for row in rows)
    held_out = held_out_of(own)
    rewards = [
        [
            model.raw_rewards([model.encode(row.prompt, text, finish == "stop")])[0]
            for text, finish in ((row.response_a, row.finish_a), (row.response_b, row.finish_b))
        ]
        for row in rows
    ]
    agree = [(a > b) == (row.label == "a") for row, (a, b) in zip(rows, rewards, strict=True)]
    assert done.accuracy == pytest.approx(np.mean(agree))
    assert held_out.scorer.reference.language_model.decode(np.array([5])) == "w5"


def test_rounds_have_other_prompts_and_pairs_and_repeat(own, tmp_path):
    first, again = (refresher_of(own, tmp_path / name, epochs=0) for name in ("a", "b"))
    for refresher in (first, again):
        for _ in range(2):
            refresher.refresh(actor_of(refresher))
    files = [[(tmp_path / n / f"round-000{i}.jsonl").read_text() for i in (1, 2)] for n in "ab"]
    assert files[0] == files[1] and files[0][0] != files[0][1]
    prompts = [json.loads(line)["prompt"] for line in files[0][0].splitlines()]
    assert sorted(prompts[:16]) == sorted(set(prompts)), "every prompt before one comes again"


def test_a_state_brings_rounds_weights_and_scale_back(own, kwargs, tmp_path):
    refresher = refresher_of(own, tmp_path)
    refresher.refresh(actor_of(refresher))
    state = refresher.state_dict()
    rewards = refresher.scorer.reward(
        reference_episodes(refresher.settings, refresher.scorer.reference)
    )
    second = refresher.refresh(actor_of(refresher))
    with OwnRewardModels(kwargs) as fresh:
        other = refresher_of(fresh, tmp_path)
        other.load_state_dict(state)
        found = other.scorer.reward(reference_episodes(other.settings, other.scorer.reference))
        np.testing.assert_array_equal(found.normalized, rewards.normalized)
        assert other.fresh_pairs == refresher.fresh_pairs[: len(other.fresh_pairs)]
        assert other.refresh(actor_of(other)) == second
    (tmp_path / "round-0001.jsonl").unlink()
    with (
        OwnRewardModels(kwargs) as fresh,
        pytest.raises(ValueError, match="jsonl' is missing"),
    ):
        refresher_of(fresh, tmp_path).load_state_dict(state)


# Labels -------------------------------------------------------------------------------------------


@pytest.fixture
def no_pause(monkeypatch):
    pauses: list[float] = []
    monkeypatch.setattr(annotators.time, "sleep", pauses.append)
    CALLS.clear()
    FAILURES.clear()
    return pauses


def test_an_annotator_that_fails_is_asked_again(own, tmp_path, no_pause):
    FAILURES.extend([1, 2])
    said: list[str] = []
    refresher = refresher_of(own, tmp_path, f"{__name__}:flaky", said.append)
    assert refresher.refresh(actor_of(refresher)).labels == 32
    assert no_pause == [1.0, 2.0] and len(said) == 2 and "nobody is there" in said[0]


def test_labels_that_there_are_stay_when_the_annotator_is_gone(own, tmp_path, no_pause):
    FAILURES.extend([2, 3, 4])
    refresher = refresher_of(own, tmp_path, f"{__name__}:flaky", pairs=96)  # chunks of 64 and 32
    with pytest.raises(AnnotatorError, match=r"failed 3 times: .*96 pairs are kept in .*0001"):
        refresher.refresh(actor_of(refresher))
    counts = PairFile(tmp_path / "round-0001.jsonl").counts()
    assert 0 < counts["open"] <= 32 and refresher.rounds == 0
    del CALLS[:]
    FAILURES.clear()
    assert refresher.refresh(actor_of(refresher)).labels == 96
    assert sum(CALLS) == 2 * counts["open"], "only what had no label"


def test_people_fill_in_a_file_bit_by_bit(own, tmp_path, monkeypatch):
    path, said, looks = tmp_path / "round-0001.jsonl", [], iter(range(100))

    def person(seconds: float) -> None:
        """Between two looks: half of the labels, a file that breaks off, a skip and the rest."""
        file = None if (look := next(looks)) == 2 else PairFile(path)
        if look == 1:
            path.write_text(path.read_text()[:-9] + "\n")
        elif look == 2:
            path.write_text("".join(f"{row.as_json()}\n" for row in before))
        elif file is not None:
            waiting = [i for i, row in enumerate(file.rows) if row.is_open]
            for index in waiting[: 3 if look == 0 else None]:
                file.rows[index] = file.rows[index].labelled("a", "person")
            if look > 2:
                file.rows[waiting[0]] = file.rows[waiting[0]].labelled(None, "person", skipped=True)
            file.save()
            before[:] = file.rows

    before: list[Any] = []
    monkeypatch.setattr(annotators.time, "sleep", person)
    refresher = refresher_of(own, tmp_path, "people", said.append, pairs=8, epochs=0)
    done = refresher.refresh(actor_of(refresher))
    assert done.labels == 7 and len(refresher.fresh_pairs) == 7
    assert "labels ask" in said[0] and "line 8" in said[1] and len(said) == 2


def test_a_half_filled_file_goes_on_and_one_of_other_pairs_is_set_aside(own, tmp_path, monkeypatch):
    def nobody(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(annotators.time, "sleep", nobody)
    refresher = refresher_of(own, tmp_path, "people", pairs=8, epochs=0)
    with pytest.raises(KeyboardInterrupt):
        refresher.refresh(actor_of(refresher))
    path = tmp_path / "round-0001.jsonl"
    file = PairFile(path)
    for index, row in enumerate(file.rows):
        file.rows[index] = row.labelled("b", "person")
    file.save()
    assert refresher.refresh(actor_of(refresher)).labels == 8, "nobody is asked again"
    other = refresher_of(own, tmp_path, "people", pairs=8, epochs=0, seed=5)
    with pytest.raises(KeyboardInterrupt):
        other.refresh(actor_of(other))
    aside = PairFile(tmp_path / "round-0001-of-another-policy-1.jsonl")
    assert {row.label for row in aside.rows} == {"b"} and PairFile(path).counts()["open"]


def test_a_round_that_is_interrupted_leaves_all_models_as_they_were(own, tmp_path, monkeypatch):
    refresher = refresher_of(own, tmp_path)
    model = refresher.learned[0].reward_model
    before, scale = refresher.state_dict(), (model.mean, model.std)

    def stopped(pairs, trained, settings):
        with torch.no_grad():
            trained.model.score.weight.add_(1.0)
        raise KeyboardInterrupt

    monkeypatch.setattr("agents.reward_quality.refresh.refresher.fit_reward_model", stopped)
    with pytest.raises(KeyboardInterrupt):
        refresher.refresh(actor_of(refresher))
    assert refresher.rounds == 0 and not refresher.fresh_pairs
    after = model.model.state_dict()
    assert all(value.equal(after[name]) for name, value in before["weights"][0].items())
    assert (model.mean, model.std) == scale


def test_a_run_that_refreshed_is_measured_with_the_model_that_it_left(tmp_path):
    run, changes = RunFolder(tmp_path), {"refresh_every": 2}
    (tmp_path / "reward_model").mkdir()
    (tmp_path / "reward_model" / "config.json").write_text("{}")
    own, named = str(tmp_path / "reward_model"), TrainConfig(reward_model="rm")
    assert run.environment(named)["reward_model"] == "rm"
    assert run.environment(TrainConfig(reward_model="rm", **changes))["reward_model"] == own
    measured = TrainConfig(reward_model="rm", refresh_epochs=0, **changes)
    assert run.environment(measured)["reward_model"] == "rm"
    (tmp_path / "reward_model" / "config.json").unlink()
    for name in ("b", "a"):
        (tmp_path / "reward_model" / name).mkdir()
        (tmp_path / "reward_model" / name / "config.json").write_text("{}")
    folders = [f"{own}/a", f"{own}/b"]
    found = run.environment(TrainConfig(reward_model=("x/a", "y/b"), combine="min", **changes))
    assert (found["reward_model"], found["reward_combine"]) == (folders, "min")
    weighted = {"reward_model": ("x/a", "y/b"), "combine": "mean", "reward_weights": (1.0, 2.0)}
    with pytest.raises(ValueError, match="refreshed 2 reward models with weights"):
        run.environment(TrainConfig(**weighted, **changes))


def test_what_can_not_be_refreshed_is_refused(kwargs, own, tmp_path):
    twice = {**kwargs, "reward_model": [kwargs["reward_model"], kwargs["reward_model"]]}
    with pytest.raises(ValueError, match="2 reward models in a weighted sum"):
        OwnRewardModels(twice)
    with pytest.raises(ValueError, match="1 reward models in a weighted sum"):
        OwnRewardModels({**kwargs, "reward_weights": [-1.0]})
    OwnRewardModels({**twice, "reward_combine": "min"}).close()
    with pytest.raises(ValueError, match="the reward is a function, which learns"):
        OwnRewardModels({**kwargs, "reward_model": shorter})
    with pytest.raises(ValueError, match="dtype='bfloat16': a reward model that is refreshed"):
        OwnRewardModels({**kwargs, "dtype": "bfloat16"})
    with pytest.raises(ValueError, match="the task knows no gold reward"):
        refresher_of(own, tmp_path, None)
    with pytest.raises(ValueError, match="refresh_labels='no/such': "):
        refresher_of(own, tmp_path, "no/such")
    with pytest.raises(ValueError, match="refresh_labels='gold' is for refresh_every"):
        TrainConfig(refresh_labels="gold")
    with pytest.raises(ValueError, match="pairs=0 must be"):
        RefreshSettings(pairs=0)


# Training -----------------------------------------------------------------------------------------


def trained(place, **changes: Any):
    """A short training on `reviews`, and its metrics."""
    from rich.console import Console

    from agents.runs.training import TrainingRun

    small = {"n_envs": 16, "n_steps": 32, "n_epochs": 1, "total_tokens": 2048, "device": "cpu"}
    quiet = {"eval_every": 0, "explain_every": 0, "eval_responses": 0, "checkpoint_every": 0}
    config = TrainConfig(out=place, **{**small, **quiet, **changes})
    run = TrainingRun(config, Console(file=(place.parent / f"{place.name}.txt").open("w")))
    run.train()
    lines = [json.loads(line) for line in (place / "metrics.jsonl").open()]
    return run, [line for line in lines if "rlhf/score" in line]


@pytest.mark.slow
def test_a_training_that_only_measures_learns_as_without(tmp_path):
    without, _ = trained(tmp_path / "without")
    measured, rollouts = trained(
        tmp_path / "with", refresh_every=2, refresh_pairs=16, refresh_epochs=0
    )
    policies: Any = (without.model.policy, measured.model.policy)
    assert largest_difference(*(weights(policy.actor) for policy in policies)) == 0
    assert [number for number, line in enumerate(rollouts) if "rlhf/rm_accuracy" in line] == [2]
    assert rollouts[2]["rlhf/rm_labels"] == 16 and rollouts[2]["rlhf/rm_scale"] == 1.0
    assert (tmp_path / "with" / "refresh" / "round-0001.jsonl").is_file()


@pytest.mark.slow
def test_a_training_refreshes_keeps_the_model_and_ends_with_an_evaluation_of_it(tmp_path):
    run, rollouts = trained(
        tmp_path / "run", refresh_every=1, refresh_pairs=32, eval_every=1, checkpoint_every=2
    )
    measured = [line for line in rollouts if "rlhf/rm_accuracy" in line]
    assert len(measured) == len(rollouts) - 1
    assert all(0 <= line["rlhf/rm_accuracy"] <= 1 for line in measured)
    saved = load_reward_model(str(tmp_path / "run" / "reward_model"))
    (learned,) = run.refresh.refresher.learned
    texts = [np.array([1, 9, 4])]
    np.testing.assert_allclose(
        saved.normalize(saved.raw_rewards(texts)),
        learned.reward_model.normalize(learned.reward_model.raw_rewards(texts)),
    )
    assert "β means the same" in (tmp_path / "run.txt").read_text()


@pytest.mark.slow
def test_the_exact_optimum_is_that_of_the_reward_that_has_learned(tmp_path):
    from tokenenv.optimum import evaluate_exactly

    run, _ = trained(
        tmp_path / "run",
        task="exact",
        max_new_tokens=3,
        eval_prompts=2,
        eval_every=1,
        refresh_every=1,
        refresh_pairs=16,
        refresh_learning_rate=1e-2,
        n_steps=8,
        total_tokens=256,
        eval_responses=8,
    )
    kept = {"reward_model": str(tmp_path / "run" / "reward_model")}
    fresh = HeldOut.from_env_kwargs({**run.config.environment(), **kept}, 2)
    actor = run.model.policy.actor
    expected = evaluate_exactly(actor, fresh.solution)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["optimum"] == pytest.approx(expected.optimum)
    assert run.evaluation.held_out is run.held_out is not fresh


def test_rounds_come_every_so_many_updates_and_go_on_after_an_interruption(own, tmp_path):
    refresher = refresher_of(own, tmp_path, epochs=0)
    callback = RefreshCallback(refresher, every=2)

    class Model:
        policy = type("P", (), {"actor": actor_of(refresher)})()
        num_timesteps = 0
        logger = type("L", (), {"record": staticmethod(lambda name, value: None)})()

    callback.model, callback.num_timesteps = Model(), 0  # type: ignore[assignment]
    done = []
    for _ in range(5):
        callback._on_rollout_start()
        done.append(refresher.rounds)
        callback._on_rollout_end()
    assert done == [0, 0, 1, 1, 2]
    state = callback.state_dict()
    again = RefreshCallback(refresher_of(own, tmp_path, epochs=0), every=2)
    again.model = Model()  # type: ignore[assignment]
    again.load_state_dict(state)
    again._on_rollout_start()  # update 5: nothing is due
    assert again.refresher.rounds == 2 and again._labels == 64
