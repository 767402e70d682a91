"""Pairs that are too long for a reward model: cut, left out or refused, and counted."""

from __future__ import annotations

import numpy as np
import pytest

from tokenenv.data import PreferencePair, read_pairs
from tokenenv.rewards import TokenPair, new_reward_model, truncated_pairs

# The word tokenizer: <bos> is 1, <eos> is 2, w4 is 4, …


@pytest.fixture(scope="module")
def model(reference_folder):
    return new_reward_model(reference_folder)


PAIRS = [
    PreferencePair("w4 w5 w6 w7", "w8 w9", "w10"),  # <bos> and 4, 2, <eos>: 8 tokens
    PreferencePair("w4", "w8", "w9", 0.5, 0.75),  # 4 tokens
    PreferencePair("w4 w5", "w8 w9 w10 w11 w12 w13", "w8"),  # 3 + 7
]


def listed(pairs):
    return [(pair.chosen.tolist(), pair.rejected.tolist()) for pair in pairs]


def test_too_long_pairs_keep_their_end(model):
    pairs, report = truncated_pairs(PAIRS, model, 6)
    assert listed(pairs) == [
        ([1, 6, 7, 8, 9, 2], [1, 6, 7, 10, 2]),
        ([1, 4, 8, 2], [1, 4, 9, 2]),
        ([1, 8, 9, 10, 11, 12], [1, 8, 2]),
    ]
    assert (pairs[1].margin, pairs[1].preference) == (0.5, 0.75)
    assert pairs[0].prompt == "w4 w5 w6 w7"  # it is still the same prompt to hold out
    assert report.as_dict() == {
        **{"limit": 6, "pairs": 3, "too_long": 2, "prompts_cut": 2, "responses_cut": 1},
        **{"dropped": 0, "longest": 10},
    }
    assert report.notes == [
        "2 of 3 pairs have a side of more than 6 tokens (the longest 10): 2 prompts lost their "
        "beginning, 1 pairs the end of a response."
    ]


def test_too_long_pairs_are_left_out_or_refused(model):
    pairs, report = truncated_pairs(PAIRS, model, 6, "drop")
    assert listed(pairs) == [([1, 4, 8, 2], [1, 4, 9, 2])] and report.dropped == 2
    assert report.notes == [
        "2 of 3 pairs have a side of more than 6 tokens (the longest 10) and were left out."
    ]
    with pytest.raises(ValueError, match=r"2 of 3 pairs .*the longest 10\).*--truncation keep-end"):
        truncated_pairs(PAIRS, model, 6, "error")
    with pytest.raises(ValueError, match="all 3 pairs are longer than 3 tokens"):
        truncated_pairs(PAIRS, model, 3, "drop")
    with pytest.raises(ValueError, match="truncation='start' must be one of 'keep-end', 'drop'"):
        truncated_pairs(PAIRS, model, 6, "start")


def test_pairs_that_fit_are_as_they_were(model):
    pairs, report = truncated_pairs(PAIRS, model, 10)
    encode = model.encode
    assert listed(pairs) == [
        (encode(p.prompt, p.chosen).tolist(), encode(p.prompt, p.rejected).tolist()) for p in PAIRS
    ]
    assert report.notes == [] and report.too_long == 0


def test_pairs_of_tokens_are_cut_at_what_both_sides_begin_with(model):
    pair = TokenPair(np.array([1, 4, 5, 6, 7, 2]), np.array([1, 4, 5, 8, 2]), "x")
    (cut,), _ = truncated_pairs([pair], model, 5)
    assert listed([cut]) == [([1, 5, 6, 7, 2], [1, 5, 8, 2])]


def test_the_limit_is_never_beyond_what_the_model_reads(model):
    """64 positions."""
    (pair,), report = truncated_pairs([PreferencePair("w4 " * 70, "w5", "w6")], model, 1000)
    assert len(pair.chosen) == 64 and report.limit == 64


def test_hardly_anything_of_hh_rlhf_is_thrown_away(shared):
    """Of the first 200 pairs more than half are longer than 128 tokens; none is left out."""
    file = shared / "data" / "hh-rlhf" / "harmless-base-test.jsonl.gz"
    model = new_reward_model(str(shared / "data" / "tinystories-656k"))
    pairs, report = truncated_pairs(read_pairs(file)[:200], model, 128)
    assert len(pairs) == 200 and report.dropped == 0
    assert report.prompts_cut == report.too_long > 100
    assert 0 < report.responses_cut < report.prompts_cut
    assert all(max(len(p.chosen), len(p.rejected)) <= 128 for p in pairs)
