"""Tiny tokenizers with chat templates, and folders of models that have them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from support.models import ARCHITECTURES, save_classifier, small_model

__all__ = [
    "CHATML",
    "LLAMA",
    "MISTRAL",
    "NO_GENERATION_PROMPT",
    "RAISES",
    "chat_tokenizer",
    "save_chat_classifier",
    "save_chat_model",
]

_TURN = "{{ '<|im_start|> ' + m['role'] + ' ' + m['content'] + ' <|im_end|> ' }}"
_TURNS = "{% for m in messages %}" + _TURN + "{% endfor %}"

CHATML = _TURNS + "{% if add_generation_prompt %}{{ '<|im_start|> assistant ' }}{% endif %}"
"""Writes no BOS, which the tokenizer adds."""

LLAMA = "{{ '<bos> ' }}" + CHATML.replace("<|im_end|>", "<|eot|>")
"""Writes BOS, which the tokenizer adds as well."""

MISTRAL = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST] ' "
    "}}{% else %}{{ m['content'] + ' <eos> ' }}{% endif %}{% endfor %}"
)
"""Has no generation prompt and needs none: the answer follows the user's turn at once."""

NO_GENERATION_PROMPT = _TURNS
"""Has none and needs one."""

RAISES = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system here') }}"
    "{% endif %}{% endfor %}" + CHATML
)

_SPECIAL = ["<|im_start|>", "<|im_end|>", "<|eot|>"]
_WORDS = ["user", "assistant", "system", "[INST]", "[/INST]"]


def chat_tokenizer(template: str | None = CHATML, special: bool = True, bos: bool = True) -> Any:
    """`word_tokenizer` with a chat template: words `w4` … `w31`, roles and turns above them.

    Args:
        template: one of this module; None: none.
        special: whether the marks of turns are special tokens, or merely added ones.
        bos: whether the tokenizer adds BOS.
    """
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    entries = ["<pad>", "<bos>", "<eos>", "<unk>", *(f"w{i}" for i in range(4, 32)), *_WORDS]
    vocabulary = {word: index for index, word in enumerate(entries)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<bos> $A", special_tokens=[("<bos>", 1)]
        )
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        pad_token="<pad>",
    )
    marks = [AddedToken(mark, special=special) for mark in _SPECIAL]
    made.add_tokens(marks, special_tokens=special)
    made.chat_template = template
    return made


def save_chat_model(
    folder: Path, template: str | None = CHATML, seed: int = 0, **tokenizer: Any
) -> str:
    """Write a small causal LM with such a tokenizer to `folder`."""
    model = small_model("llama", seed)
    assert len(chat_tokenizer(template, **tokenizer)) == ARCHITECTURES["llama"]["vocab_size"]
    model.config.pad_token_id = 0
    model.save_pretrained(folder)
    chat_tokenizer(template, **tokenizer).save_pretrained(folder)
    return str(folder)


def save_chat_classifier(folder: Path, template: str | None = CHATML, **kwargs: Any) -> str:
    """Write a small reward model with such a tokenizer to `folder`."""
    return save_classifier(folder, tokenizer=chat_tokenizer(template), **kwargs)
