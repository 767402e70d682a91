"""Masks: what each rule allows, which rule is stronger, and that something is always left."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch
from support.grammar_sentences import enumerate_sentences

import tokenenv  # noqa: F401  (registers the ids)
from tokenenv.tasks import load_task
from tokenenv.tasks.reviews.grammar import (
    ASPECTS,
    GROUP_OF,
    enumerate_openings,
    sample_review,
)
from tokenenv.tasks.reviews.parsing import begins_review, parse_review
from tokenenv.wrappers import ActionMask, HiddenStateObservation, TopKActions
from tokenenv.wrappers.mask_rules import top_p_mask

EOS, V = 2, 40
NOTES = ["do", "re", "mi", "fa", "sol"]


def masked(settings, **rules):
    return ActionMask(gym.make("TokenRLHF-v0", **settings), **rules)


def probabilities(env):
    mdp = env.unwrapped.mdp
    return mdp.reference_decoder.log_probs(mdp.episodes.observations)[0].double().exp().numpy()


# Rules --------------------------------------------------------------------------------------------


def test_without_rules_everything_is_allowed_and_info_says_the_same(settings):
    env = masked(settings)
    _, info = env.reset(seed=0)
    assert env.action_masks().dtype == bool and env.action_masks().shape == (V,)
    assert info["action_mask"].dtype == np.int8 and info["action_mask"].all()
    assert env.action_masks().all()


@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.9])
def test_top_p_keeps_the_fewest_likeliest_tokens_that_hold_p(settings, top_p):
    env = masked(settings, top_p=top_p)
    _, info = env.reset(options={"prompt": "w4 w5"})
    for token in (9, 12, 30):
        probs, mask = probabilities(env), env.action_masks()
        np.testing.assert_array_equal(info["action_mask"], mask)
        assert probs[mask].sum() >= top_p > probs[mask].sum() - probs[mask].min()
        assert probs[mask].min() >= probs[~mask].max()
        info = env.step(token)[4]


def test_top_p_of_ties_and_of_what_is_allowed():
    log_probs = torch.tensor([[0.2, 0.2, 0.2, 0.2, 0.2]]).log()
    everything = np.ones((1, 5), dtype=bool)
    for top_p, count in ((0.1, 1), (0.35, 2), (0.55, 3), (1.0, 5)):
        found = top_p_mask(log_probs, everything, top_p)[0].tolist()
        assert found == [True] * count + [False] * (5 - count)
    log_probs = torch.tensor([[0.97, 0.02, 0.01, 1e-30]]).log()
    allowed = np.array([[False, True, True, True]])  # 0.02 is two thirds of what is allowed
    assert top_p_mask(log_probs, allowed, 0.6).tolist() == [[False, True, False, False]]
    assert top_p_mask(log_probs, allowed, 0.7).tolist() == [[False, True, True, False]]
    only = np.array([[False, False, False, True]])
    assert top_p_mask(log_probs, only, 0.01).tolist() == only.tolist()


def test_forbidden_tokens_never_come_and_top_p_counts_the_others(settings):
    likeliest = masked(settings, top_p=1e-6)
    likeliest.reset(options={"prompt": "w4 w5"})
    first = int(np.flatnonzero(likeliest.action_masks())[0])
    env = masked(settings, top_p=1e-6, forbid=[first])
    env.reset(options={"prompt": "w4 w5"})
    probs = probabilities(env)
    probs[first] = 0.0
    assert np.flatnonzero(env.action_masks()).tolist() == [probs.argmax()]


def test_forced_tokens_come_at_their_position_and_nowhere_else(settings):
    env = masked(settings, force={1: 9, -1: EOS}, top_p=0.5)
    env.reset(seed=0)
    allowed = []
    for token in (30, 9, 12, 13, EOS):
        allowed.append(np.flatnonzero(env.action_masks()).tolist())
        assert token in allowed[-1] or len(allowed[-1]) > 1
        info = env.step(token)[4]
    assert allowed[1] == [9] and allowed[4] == [EOS]
    assert min(len(allowed[i]) for i in (0, 2, 3)) > 1
    assert info["finish_reason"] == "stop"


def test_top_p_spares_eos_at_the_last_position_only(settings):
    env, strict = masked(settings, top_p=1e-6), masked(settings, top_p=1e-6, forbid=[EOS])
    for e in (env, strict):
        e.reset(options={"prompt": "w4 w5"})
    for position in range(5):
        likeliest = {int(probabilities(env).argmax())}
        assert set(np.flatnonzero(env.action_masks())) == likeliest | (
            {EOS} if position == 4 else set()
        )
        assert not strict.action_masks()[EOS] and strict.action_masks().sum() == 1
        env.step(9)
        strict.step(9)


def test_where_an_episode_has_ended_all_actions_are_shown(settings):
    env = masked(settings, top_p=0.1, forbid=[5])
    env.reset(seed=0)
    info = env.step(EOS)[4]
    assert info["action_mask"].all() and env.action_masks().all()


def test_masks_are_fresh_and_sampled_actions_keep_to_them(settings):
    env = masked(settings, top_p=0.3)
    _, info = env.reset(seed=0)
    env.action_masks()[:] = False
    assert env.action_masks().any()
    env.action_space.seed(0)
    for _ in range(60):
        action = env.action_space.sample(info["action_mask"])
        assert env.action_masks()[action]
        _, _, terminated, _, info = env.step(action)
        if terminated:
            _, info = env.reset()


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"top_p": 0.0}, r"top_p=0.0 must lie in 0 < p ≤ 1"),
        ({"top_p": 1.5}, r"top_p=1.5 must lie in"),
        ({"top_p": "0.9"}, r"top_p='0.9' must lie in"),
        ({"forbid": [40]}, r"forbid has 40: allowed are the token ids 0 … 39"),
        ({"forbid": ["w4"]}, r"forbid has 'w4'"),
        ({"forbid": range(40)}, r"forbid names 40 tokens, the whole vocabulary.*at most 39"),
        ({"force": {5: 9}}, r"force has position 5: allowed are 0 … 4"),
        ({"force": {0: -1}}, r"force has -1: allowed"),
        ({"force": {0: 9}, "forbid": [9]}, r"token 9 is both in force and in forbid"),
        ({"grammar": True}, r"the grammar of task='reviews' judges .* the task's prompts"),
    ],
    ids=str,
)
def test_rules_that_can_not_be_used_are_refused(settings, rules, message):
    with pytest.raises(ValueError, match=message):
        masked(settings, **rules)


# On TopKActions -----------------------------------------------------------------------------------


@pytest.mark.parametrize("make", ["wrappers", "id"])
def test_masks_on_top_k_are_over_its_actions(settings, make):
    if make == "id":
        inner = gym.make("TokenRLHF-Features-TopK-v0", k=8, **settings)
    else:
        inner = TopKActions(gym.make("TokenRLHF-v0", **settings), k=8)
        inner = HiddenStateObservation(inner)
    env = ActionMask(inner, forbid=[9, 12, 30], top_p=0.6)
    _, info = env.reset(seed=1)
    tokens_of = env.get_wrapper_attr("action_tokens")
    seen_forbidden = 0
    for _ in range(60):
        tokens, mask = tokens_of(), env.action_masks()
        assert mask.shape == info["action_mask"].shape == (8,)
        is_free = ~np.isin(tokens, [9, 12, 30])
        seen_forbidden += int((~is_free).sum())
        probs = probabilities(env)[tokens] * is_free
        probs /= probs.sum()
        count = int((np.cumsum(probs[is_free]) < 0.6).sum()) + 1
        spared = (tokens == EOS) & (env.unwrapped.mdp.episodes.response_lengths[0] == 4)
        expected = np.isin(np.arange(8), np.flatnonzero(is_free)[:count]) | (spared & is_free)
        np.testing.assert_array_equal(mask, expected)
        action = int(np.flatnonzero(mask)[-1])
        _, _, terminated, _, info = env.step(action)
        if terminated:
            assert info["action_mask"].tolist() == [1] * 8
            _, info = env.reset()
    assert seen_forbidden > 0


def test_on_top_k_what_could_leave_nothing_is_refused(settings):
    inner = TopKActions(gym.make("TokenRLHF-v0", **settings), k=3)
    with pytest.raises(ValueError, match=r"as many as the k=3 likeliest.*at most 2"):
        ActionMask(inner, forbid=[4, 5, 6])
    with pytest.raises(ValueError, match=r"may not be among the k likeliest"):
        ActionMask(inner, force={0: 9})
    env = ActionMask(inner, forbid=[4, 5])
    env.reset(seed=0)
    assert env.action_masks().any()


# Grammars -----------------------------------------------------------------------------------------


def test_the_exact_grammar_waits_for_an_answer_and_then_allows_everything():
    env = ActionMask(gym.make("TokenRLHF-Exact-v0"), grammar=True)
    env.reset(seed=0)
    assert env.action_masks().tolist() == [True] * 5 + [False]
    env.step(2)
    for _ in range(4):
        assert env.action_masks().all()
        env.step(3)
    assert env.action_masks().all()


def test_a_grammar_that_allows_nothing_that_is_left_is_not_heard():
    """Nothing but EOS is left at the first position, where the grammar wants a note."""
    env = ActionMask(gym.make("TokenRLHF-Exact-v0"), grammar=True, forbid=range(5))
    env.reset(seed=0)
    assert env.action_masks().tolist() == [False] * 5 + [True]


def test_masked_random_play_writes_grammatical_reviews_and_nothing_else():
    env = ActionMask(gym.make("TokenRLHF-v0"), grammar=True, top_p=0.99)
    rng, whole = np.random.default_rng(0), 0
    for seed in range(4):
        _, info = env.reset(seed=seed)
        prompt, terminated = info["prompt"], False
        while not terminated:
            action = int(rng.choice(np.flatnonzero(env.action_masks())))
            _, _, terminated, _, info = env.step(action)
        text = prompt + info["response"]
        assert begins_review(text)
        if info["finish_reason"] == "stop":
            whole += 1
            assert parse_review(text).is_grammatical
    assert whole >= 2


def test_grammatical_tokens_of_reviews_are_the_beginnings_that_the_grammar_has():
    env = ActionMask(gym.make("TokenRLHF-v0"), grammar=True)
    env.reset(options={"prompt": "I saw this film last night. The plot was"})
    language_model = env.unwrapped.mdp.language_model
    starts = [s.text for s in enumerate_sentences("plot") if s.text.startswith("The plot was")]
    allowed = {language_model.tokenizer.decode([t]) for t in np.flatnonzero(env.action_masks())}
    assert {" good", " not", " very", " awful", " "} <= allowed | {" "}
    for token in allowed:
        assert any(text.startswith("The plot was" + token) for text in starts), token
    assert not env.action_masks()[env.unwrapped.mdp.episodes.is_eos].any()


def test_begins_review_agrees_with_the_enumerated_grammar(rng):
    openings = [text for text, _ in enumerate_openings()]
    sentences = {aspect: [s.text for s in enumerate_sentences(aspect)] for aspect in ASPECTS}
    reviews = [sample_review(rng) for _ in range(240)]
    number = {True: 0, False: 0}
    for review in reviews:
        assert all(begins_review(review[:end]) for end in range(len(review) + 1))
        cut = int(rng.integers(len(review)))
        letter = "abcdefghiklmnoprstuvwy .ITWMOSLT"[int(rng.integers(32))]
        text = review[:cut] + letter
        *whole, last = text.split(". ") if ". " in text else [text]
        groups = [GROUP_OF[a] for w in whole[1:] for a in ASPECTS if w + "." in sentences[a]]
        if not whole:
            expected = any(o.startswith(text) or o + " " == text for o in openings)
        else:
            expected = len(groups) < 3 and any(
                s.startswith(last)
                for a in ASPECTS
                if GROUP_OF[a] not in groups
                for s in sentences[a]
            )
        if not text.endswith(" ") or not whole:
            assert begins_review(text) == expected, text
            number[expected] += 1
    assert min(number.values()) > 5
    for text in (
        "The plot was good.",
        "I saw this film last night. .",
        "I saw this film last night..",
    ):
        assert not begins_review(text)
    twice = "I saw this film last night. The plot was good. I liked the pace."
    assert not begins_review(twice) and begins_review(twice[:-6])
    assert not begins_review(twice[:-1]), "plot and pace are one side of the film"
    four = twice[:46] + " The cast was good. The music was good. I"
    assert not begins_review(four) and begins_review(four[:-2])


def test_the_tasks_grammars_judge_whole_and_unfinished_texts():
    exact, reviews = load_task("exact").grammar, load_task("reviews").grammar
    assert exact("do", "", False) and not exact("do", "", True)
    assert exact("do", "sol mi", True) and not exact("do", "sol la", False)
    opening = "I saw this film last night."
    assert reviews(opening, " The plot was good.", True)
    assert reviews(opening, " The plot was", False) and not reviews(opening, " The plot was", True)
    assert not reviews(opening, "The plot", False)
