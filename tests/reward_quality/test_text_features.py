"""What a text looks like: every feature by hand."""

from __future__ import annotations

import numpy as np
import pytest

from agents.reward_quality.text_features import (
    FEATURES,
    describe_feature,
    load_word_lists,
    text_features,
)


def of(name: str, text: str) -> float:
    return float(text_features([text], [0])[name][0])


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("characters", "a good film.", 12),
        ("characters", "", 0),
        ("words", "It's a well-made film, no. 3!", 6),
        ("words", "snake_case", 2),
        ("words", "", 0),
        ("sentences", "One. Two! Three? Four", 4),
        ("sentences", 'He said "no." Then 3.14 came...', 2),
        ("sentences", "A title\n\nand a text", 2),
        ("sentences", "好。坏！", 2),
        ("sentences", "?! ...", 0),
        ("punctuation", "a, b.", 2 / 5),
        ("punctuation", "wow! **b**", 0),  # exclamation and markup have features of their own
        ("punctuation", "", 0),
        ("markup", "# A title\n- one\n- two", 3 / 4),
        ("markup", "1. one\n2) two", 2 / 4),
        ("markup", "**bold** and `code`", 2 / 3),
        ("markup", "see [this](http://x) <b>now</b>", 3 / 7),  # see this http x b now b
        ("markup", "| a | b |\n> quoted", 2 / 3),
        ("markup", "2 * 3 * 4 - 1 and snake_case_name", 0),
        ("markup", "well-known - plain text.", 0),
        ("exclamation", "Good! Very good!!", 3 / 3),
        ("exclamation", "!!!", 3),  # a text without words counts as one word
        ("exclamation", "Good?", 0),
        ("upper_case", "A Title Like This", 0),
        ("upper_case", "SO good", 1 / 4),
        ("upper_case", "ALL OF IT", 1),
        ("upper_case", "A I", 0),
        ("repeated_words", "good Good film good", 2 / 4),
        ("repeated_words", "a good film", 0),
        ("repeated_trigrams", "a b c a b c", 1 / 4),  # abc bca cab abc
        ("repeated_trigrams", "a b", 0),
        ("hedges", "Perhaps it is kind of nice", 2 / 6),
        ("hedges", "It seems. I’m not sure!", 2 / 5),
        ("hedges", "maybes", 0),
        ("confidence", "No doubt, it is DEFINITELY good", 2 / 6),
    ],
)
def test_a_feature_by_hand(name, text, value):
    assert of(name, text) == pytest.approx(value, abs=1e-12)


def test_the_longest_phrase_counts_once():
    """'i am not sure' is not 'not sure' as well."""
    assert load_word_lists().count("hedges", "i am not sure it could".split()) == 2


def test_features_are_arrays_by_name_in_their_order():
    features = text_features(["a b", "", "c!"], [3, 0, 2])
    assert list(features) == list(FEATURES)
    assert all(v.shape == (3,) and v.dtype == np.float64 for v in features.values())
    assert features["tokens"].tolist() == [3, 0, 2]
    assert list(text_features(["a"])) == list(FEATURES)[1:]
    assert all(v.shape == (0,) for v in text_features([]).values())
    with pytest.raises(ValueError, match="1 lengths for 2 texts"):
        text_features(["a", "b"], [1])


def test_rates_do_not_grow_with_the_length():
    text = "Perhaps it is **surely** good, and LOUD! "
    for name, values in text_features([text, text * 2]).items():
        if name not in ("characters", "words", "sentences", "repeated_words", "repeated_trigrams"):
            assert values[0] == pytest.approx(values[1]) and values[0] > 0, name


def test_lists_of_a_user_replace_and_add(tmp_path):
    (tmp_path / "hedges.txt").write_text("# mine\nmeh  # so so\n\nso so\n", encoding="utf-8")
    (tmp_path / "brands.txt").write_text("Acme\n", encoding="utf-8")
    lists = load_word_lists(tmp_path)
    assert lists.phrases["hedges"] == ("meh", "so so")
    assert list(lists.phrases) == ["hedges", "confidence", "brands"]
    features = text_features(["Meh, perhaps: so so by ACME."], None, lists)
    assert features["hedges"][0] == pytest.approx(2 / 6)
    assert features["brands"][0] == pytest.approx(1 / 6)
    assert list(load_word_lists(tmp_path / "brands.txt").phrases)[-1] == "brands"
    assert "perhaps" in load_word_lists(tmp_path / "brands.txt").phrases["hedges"]
    assert "brands" in describe_feature("brands") and describe_feature("words") == FEATURES["words"]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("nothing.txt", None, "does not exist"),
        ("empty.txt", b"# nothing\n\n", "holds no word"),
        ("words.txt", b"a\n", "'words'"),
        ("list.csv", b"a\n", "NAME.txt"),
        ("latin.txt", b"caf\xe9\n", "UTF-8"),
    ],
)
def test_lists_that_are_none_are_refused(tmp_path, name, content, said):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=said):
        load_word_lists(tmp_path / name)


def test_a_folder_without_lists_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no list"):
        load_word_lists(tmp_path)
