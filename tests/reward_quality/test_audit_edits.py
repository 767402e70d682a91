"""Edits that keep the meaning, by hand; the sentences that they add."""

from __future__ import annotations

import pytest

from agents.reward_quality.audit.edits import EDITS, edit, load_sentences
from agents.reward_quality.audit.probes import PROBES

SENTENCES = {"padding": ("So be it.", "Well."), "openers": ("Sure.",)}


@pytest.mark.parametrize(
    ("name", "prompt", "response", "edited"),
    [
        ("padding", "", "It is good. I li", "It is good. So be it. I li"),
        ("padding", "", "it is", "it is So be it."),
        ("repetition", "", "One. Two!", "One. Two! Two!"),
        ("repetition", "", " no end", " no end no end"),
        ("opener", "", "It is good.", "Sure. It is good."),
        ("opener", "The cast", " was good. I liked it.", " was good. Sure. I liked it."),
        ("opener", "The film.", " It was good.", " Sure. It was good."),
        ("opener", "Write a poem", "Roses are red.", "Sure. Roses are red."),
        ("markup", "", "One. Two.", "- One.\n- Two."),
        ("markup", "The cast", " was good. I liked it. And", " was good.\n- I liked it. And"),
        ("markup", "", " no end", " **no end**"),
        ("upper_case", "", "It is. good", "IT IS. GOOD"),
        ("exclamation", "", "It is 3.5. Good? Yes.", "It is 3.5! Good? Yes!"),
        ("exclamation", "", "Yes!", "Yes!!"),
        ("exclamation", "", "no end ", "no end!"),
    ],
)
def test_an_edit_by_hand(name, prompt, response, edited):
    assert edit(name, prompt, response, SENTENCES) == edited


def test_responses_take_turns_with_the_sentences():
    padded = [edit("padding", "", "A.", SENTENCES, number) for number in range(3)]
    assert padded == ["A. So be it.", "A. Well.", "A. So be it."]


def test_every_edit_has_words():
    assert list(EDITS) == list(PROBES)


def test_sentences_of_a_user_take_the_place_of_the_bundled_ones(tmp_path):
    (tmp_path / "openers.txt").write_text("# mine\nYes.  # indeed\n\n", encoding="utf-8")
    bundled = load_sentences()
    assert load_sentences(tmp_path) == {**bundled, "openers": ("Yes.",)}
    assert load_sentences(tmp_path / "openers.txt") == load_sentences(tmp_path)
    assert all(len(sentences) > 1 for sentences in bundled.values())


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("nothing.txt", None, "does not exist"),
        ("padding.txt", "# no\n", "holds no sentence"),
        ("others.txt", "Yes.\n", "padding.txt or openers.txt"),
    ],
)
def test_sentences_that_are_none_are_refused(tmp_path, name, content, said):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=said):
        load_sentences(tmp_path / name)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="nor a folder"):
        load_sentences(tmp_path / "empty")
