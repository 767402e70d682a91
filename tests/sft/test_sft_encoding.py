"""What of an example is read, what is learned, and what is cut."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from support.chat import CHATML, LLAMA, MISTRAL, chat_tokenizer
from support.models import small_model, word_tokenizer

from agents.sft.encoding import encode_examples
from tokenenv.data import Example
from tokenenv.models import LanguageModel

BOS, EOS = 1, 2


def model_of(tokenizer: Any, ends: tuple[int, ...] = (EOS,)) -> LanguageModel:
    return LanguageModel("small", small_model("llama"), tokenizer, ends)


def without_bos() -> Any:
    tokenizer = word_tokenizer()
    tokenizer.backend_tokenizer.post_processor = None
    return tokenizer


def sequences(*examples: Example, model: LanguageModel | None = None, **how: Any) -> list[tuple]:
    made = encode_examples(examples, model or model_of(word_tokenizer()), **how)
    return [(e.prefix.tolist(), e.targets.tolist()) for e in made.examples]


def words(first: int, count: int) -> str:
    return " ".join(f"w{i}" for i in range(first, first + count))


def test_a_response_is_learned_with_its_eos_and_the_prompt_is_read():
    assert sequences(Example("w4 w5", "w6")) == [([BOS, 4, 5], [6, EOS])]
    assert sequences(Example("w4", "")) == [([BOS, 4], [EOS])]
    assert sequences(Example("w4", "w6 <eos>")) == [([BOS, 4], [6, EOS])]  # once


def test_a_document_is_learned_from_its_first_token_where_there_is_a_bos():
    assert sequences(Example("", "w6 w7")) == [([BOS], [6, 7, EOS])]
    model = model_of(without_bos())
    assert sequences(Example("", "w6 w7"), model=model) == [([6], [7, EOS])]
    assert sequences(Example("", "w6"), Example("w4", "w5"), model=model) == [
        ([6], [EOS]),
        ([4], [5, EOS]),
    ]


def test_an_example_in_which_nothing_can_be_learned_is_left_out_and_counted():
    model = model_of(without_bos())
    made = encode_examples([Example("", ""), Example("w4", "w5")], model)
    assert len(made.examples) == 1 and made.report.without_target == 1
    assert any("no token to learn" in note for note in made.report.notes)
    with pytest.raises(ValueError, match="none of the 1 examples"):
        encode_examples([Example("", "")], model)


def test_a_long_prompt_loses_its_beginning_and_a_long_response_its_end_and_eos():
    how = {"max_tokens": 6}
    made = encode_examples(
        [
            Example(words(4, 9), "w20 w21"),
            Example("w4", words(20, 9)),
            Example("w4", "w5"),
            Example("w4", words(20, 4)),
        ],
        model_of(word_tokenizer()),
        **how,
    )
    found = [(e.prefix.tolist(), e.targets.tolist()) for e in made.examples]
    assert found == [
        ([BOS, 11, 12], [20, 21, EOS]),
        ([BOS], [20, 21, 22, 23, 24]),
        ([BOS, 4], [5, EOS]),
        ([BOS], [20, 21, 22, 23, EOS]),
    ]
    report = made.report
    assert (report.too_long, report.prompts_cut, report.responses_cut) == (3, 3, 1)
    assert report.longest == 1 + 9 + 3 and report.limit == 6
    assert "3 of 4 examples have more than 6 tokens" in report.notes[0]


def test_long_examples_are_dropped_or_refused_on_demand():
    long, short = Example(words(4, 9), "w20 w21"), Example("w4", "w5")
    assert sequences(long, short, max_tokens=6, truncation="drop") == [([BOS, 4], [5, EOS])]
    with pytest.raises(ValueError, match="1 of 2 examples have more than 6 tokens"):
        sequences(long, short, max_tokens=6, truncation="error")
    with pytest.raises(ValueError, match="none of the 1 examples"):
        sequences(long, max_tokens=6, truncation="drop")
    with pytest.raises(ValueError, match="truncation='x'"):
        sequences(short, truncation="x")


@pytest.mark.parametrize("tokenizer", [word_tokenizer(), without_bos()])
def test_a_long_document_is_learned_in_pieces_every_token_once(tokenizer):
    model = model_of(tokenizer)
    made = encode_examples([Example("", words(4, 20)), Example("", "w5 w6")], model, max_tokens=6)
    pieces = [e for e in made.examples if e.group == 0]
    learned = np.concatenate([e.targets for e in pieces]).tolist()
    whole = [*range(4, 24), EOS]
    assert learned == (whole if pieces[0].prefix[0] == BOS else whole[1:])
    assert all(len(piece) <= 6 for piece in pieces)
    assert all(
        after.prefix.tolist() == before.targets[-1:].tolist()
        for before, after in itertools.pairwise(pieces)
    )
    assert made.report.documents_split == 1 and made.examples[-1].group == 1


def test_the_limit_is_that_of_the_model_where_none_is_lower():
    made = encode_examples([Example("w4", "w5")], model_of(word_tokenizer()), max_tokens=10**6)
    assert made.report.limit == 64


def test_what_the_tokenizer_does_not_know_is_counted():
    made = encode_examples([Example("w4", "w5 zebra")], model_of(word_tokenizer()))
    assert made.report.unknown_tokens == 1 and "<unk>" in " ".join(made.report.notes)
    made = encode_examples([Example("w4", "w5 <eos> w6")], model_of(word_tokenizer()))
    assert made.report.early_ends == 1


def test_a_tokenizer_of_another_model_is_refused():
    tokenizer = word_tokenizer()
    tokenizer.add_tokens(["w99"])
    with pytest.raises(ValueError, match="belongs to another model"):
        sequences(Example("w4", "w99"), model=model_of(tokenizer))


def test_examples_with_one_prompt_are_one_group():
    made = encode_examples(
        [Example("w4", "w5"), Example("w6", "w5"), Example("w4", "w7"), Example("", "w4")],
        model_of(word_tokenizer()),
    )
    assert [e.group for e in made.examples[:3]] == [0, 1, 0]


# Conversations ------------------------------------------------------------------------------------

USER = {"role": "user", "content": "w4"}


def turn(content: str) -> dict[str, str]:
    return {"role": "assistant", "content": content}


@pytest.mark.parametrize(
    ("template", "end"), [(CHATML, "<|im_end|>"), (LLAMA, "<|eot|>"), (MISTRAL, "<eos>")]
)
def test_a_conversation_is_what_the_template_writes_and_ends_with_its_turn(template, end):
    tokenizer = chat_tokenizer(template)
    ends = (EOS, tokenizer.convert_tokens_to_ids(end))
    model = model_of(tokenizer, ends)
    ((prefix, targets),) = sequences(Example((USER,), "w9 w10"), model=model)
    assert targets == [9, 10, ends[-1]]
    whole = tokenizer.apply_chat_template([USER, turn("w9 w10")], tokenize=False)
    ids = tokenizer(whole, add_special_tokens=False)["input_ids"]
    assert [BOS, *ids][ids[0] == BOS :] == prefix + targets


def test_every_turn_of_the_assistant_is_learned_after_all_before_it():
    tokenizer = chat_tokenizer(CHATML)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    response = (turn("w9"), {"role": "user", "content": "w5"}, turn("w10"))
    made = encode_examples([Example((USER,), response)], model_of(tokenizer, (EOS, end)))
    first, second = made.examples
    assert (first.targets.tolist(), second.targets.tolist()) == ([9, end], [10, end])
    history = tokenizer.apply_chat_template(
        [USER, *response[:2]], tokenize=False, add_generation_prompt=True
    )
    assert second.prefix.tolist() == tokenizer(history)["input_ids"]
    assert made.report.turns == 1 and first.group == second.group


def test_an_answer_is_learned_with_the_spaces_that_the_template_writes():
    trims = CHATML.replace("m['content']", "(m['content'] | trim)")
    tokenizer = chat_tokenizer(trims)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    model = model_of(tokenizer, (EOS, end))
    made = encode_examples([Example((USER,), "  w9 ")], model)
    assert made.examples[0].targets.tolist() == [9, end] and not made.report.rewritten
    shouts = CHATML.replace("m['content']", "(m['content'] | replace('w9', 'w8'))")
    made = encode_examples([Example((USER,), "w9")], model_of(chat_tokenizer(shouts), (EOS, end)))
    assert made.report.rewritten == 1


def test_messages_without_a_template_are_refused():
    with pytest.raises(ValueError, match="no chat template"):
        sequences(Example((USER,), "w9"))
