"""The monitor of distribution shift: features, comparisons, and the callback in a training."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from support.models import save_classifier, save_language_model, word_tokenizer
from support.tiny_task import largest_difference, weights

from agents.cli import main
from agents.config import TrainConfig
from agents.evaluation import HeldOut
from agents.reward_quality.shift import ShiftMonitor, _reading
from tokenenv.data import PreferencePair
from tokenenv.rewards import load_reward_model, pooled_features

EOS = 2


def words(prompts, responses):
    return [float(len(response.split())) for response in responses]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("shift")


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


@pytest.fixture(scope="module")
def held_out(kwargs):
    held_out = HeldOut.from_env_kwargs(kwargs, 16)
    assert len(held_out.prompts) == 16 and held_out.solution is None
    return held_out


@pytest.fixture(scope="module")
def reference(held_out):
    return held_out.scorer.reference.language_model.model


# Features -----------------------------------------------------------------------------------------


def sequences():
    rng = np.random.default_rng(0)
    return [np.array([1, *rng.integers(4, 40, size), EOS]) for size in (3, 9, 5, 1)]


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt"])
def test_the_reward_is_the_head_of_the_features(folder, name):
    rewards = load_reward_model(save_classifier(folder / name, name))
    features, raw = pooled_features(rewards, sequences())
    head = rewards.model.score.weight.double().numpy()
    np.testing.assert_allclose(features @ head[0], raw, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(raw, rewards.raw_rewards(sequences()), rtol=1e-5, atol=1e-6)
    assert not rewards.model.score._forward_pre_hooks, "the hook is gone"


def encoder(folder, **config):
    from transformers import AutoConfig, AutoModelForSequenceClassification

    made = AutoConfig.for_model(
        num_labels=1,
        vocab_size=40,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        pad_token_id=0,
        **config,
    )
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(made)
    model.save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return load_reward_model(str(folder))


@pytest.mark.parametrize("model_type", ["bert", "roberta"])
def test_an_encoders_features_are_what_its_head_has_pooled(folder, model_type):
    rewards = encoder(folder / model_type, model_type=model_type)
    features, raw = pooled_features(rewards, sequences())
    last = [m for m in rewards.model.modules() if isinstance(m, torch.nn.Linear)][-1]
    expected = features @ last.weight.double().numpy()[0] + float(last.bias)
    np.testing.assert_allclose(expected, raw, rtol=1e-4, atol=1e-5)


# The monitor --------------------------------------------------------------------------------------


def test_the_reference_has_not_shifted_and_another_model_has(held_out, reference):
    """False alarms at 5 %: of 6 comparisons 0.3 are expected; 3 or more come once in 450."""
    monitors = [ShiftMonitor(held_out, seed=seed, responses=32) for seed in range(6)]
    shifts = [monitor.measure(reference, 1) for monitor in monitors]
    monitor = monitors[0]
    assert monitor.is_paired
    assert sum(shift.p_value <= 0.05 for shift in shifts) <= 2
    assert abs(np.mean([shift.shift for shift in shifts])) < 1
    assert shifts[0].responses == shifts[0].texts == 32 and shifts[0].disagreement is None
    other = copy.deepcopy(reference)
    with torch.no_grad():
        other.lm_head.weight.mul_(20.0)  # surer of what it says
    shifted = monitor.measure(other, 1)
    assert shifted.p_value <= 0.01 and shifted.shift > 5 > max(s.shift for s in shifts)


def test_measurements_repeat_and_differ_by_their_number(held_out, reference):
    first, again = (ShiftMonitor(held_out, seed=2, responses=16) for _ in range(2))
    assert first.measure(reference, 3) == again.measure(reference, 3)
    assert first.measure(reference, 3) != first.measure(reference, 4)
    assert first.measure(reference, 3).distance > 0, "fresh samples, not those compared with"


def pairs_of(held_out, reference, seed):
    """Pairs whose responses the reference wrote: one of them as good as the other."""
    monitor = ShiftMonitor(held_out, responses=16)
    decode = held_out.scorer.reference.language_model.decode
    sides = [monitor._episodes(reference, seed + side) for side in (0, 1)]
    texts = [[decode(e.response[: len(e.response) - e.stopped]) for e in side] for side in sides]
    stops = [[e.stopped for e in side] for side in sides]
    return [
        PreferencePair(prompt, *both, chosen_stopped=stop[0], rejected_stopped=stop[1])
        for prompt, both, stop in zip(
            held_out.texts,
            zip(*texts, strict=True),
            zip(*stops, strict=True),
            strict=True,
        )
    ]


def test_training_pairs_are_compared_with_where_they_are_known(held_out, reference):
    alarms = 0
    for seed in range(4):
        monitor = ShiftMonitor(held_out, pairs_of(held_out, reference, 100 * seed), seed)
        shift = monitor.measure(reference, 1)
        alarms += shift.p_value <= 0.05
    assert not monitor.is_paired and (shift.responses, shift.texts) == (16, 16)
    assert alarms <= 1  # 2 or more of 4 come once in 71
    loud = [
        replace(pair, chosen="w9 w9 w9 w9 w9", rejected="w9 w9 w9 w9")
        for pair in pairs_of(held_out, reference, 0)
    ]
    assert ShiftMonitor(held_out, loud).measure(reference, 1).p_value <= 0.01


def test_several_models_are_side_by_side_and_their_disagreement_is_relative(kwargs, folder):
    other = save_classifier(folder / "second", seed=7, tokenizer=word_tokenizer(reverse=True))
    several = HeldOut.from_env_kwargs(
        {**kwargs, "reward_model": [kwargs["reward_model"], other], "reward_combine": "mean"}, 16
    )
    monitor = ShiftMonitor(several, responses=64)
    model = several.scorer.reference.language_model.model
    shift = monitor.measure(model, 1)
    assert shift.disagreement == pytest.approx(1, abs=0.35)
    # By hand: both normalised on the texts compared with, of which the deviations are halves of
    # the differences.
    texts = monitor._sequences(monitor._episodes(model, monitor._seed_of(1)))
    now, known = _reading(monitor.models, texts), monitor._known
    mean, deviation = known.raw.mean(axis=1), known.raw.std(axis=1)
    halves = [
        np.abs(np.diff((raw - mean[:, None]) / deviation[:, None], axis=0)).mean() / 2
        for raw in (now.raw, known.raw)
    ]
    assert shift.disagreement == pytest.approx(halves[0] / halves[1], rel=1e-9)


def test_rewards_and_pairs_without_features_are_refused(kwargs, held_out):
    function = HeldOut.from_env_kwargs({**kwargs, "reward_model": words}, 16)
    with pytest.raises(ValueError, match="the reward is a function: leave shift_every"):
        ShiftMonitor(function)
    pair = PreferencePair("w4", "w5", "w6")
    with pytest.raises(ValueError, match="2 pairs with 1 different prompts are too few"):
        ShiftMonitor(held_out, [pair, pair])
    with pytest.raises(ValueError, match="on a single held-out prompt"):
        ShiftMonitor(held_out.first(1), [pair, PreferencePair("w5", "w6", "w7")])
    with pytest.raises(ValueError, match="shift_pairs='x' is what shift_every compares with"):
        TrainConfig(shift_pairs="x")


# Training -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_training_logs_the_shift_and_learns_as_without(tmp_path):
    """End to end on `exact`, with an ensemble; the policy is the same to the bit without."""
    from agents.policy import LMActorCriticPolicy

    arguments = ["train", "--task", "exact", "--total-tokens", "1024", "--n-envs", "32"]
    arguments += ["--n-steps", "8", "--eval-every", "0", "--explain-every", "0", "--device", "cpu"]
    arguments += ["--reward-model", "exact", "exact", "--combine", "min"]
    arguments += ["--max-new-tokens", "3", "--eval-prompts", "2"]  # fewer responses to list
    policies = []
    for name, more in (("with", ["--shift-every", "2"]), ("without", [])):
        assert main([*arguments, "--out", str(tmp_path / name), *more]) == 0
        policies.append(LMActorCriticPolicy.from_pretrained(tmp_path / name / "policy"))
    assert largest_difference(*(weights(policy.actor) for policy in policies)) == 0
    lines = [json.loads(line) for line in (tmp_path / "with" / "metrics.jsonl").open()]
    rollouts = [line for line in lines if "rlhf/score" in line]
    measured = [number for number, line in enumerate(rollouts) if "rlhf/shift" in line]
    assert measured == list(range(0, len(rollouts), 2)) and len(measured) > 1
    assert all(0 < rollouts[number]["rlhf/shift_p"] <= 1 for number in measured)
    assert lines[0]["rlhf/rm_disagreement"] == pytest.approx(0, abs=1e-6)
    config = json.loads((tmp_path / "with" / "config.json").read_text())
    assert (config["combine"], config["shift_every"]) == ("min", 2)


@pytest.mark.slow
def test_a_training_on_reviews_compares_with_pairs(tmp_path):
    from tokenenv.tasks import load_task

    prompts = load_task("reviews").prompts("train")[:64]
    pairs = tmp_path / "pairs.jsonl"
    rows = [
        {"prompt": prompt, "chosen": " was good good good.", "rejected": " was."}
        for prompt in prompts
    ]
    pairs.write_text("\n".join(map(json.dumps, rows)))
    arguments = ["train", "--total-tokens", "128", "--n-envs", "8", "--n-steps", "16"]
    arguments += ["--eval-responses", "0", "--eval-every", "0", "--explain-every", "0"]
    arguments += ["--device", "cpu", "--shift-every", "1", "--shift-pairs", str(pairs)]
    assert main([*arguments, "--out", str(tmp_path / "run")]) == 0
    line = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    assert line["rlhf/shift"] > 5 and line["rlhf/shift_p"] == pytest.approx(0.001)
