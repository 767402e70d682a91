"""The models that ship with `reviews` are what their card says, and the build makes them."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open

from tokenenv.models.language_model import load_frozen
from tokenenv.rewards.scoring import EpisodeScorer
from tokenenv.tasks.reviews import FOLDER, TASK
from tokenenv.tasks.reviews.build import BuildSettings, build
from tokenenv.tasks.reviews.build.card import render_card
from tokenenv.tasks.reviews.build.measuring import (
    load_scorer,
    measure_cross_entropy,
    measure_reward_model,
    sample_episodes,
    sample_pairs,
)
from tokenenv.tasks.reviews.grammar import review_entropy

TINY = BuildSettings(
    hidden_size=16,
    layers=1,
    tokenizer_texts=500,
    lm_steps=40,
    lm_batch=16,
    held_out_reviews=50,
    pairs=120,
    held_out_pairs=60,
    reward_epochs=1,
    optimum_prompts=4,
    optimum_responses=8,
    proposals=2,
    proposal_rounds=1,
    proposal_prompts=4,
    workers=1,
)


@pytest.fixture(scope="module")
def card() -> dict[str, Any]:
    return json.loads((FOLDER / "card.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def scorer() -> EpisodeScorer:
    return load_scorer(FOLDER)


# --- the shipped files ------------------------------------------------------------------------


def test_shipped_files_are_small_and_safe():
    files = [file for file in FOLDER.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 4_000_000
    assert {file.suffix for file in files} == {".json", ".md", ".safetensors"}
    for model in ("reference", "reward_model"):
        with safe_open(FOLDER / model / "model.safetensors", "np") as weights:
            tensors = [weights.get_tensor(name) for name in weights.keys()]
        assert {tensor.dtype for tensor in tensors} == {np.dtype(np.float16)}
        assert sum(tensor.size for tensor in tensors) <= 1_000_000


def test_shipped_weights_are_readable_by_everyone():
    assert all(file.stat().st_mode & 0o444 == 0o444 for file in FOLDER.rglob("*.safetensors"))


def test_tokenizer(card):
    reference = load_frozen(TASK.reference)
    tokenizer = reference.tokenizer
    assert len(tokenizer) == card["reference"]["vocabulary_size"] <= 512
    assert reference.vocabulary_size == len(tokenizer)
    assert tokenizer.bos_token_id is not None
    assert reference.eos_token_ids == (tokenizer.eos_token_id,)
    assert tokenizer.pad_token_id not in (None, tokenizer.eos_token_id)
    for text in ("I saw this film last night. The", "été 影 \x00\n  x"):
        ids = reference.encode(text)
        assert ids[0] == tokenizer.bos_token_id
        assert reference.decode(ids) == text


def test_prompts_fit_the_task():
    reference = load_frozen(TASK.reference)
    for split in ("train", "eval"):
        longest = max(len(reference.encode(prompt)) for prompt in TASK.prompts(split))
        assert longest <= TASK.max_prompt_tokens
    limit = reference.model.config.max_position_embeddings
    assert TASK.max_prompt_tokens + TASK.max_new_tokens <= limit


def test_models_have_the_size_on_the_card(card):
    assert load_frozen(TASK.reference).model.num_parameters() == card["reference"]["parameters"]
    assert card["reference"]["parameters"] <= 1_000_000


def test_readme_is_the_card_as_text(card):
    assert (FOLDER / "README.md").read_text(encoding="utf-8") == render_card(card)


# --- what the card says, measured again -------------------------------------------------------


def test_cross_entropy_on_fresh_reviews(card):
    said = card["reference"]
    found = measure_cross_entropy(load_frozen(TASK.reference), 1_500, np.random.default_rng(101))
    assert said["grammar_entropy_per_review"] == pytest.approx(review_entropy(), abs=1e-9)
    for one in (said, found):
        assert 1.0 <= one["cross_entropy_over_entropy"] <= 1.05
        # the control variate and the plain mean estimate the same
        error = math.hypot(
            one["cross_entropy_standard_error"], one["cross_entropy_plain_standard_error"]
        )
        gap = one["cross_entropy_plain_mean"] - one["cross_entropy_per_review"]
        assert abs(gap) < 4 * error
    error = math.hypot(said["cross_entropy_standard_error"], found["cross_entropy_standard_error"])
    gap = said["cross_entropy_per_review"] - found["cross_entropy_per_review"]
    assert abs(gap) < 4 * error


def transformed_correlation_error(scores: Any) -> float:
    """Of artanh of the correlation of score and gold reward: its standard error, by bootstrap."""
    rng, count = np.random.default_rng(0), len(scores.score)
    both = np.stack([scores.score, scores.gold_reward])
    drawn = [np.corrcoef(both[:, rng.integers(count, size=count)])[0, 1] for _ in range(500)]
    return float(np.arctanh(drawn).std())


@pytest.mark.slow
def test_reward_model_on_fresh_pairs(card, scorer):
    said = card["reward_model"]
    pairs = sample_pairs(FOLDER, "eval", 800, said["annotator_sharpness"], seed=102)
    episodes = sample_episodes(FOLDER, "eval", 800, seed=103)
    found = measure_reward_model(scorer, pairs, episodes)
    error = math.hypot(said["accuracy_standard_error"], found["accuracy_standard_error"])
    assert abs(found["accuracy"] - said["accuracy"]) < 4 * error
    assert abs(found["accuracy"] - found["expected_accuracy"]) < 4 * error
    assert abs(found["bayes_accuracy"] - said["bayes_accuracy"]) < 4 * 0.15 / math.sqrt(800)
    # Fisher's transformation; its 1/√(n − 3) is for normal variables, and the error of these scores
    # is three times that, by the bootstrap.
    gap = math.atanh(found["correlation_with_gold"]) - math.atanh(said["correlation_with_gold"])
    assert abs(gap) < 4 * transformed_correlation_error(scorer.score(episodes))
    assert abs(found["reference_gold_mean"] - said["reference_gold_mean"]) < 4 * 0.5 / math.sqrt(
        800
    )


def test_reward_model_is_nearly_as_good_as_can_be(card):
    said = card["reward_model"]
    assert 0.80 <= said["bayes_accuracy"] <= 0.95
    ratio = (said["accuracy"] - 0.5) / (said["bayes_accuracy"] - 0.5)
    assert said["accuracy_over_bayes"] == pytest.approx(ratio)
    assert ratio >= 0.9
    assert said["expected_accuracy"] <= said["bayes_accuracy"]
    assert said["correlation_with_gold"] > 0.9


def test_scores_of_the_reference_are_normalised(scorer):
    scores = scorer.score(sample_episodes(FOLDER, "train", 1_500, seed=104)).score
    assert abs(scores.mean()) < 4 * math.sqrt(1 / 1_500 + 1 / 5_000)
    # the deviation of a sample deviation, with room for heavy tails
    assert abs(scores.std() - 1.0) < 4 * math.sqrt(1 / 1_500 + 1 / 5_000)


def test_optimum_is_well_above_the_reference(card):
    said = card["optimum"]
    assert said["kl_coef"] == TASK.kl_coef
    assert len(said["bounds_by_seed"]) >= 3
    assert np.ptp(said["bounds_by_seed"]) < 0.08
    assert min(said["effective_sample_size"]) > 0.15
    assert all(own < said["optimum_lower_bound"] for own in said["proposal_objectives"])
    gain = said["optimum_lower_bound"] - said["objective_reference"]
    assert gain >= card["reward_model"]["reference_score_std"]
    assert said["optimum_gold"] - said["reference_gold"] >= 0.45


# --- the build --------------------------------------------------------------------------------


def _files(folder: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


@pytest.mark.slow
def test_a_tiny_build_is_deterministic(tmp_path):
    start = time.process_time()
    first = build(tmp_path / "one", TINY)
    assert time.process_time() - start < 20
    second = build(tmp_path / "two", TINY)
    assert first == second
    assert json.loads((tmp_path / "one" / "card.json").read_text(encoding="utf-8")) == first
    one, two = _files(tmp_path / "one"), _files(tmp_path / "two")
    assert one.keys() == two.keys() == _files(FOLDER).keys()
    assert one == two
    scorer = load_scorer(tmp_path / "one")
    scores = scorer.score(sample_episodes(tmp_path / "one", "eval", 4, seed=0))
    assert np.isfinite(scores.score).all()


@pytest.mark.slow
@pytest.mark.long
def test_full_build_reaches_the_targets(tmp_path):
    built = build(tmp_path)
    assert built["reference"]["cross_entropy_over_entropy"] < 1.05
    assert built["reward_model"]["accuracy_over_bayes"] >= 0.9
    gain = built["optimum"]["optimum_lower_bound"] - built["optimum"]["objective_reference"]
    assert gain >= built["reward_model"]["reference_score_std"]
