"""Steps on pairs: shared prompts, batches by tokens, schedules, early stopping, bad numbers."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from support.models import save_language_model
from support.pairs import separable_pairs

from tokenenv.models import LoraSettings, add_lora, merged, save_adapter
from tokenenv.rewards import (
    RewardTrainingError,
    RewardTrainingSettings,
    TokenPair,
    as_token_pair,
    fit_reward_model,
    load_reward_model,
    new_reward_model,
    train_reward_model,
)
from tokenenv.rewards.pair_forward import (
    can_share_prompts,
    common_length,
    length_batches,
    pair_rewards,
)
from tokenenv.rewards.pair_training import learning_rate_factor
from tokenenv.rewards.reward_model import sequence_rewards


def random_pairs(rng, count=6, prompt=12, longest=9):
    """Pairs with a prompt of up to `prompt` tokens and responses of 1 to `longest`."""
    pairs = []
    for number in range(count):
        start = rng.integers(4, 40, size=rng.integers(prompt // 2, prompt + 1))
        sides = [
            np.concatenate([start, rng.integers(4, 40, size=rng.integers(1, longest + 1))])
            for _ in range(2)
        ]
        pairs.append(TokenPair(*sides, prompt=str(number)))
    return pairs


def weights(model):
    return torch.cat([weight.detach().flatten().clone() for weight in model.parameters()])


# One row per pair --------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "qwen2", "gpt_neox", "opt"])
def test_a_shared_row_gives_the_rewards_and_gradients_of_two_rows(architecture, tmp_path, rng):
    model = new_reward_model(save_language_model(tmp_path, architecture), seed=1).model
    pairs = random_pairs(rng)
    assert can_share_prompts(model, pairs)
    model.requires_grad_(True)
    found = []
    for may_share in (True, False):
        chosen, rejected = pair_rewards(model, pairs, may_share)
        (chosen - rejected).square().sum().backward()
        grads = torch.cat([w.grad.flatten() for w in model.parameters() if w.grad is not None])
        found.append((torch.stack([chosen, rejected]).detach(), grads))
        model.zero_grad()
    scale = found[1][1].abs().max()
    assert torch.allclose(found[0][0], found[1][0], rtol=0, atol=2e-5)
    assert torch.allclose(found[0][1], found[1][1], rtol=0, atol=1e-4 * float(scale))


def test_a_response_that_begins_the_other_is_read_at_its_own_end(reference_folder):
    model = new_reward_model(reference_folder).model
    pair = TokenPair(np.array([1, 4, 5, 6]), np.array([1, 4, 5, 6, 7, 8]), "p")
    assert common_length(pair) == 3
    shared = torch.cat(pair_rewards(model, [pair], True))
    plain = sequence_rewards(model, [pair.chosen, pair.rejected])
    assert torch.allclose(shared, plain, atol=1e-6)


def test_windows_shorter_than_a_pair_are_noticed_and_two_rows_taken(tmp_path, rng):
    """A mask of ours would reach behind the window of six tokens."""
    model = new_reward_model(save_language_model(tmp_path, "mistral-window-6")).model
    pairs = random_pairs(rng, prompt=12)
    assert not can_share_prompts(model, pairs)
    assert fit_reward_model(
        pairs,
        new_reward_model(str(tmp_path)),
        RewardTrainingSettings(early_stopping=False, epochs=1),
    ).shares_prompts is False  # fmt: skip


# Batches -----------------------------------------------------------------------------------------


def test_batches_hold_all_pairs_once_within_both_limits(rng):
    pairs = random_pairs(rng, count=300, prompt=40, longest=30)
    longest = np.array([max(len(p.chosen), len(p.rejected)) for p in pairs])
    batches = length_batches(pairs, 10, 400, np.random.default_rng(1))
    assert sorted(np.concatenate(batches).tolist()) == list(range(300))
    for batch in batches:
        assert len(batch) <= 10 and 2 * len(batch) * longest[batch].max() <= 400
    again = length_batches(pairs, 10, 400, np.random.default_rng(1))
    assert all(map(np.array_equal, batches, again))
    # A pair beyond the limit is a batch by itself; the order is not that of the lengths.
    assert len(length_batches(pairs, 10, 1, np.random.default_rng(1))) == 300
    # Batches are samples of all pairs: one of like length teaches less.
    means = np.array([longest[batch].mean() for batch in batches])
    assert means.std() < 0.8 * longest.std()
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.5


def test_micro_batches_change_nothing_but_rounding(reference_folder, rng):
    reader = new_reward_model(reference_folder)
    pairs = [as_token_pair(pair, reader) for pair in separable_pairs(rng, 24)]
    pairs = [dataclasses.replace(p, margin=float(i % 3)) for i, p in enumerate(pairs)]
    found = []
    for tokens in (8192, 40):
        model = new_reward_model(reference_folder)
        settings = RewardTrainingSettings(
            epochs=1,
            batch_size=8,
            micro_batch_tokens=tokens,
            centering_coef=0.1,
            early_stopping=False,
        )
        record = fit_reward_model(pairs, model, settings)
        found.append((record.train_loss, weights(model.model)))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-4)
    assert torch.allclose(found[0][1], found[1][1], rtol=0, atol=2e-5)


def test_schedules_by_hand():
    """Twenty steps, of which two warm up."""
    for schedule, expected in {
        "constant": [0.5, 1.0, 1.0, 1.0],
        # at step 10 of 20: (20 − 10)/20, and the last (20 − 19)/20
        "linear": [0.5, 0.95, 0.5, 0.05],
        # 8 and 17 of the 18 steps behind the warm-up
        "cosine": [
            *(0.5, 1.0),
            *(0.5 * (1 + math.cos(math.pi * k / 18)) for k in (8, 17)),
        ],
    }.items():
        settings = RewardTrainingSettings(schedule=schedule)
        found = [learning_rate_factor(step, 20, settings) for step in (0, 1, 10, 19)]
        assert found == pytest.approx(expected, abs=1e-12), schedule


# How a training ends -----------------------------------------------------------------------------


def coin_pairs(rng, count=80):
    """Pairs whose labels were drawn by lot: what is learned only hurts on others."""
    return [
        dataclasses.replace(p, chosen=p.rejected, rejected=p.chosen) if rng.random() < 0.5 else p
        for p in separable_pairs(rng, count)
    ]


def test_early_stopping_says_when_and_keeps_those_weights(reference_folder, rng):
    settings = RewardTrainingSettings(epochs=30, batch_size=16, learning_rate=1e-2, patience=2)
    model, looks, kept = new_reward_model(reference_folder), [], []

    def on_evaluation(look):
        looks.append(look)
        kept.append(weights(model.model))

    report = train_reward_model(coin_pairs(rng), model, settings, on_evaluation=on_evaluation)
    record = report.training
    assert record.stopped == "early" and record.steps < record.all_steps
    assert f"after step {record.steps} of {record.all_steps}" in record.reason
    assert "--no-early-stopping" in record.reason
    best = min(looks, key=lambda look: look.loss)
    assert (best.step, best.loss) == (record.kept_step, record.selection_loss)
    assert len(looks) - 1 - looks.index(best) == 2 and looks == record.history
    assert torch.equal(weights(model.model), kept[looks.index(best)])


def test_without_early_stopping_all_steps_are_taken_and_the_last_weights_kept(
    reference_folder, rng
):
    settings = RewardTrainingSettings(
        epochs=4, batch_size=16, learning_rate=1e-2, early_stopping=False, patience=1
    )
    model, last = new_reward_model(reference_folder), []
    report = train_reward_model(
        coin_pairs(rng),
        model,
        settings,
        on_evaluation=lambda look: last.append((look.loss, weights(model.model))),
    )
    record = report.training
    assert record.steps == record.all_steps == record.kept_step and record.stopped == ""
    assert record.selection_loss == last[-1][0] > min(loss for loss, _ in last)
    assert torch.equal(weights(model.model), last[-1][1])


def test_no_pair_needs_to_choose_the_weights(reference_folder, rng):
    settings = RewardTrainingSettings(epochs=1, eval_fraction=0.0, early_stopping=False)
    report = train_reward_model(
        separable_pairs(rng, 100), new_reward_model(reference_folder), settings
    )
    assert report.selection_pairs == 0 and report.pairs > 0 and not report.chose_the_weights
    assert math.isnan(report.training.selection_loss)
    for wrong in ({"eval_fraction": 0.0}, {"early_stopping": 1}, {"schedule": "cos"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            RewardTrainingSettings(**wrong)
    with pytest.raises(ValueError, match="leave no pairs to report on"):
        RewardTrainingSettings(eval_fraction=0.0, report_fraction=0.0, early_stopping=False)


def test_a_loss_that_is_not_finite_ends_training_with_the_last_good_weights(reference_folder, rng):
    """A weight of the trunk is broken after a look: the best weights before stay."""
    model = new_reward_model(reference_folder)
    pairs = [as_token_pair(pair, model) for pair in separable_pairs(rng, 60)]
    settings = RewardTrainingSettings(epochs=1, batch_size=4, evaluations_per_epoch=12)
    seen, kept = [], []

    def poison(look):
        seen.append(look)
        kept.append(weights(model.model))
        if len(seen) == 3:
            with torch.no_grad():
                model.model.score.weight.fill_(math.nan)

    with pytest.raises(RewardTrainingError, match=r"loss of step \d+ is nan") as caught:
        train_reward_model(pairs, model, settings, on_evaluation=poison)
    record = caught.value.report.training
    assert record.stopped == "not finite" and record.steps == seen[-1].step
    assert f"the weights of step {record.kept_step} are kept" in str(caught.value)
    best = min(seen, key=lambda look: look.loss)
    assert record.kept_step == best.step
    assert torch.equal(weights(model.model), kept[seen.index(best)])
    assert math.isfinite(caught.value.report.loss)


def test_rewards_without_spread_are_refused_with_their_report(reference_folder):
    """Ties, which a head of zeros serves perfectly: no gradient moves it."""
    model = new_reward_model(reference_folder)
    with torch.no_grad():
        model.model.score.weight.zero_()
    pairs = [
        TokenPair(np.array([1, i, 5]), np.array([1, i, 6]), str(i), preference=0.5)
        for i in range(4, 14)
    ]
    with pytest.raises(RewardTrainingError, match=r"same reward to all 20 samples") as caught:
        train_reward_model(pairs, model, RewardTrainingSettings(epochs=1))
    report = caught.value.report
    assert report.loss == pytest.approx(math.log(2)) and report.training.steps == 1


# Precision and adapters --------------------------------------------------------------------------


def test_bfloat16_is_of_the_trunk_and_rewards_are_float32(reference_folder, rng):
    model = new_reward_model(reference_folder).model
    pairs = random_pairs(rng)
    for may_share in (True, False):
        with torch.no_grad():
            wide = torch.stack(pair_rewards(model, pairs, may_share))
            narrow = torch.stack(pair_rewards(model, pairs, may_share, "bfloat16"))
        assert narrow.dtype == torch.float32
        assert 0 < float((wide - narrow).abs().max()) < 0.05 * float(wide.abs().max()) + 0.02
        assert not torch.equal(narrow, narrow.bfloat16().float())


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bfloat16", "auto"])
def test_training_learns_in_either_precision(reference_folder, rng, precision):
    settings = RewardTrainingSettings(
        epochs=3, batch_size=16, learning_rate=1e-2, precision=precision
    )
    model = new_reward_model(reference_folder, seed=1)
    report = train_reward_model(separable_pairs(rng, 120), model, settings)
    assert report.accuracy > 0.8
    assert report.training.precision in ("float32", "bfloat16")
    assert {weight.dtype for weight in model.model.parameters()} == {torch.float32}


def test_adapters_and_the_head_alone_are_trained_and_saved_merged(reference_folder, rng, tmp_path):
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForSequenceClassification

    model = new_reward_model(reference_folder, seed=1)
    before = {name: weight.clone() for name, weight in model.model.named_parameters()}
    add_lora(model.model, LoraSettings(4), "base")
    settings = RewardTrainingSettings(epochs=3, batch_size=16, learning_rate=1e-2)
    report = train_reward_model(separable_pairs(rng, 120), model, settings)
    assert report.accuracy > 0.7
    after = {n.replace(".base_layer", ""): w for n, w in model.model.named_parameters()}
    assert all(torch.equal(after[n], w) for n, w in before.items() if n != "score.weight")
    assert not torch.equal(after["score.weight"], before["score.weight"])
    sequences = [rng.integers(3, 40, size=n) for n in (4, 9, 6)]
    raw = model.raw_rewards(sequences)
    model.save_pretrained(tmp_path / "rm")
    np.testing.assert_allclose(
        load_reward_model(str(tmp_path / "rm")).raw_rewards(sequences), raw, atol=1e-5
    )
    assert float((merged(model.model).score.weight - model.model.score.weight).abs().max()) == 0
    # The adapter with the head, over another head on the base, as peft loads it.
    new_reward_model(reference_folder, seed=9).save_pretrained(tmp_path / "base")
    save_adapter(model.model, tmp_path / "adapter", str(tmp_path / "base"), has_head=True)
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base")
    adapted = peft.PeftModel.from_pretrained(plain, tmp_path / "adapter").eval()
    with torch.no_grad():
        found = [
            adapted(input_ids=torch.as_tensor(s)[None]).logits.item()
            for s in sequences
        ]  # fmt: skip
    np.testing.assert_allclose(found, raw, atol=1e-5)
