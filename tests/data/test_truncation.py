"""What is cut of too long prompts and pairs, by hand arithmetic."""

from __future__ import annotations

import numpy as np
import pytest

from tokenenv.data import truncate_pair, truncate_prompt

BOS = 1


def ids(*values):
    return np.array(values, dtype=np.int64)


@pytest.mark.parametrize(
    ("prompt", "limit", "expected"),
    [
        ([BOS, 5, 6, 7], 4, [BOS, 5, 6, 7]),
        ([BOS, 5, 6, 7], 3, [BOS, 6, 7]),  # BOS, and the last two
        ([BOS, 5, 6, 7], 1, [BOS]),
        ([BOS, 5, 6, 7], 0, []),
        ([5, 6, 7], 2, [6, 7]),  # without a BOS, the last two
        ([5, BOS, 7], 2, [BOS, 7]),  # one that stands elsewhere is a token like any other
        ([], 3, []),
    ],
)
def test_a_prompt_loses_its_beginning_behind_bos(prompt, limit, expected):
    assert truncate_prompt(ids(*prompt), limit, BOS).tolist() == expected


def test_a_prompt_of_a_tokenizer_without_bos():
    assert truncate_prompt(ids(5, 6, 7), 2).tolist() == [6, 7]


@pytest.mark.parametrize(
    ("limit", "prompt", "chosen", "rejected", "lost"),
    [
        # prompt 4, chosen 3, rejected 2: 7 are needed at most
        (7, [BOS, 5, 6, 7], [8, 9, 2], [8, 2], (0, 0)),
        # 6 − 3 = 3 are left for the prompt: BOS and the last two, before both responses
        (6, [BOS, 6, 7], [8, 9, 2], [8, 2], (1, 0)),
        # 4 − 3 = 1: BOS alone
        (4, [BOS], [8, 9, 2], [8, 2], (3, 0)),
        # 3 − 3 = 0, but BOS stays: of the longer response 2 tokens fit, and it has no EOS then
        (3, [BOS], [8, 9], [8, 2], (3, 1)),
        (2, [BOS], [8], [8], (3, 3)),
    ],
)
def test_a_response_loses_its_end_only_where_it_must(limit, prompt, chosen, rejected, lost):
    cut = truncate_pair(ids(BOS, 5, 6, 7), ids(8, 9, 2), ids(8, 2), limit, BOS)
    assert cut.prompt.tolist() == prompt
    assert (cut.chosen.tolist(), cut.rejected.tolist()) == (chosen, rejected)
    assert (cut.lost_of_prompt, cut.lost_of_responses) == lost


def test_a_pair_without_a_prompt_loses_the_end_of_its_responses():
    cut = truncate_pair(ids(), ids(8, 9, 2), ids(8, 2), 2)
    assert (cut.chosen.tolist(), cut.rejected.tolist()) == ([8, 9], [8, 2])
    assert (cut.lost_of_prompt, cut.lost_of_responses) == (0, 1)
