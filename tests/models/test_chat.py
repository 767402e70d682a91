"""Chat templates: conversations as ids, BOS once, the end of a turn, the seam of the answer."""

from __future__ import annotations

import logging

import pytest
from support.chat import (
    CHATML,
    LLAMA,
    MISTRAL,
    NO_GENERATION_PROMPT,
    RAISES,
    chat_tokenizer,
    save_chat_model,
)
from support.models import word_tokenizer

from tokenenv import notes
from tokenenv.models import ChatTemplate, end_of_turn_id, load_frozen, prompt_ids, seam_differences

BOS, EOS = 1, 2
USER = [{"role": "user", "content": "w4 w5"}]
SYSTEM = [{"role": "system", "content": "w9"}, *USER]
START, END, EOT, INST, CLOSE, ROLE_USER, ROLE_ASSISTANT = 37, 38, 39, 35, 36, 32, 33


@pytest.fixture
def said(caplog, monkeypatch):
    """The notes of one test, whatever was said before it."""
    monkeypatch.setattr(notes, "_SAID", set())
    caplog.set_level(logging.WARNING, logger="tokenenv")
    return caplog


@pytest.mark.parametrize(
    ("template", "bos", "expected"),
    [
        (CHATML, True, [BOS, START, ROLE_USER, 4, 5, END, START, ROLE_ASSISTANT]),
        (CHATML, False, [START, ROLE_USER, 4, 5, END, START, ROLE_ASSISTANT]),
        (LLAMA, True, [BOS, START, ROLE_USER, 4, 5, EOT, START, ROLE_ASSISTANT]),
        (LLAMA, False, [BOS, START, ROLE_USER, 4, 5, EOT, START, ROLE_ASSISTANT]),
        (MISTRAL, True, [BOS, INST, 4, 5, CLOSE]),
    ],
    ids=["tokenizer", "neither", "both", "template", "no generation prompt needed"],
)
def test_a_conversation_has_bos_once_wherever_it_comes_from(template, bos, expected):
    tokenizer = chat_tokenizer(template, bos=bos)
    text = ChatTemplate(tokenizer, "m").prompt(USER)
    assert prompt_ids(tokenizer, text, (EOS,)) == expected


def test_the_prompt_is_what_transformers_renders_with_a_generation_prompt():
    tokenizer = chat_tokenizer(CHATML)
    expected = tokenizer.apply_chat_template(SYSTEM, tokenize=False, add_generation_prompt=True)
    assert ChatTemplate(tokenizer, "m").prompt(SYSTEM) == expected
    whole = ChatTemplate(tokenizer, "m").whole(SYSTEM, "w7")
    said = [*SYSTEM, {"role": "assistant", "content": "w7"}]
    assert whole == tokenizer.apply_chat_template(said, tokenize=False)
    assert whole == ChatTemplate(tokenizer, "m").whole(said)


@pytest.mark.parametrize(
    ("template", "messages", "words"),
    [
        (None, USER, "'m' has no chat template.*give prompts as text"),
        (NO_GENERATION_PROMPT, USER, "'m' has no generation prompt.*add_generation_prompt"),
        (RAISES, SYSTEM, "'m' refuses messages of the roles system, user .no system here"),
        ("{{ messages[5].content }}", USER, "'m' refuses messages of the roles user"),
        ("{% broken", USER, "'m' refuses messages"),
    ],
    ids=["none", "no generation prompt", "raises", "undefined", "syntax"],
)
def test_templates_that_give_no_prompt_are_refused_with_what_to_do(template, messages, words):
    with pytest.raises(ValueError, match=words):
        ChatTemplate(chat_tokenizer(template), "m").prompt(messages)


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize(
    ("template", "end"),
    [(CHATML, END), (LLAMA, EOT), (MISTRAL, EOS), (NO_GENERATION_PROMPT, END), (None, None)],
)
def test_the_end_of_a_turn_is_what_the_template_writes_after_an_answer(template, end, special):
    assert end_of_turn_id(chat_tokenizer(template, special)) == end


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('no') }}",
        "{% for m in messages %}{{ m['content'] + ' w9 ' }}{% endfor %}",
        "{% for m in messages %}{{ m['content'] }}{% endfor %}",
        "nothing of it",
    ],
)
def test_there_is_no_end_of_turn_where_no_special_token_follows_the_answer(template):
    assert end_of_turn_id(chat_tokenizer(template)) is None


def test_the_end_of_a_turn_ends_responses_and_that_is_said_once(tmp_path, said):
    model = load_frozen(save_chat_model(tmp_path / "m"))
    assert model.eos_token_ids == (EOS, END)
    load_frozen.cache_clear()
    load_frozen(str(tmp_path / "m"))
    (record,) = said.records
    assert "'<|im_end|>' (id 38)" in record.message and "eos_token_id: 2" in record.message


def test_nothing_is_said_where_the_config_names_it_or_no_response_can_hold_it(tmp_path, said):
    assert load_frozen(save_chat_model(tmp_path / "m", MISTRAL)).eos_token_ids == (EOS,)
    folder = save_chat_model(tmp_path / "larger")
    tokenizer = chat_tokenizer(CHATML.replace("im_end", "another"))
    tokenizer.add_tokens(["<|another|>"], special_tokens=True)  # id 40, the model has 40 rows
    tokenizer.save_pretrained(folder)
    assert end_of_turn_id(tokenizer) == 40 and load_frozen(folder).eos_token_ids == (EOS,)
    assert not said.records


@pytest.mark.parametrize("special", [True, False])
def test_the_text_of_a_response_goes_without_the_end_of_its_turn(tmp_path, special):
    model = load_frozen(save_chat_model(tmp_path / "m", special=special))
    assert model.decode([7, 8, END]) == model.decode([7, 8]) == "w7 w8"


def test_seams_are_counted_where_prompt_and_response_merge():
    tokenizer = word_tokenizer()
    texts = [("w4 ", "w5"), ("w4", " w5"), ("w4", "5"), ("w1", "2 w5"), ("", "w4")]
    # Of "w45" and "w12 w5" the halves are other words: <unk> next to w4, w1 is <unk>.
    assert seam_differences(tokenizer, texts, (EOS,)) == 2
    assert seam_differences(tokenizer, [], (EOS,)) == 0
