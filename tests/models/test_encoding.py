"""One encoder: what a reward model is trained on from text is what it is asked to score."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from support.models import save_classifier, save_language_model, small_model, word_tokenizer
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

import tokenenv  # noqa: F401  (registers the ids)
from tokenenv.models.encoding import join_ids, prompt_ids, prompt_text
from tokenenv.models.language_model import LanguageModel, load_frozen, load_trainable
from tokenenv.rewards.pairs import PreferencePair, as_token_pair
from tokenenv.rewards.reward_model import load_reward_model, new_reward_model
from tokenenv.rewards.sources import Episode, LearnedReward

BOS, EOS = 1, 2


def with_template(template: str, pad_token: str = "<pad>"):
    """The word tokenizer, with another post-processor."""
    from tokenizers import processors

    tokenizer = word_tokenizer(pad_token)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[("<bos>", BOS), ("<eos>", EOS)]
    )
    return tokenizer


PROMPTS = [
    "w4 w5",
    "w4 <eos>",  # ends in EOS
    "w4 <eos> w5",  # a closed turn
    "w4 <eos> w5 <eos>",
    "w4 <eos> <eos>",
    "<eos>",
    "<eos> w4",
    "<bos> w4 w5",  # a template has written BOS already
    "<bos> w4 <eos>",
    "w4 <pad> w5",
    "w4 unknown",
]
RESPONSES = ["w9 w10", "w9", "", "w9 <eos>", "w9 <pad>"]


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("template", ["$A", "<bos> $A", "$A <eos>", "<bos> $A <eos>"])
def test_a_prompt_has_bos_once_and_only_the_eos_of_its_own_text(template, prompt):
    tokenizer = with_template(template)
    words = prompt.split()
    known = {word: i for i, word in enumerate(["<pad>", "<bos>", "<eos>", "<unk>"])}
    expected = [known.get(w, int(w[1:]) if w[1:].isdigit() else known["<unk>"]) for w in words]
    if "<bos>" in template and words[0] != "<bos>":
        expected = [BOS, *expected]
    assert prompt_ids(tokenizer, prompt, (EOS,)) == expected
    model = LanguageModel("x", small_model("llama"), tokenizer, (EOS,))
    assert model.encode(prompt).tolist() == expected
    assert prompt_ids(tokenizer, prompt_text(tokenizer, np.array(expected)), (EOS,)) == expected


def test_an_empty_text_is_bos_where_there_is_one_and_nothing_otherwise():
    found = [
        prompt_ids(with_template(template), "", (EOS,))
        for template in ("$A", "<bos> $A", "$A <eos>", "<bos> $A <eos>")
    ]
    assert found == [[], [BOS], [], [BOS]]


def test_sequences_are_completed_by_one_eos_and_always_the_same():
    """Id 3 ends a response too, but what reads the sequence has learned to find EOS = 2 there."""
    ends, join = (EOS, 3), join_ids
    assert join([1, 4], [9, EOS], True, ends, EOS).tolist() == [1, 4, 9, EOS]
    assert join([1, 4], [9, 3], True, ends, EOS).tolist() == [1, 4, 9, EOS]
    assert join([1, 4], [9], True, ends, EOS).tolist() == [1, 4, 9, EOS]
    assert join([1, 4], [9, 10], False, ends, EOS).tolist() == [1, 4, 9, 10]
    assert join([1, 4, EOS], [], True, ends, EOS).tolist() == [1, 4, EOS, EOS]
    assert join([1, 4, EOS], [EOS], True, ends, EOS).tolist() == [1, 4, EOS, EOS]
    assert join([1, 4], [9, 3], True, ends, None).tolist() == [1, 4, 9]
    assert join([1, 4], [], False, (), None).dtype == np.int64


class Read(LearnedReward):
    """Tells which token ids the reward model is fed."""

    def fed(self, *episodes):
        seen = []
        self.reward_model.raw_rewards = lambda sequences: (
            seen.extend(s.tolist() for s in sequences) or np.zeros(len(sequences))
        )
        try:
            self(episodes)
        finally:
            del self.reward_model.raw_rewards
        return seen


def episode_of(language_model, prompt, response, stopped):
    ids = list(language_model.tokenizer(response, add_special_tokens=False)["input_ids"])
    if stopped and (not ids or ids[-1] not in language_model.eos_token_ids):
        ids.append(language_model.eos_token_ids[0])
    return Episode(language_model.encode(prompt), np.array(ids, dtype=np.int64), stopped)


@pytest.mark.parametrize("pad_token", ["<pad>", "<eos>"])
@pytest.mark.parametrize("shares", [True, False])
@pytest.mark.parametrize("prompt", PROMPTS)
def test_scoring_reads_what_training_from_text_has_read(tmp_path, pad_token, shares, prompt):
    folder = save_language_model(tmp_path / "lm", pad_token=pad_token)
    tokenizer = word_tokenizer(pad_token, reverse=not shares)
    rewards = load_reward_model(save_classifier(tmp_path / "rm", tokenizer=tokenizer))
    language_model = load_frozen(folder)
    reader = Read(rewards, language_model)
    assert reader.feeds_tokens == shares
    for response in RESPONSES:
        trained = as_token_pair(PreferencePair(prompt, response, "w9"), rewards)
        scored = reader.fed(episode_of(language_model, prompt, response, True))
        if "unknown" in prompt and not shares:
            # The actor has read <unk>, and nobody can tell the reward model what had stood there.
            assert tokenizer.unk_token_id in scored[0]
        assert scored == [trained.chosen.tolist()], (prompt, response)
        cut_off = response.removesuffix(" <eos>")
        scored = reader.fed(episode_of(language_model, prompt, cut_off, False))
        assert scored == [rewards.encode(prompt, cut_off, stopped=False).tolist()]


def test_a_response_of_a_pair_that_ran_out_of_room_has_no_eos(tmp_path):
    rewards = load_reward_model(save_classifier(tmp_path / "rm"))
    language_model = load_frozen(save_language_model(tmp_path / "lm"))
    ends = {"chosen_stopped": False, "rejected_stopped": True}
    pair = as_token_pair(PreferencePair("w4", "w9 w10", "w9", **ends), rewards)
    assert (pair.chosen.tolist(), pair.rejected.tolist()) == ([BOS, 4, 9, 10], [BOS, 4, 9, EOS])
    ends = {"chosen_stopped": True, "rejected_stopped": False}
    pair = as_token_pair(PreferencePair("w4", "w9", "w9 w10", **ends), rewards)
    assert (pair.chosen.tolist(), pair.rejected.tolist()) == ([BOS, 4, 9, EOS], [BOS, 4, 9, 10])
    cut_off = episode_of(language_model, "w4", "w9 w10", False)
    assert Read(rewards, language_model).fed(cut_off) == [pair.rejected.tolist()]


def test_a_reward_model_learns_the_eos_ids_of_the_language_model_it_starts_from(tmp_path):
    """Two ids end a response; only the generation config says so."""
    folder = save_language_model(tmp_path / "lm")
    model = small_model("llama")
    model.generation_config.eos_token_id = [EOS, 39]
    model.save_pretrained(tmp_path / "lm")
    rewards, language_model = new_reward_model(folder), load_frozen(folder)
    assert language_model.eos_token_ids == rewards.eos_token_ids == (EOS, 39)
    rewards.save_pretrained(tmp_path / "rm")
    rewards = load_reward_model(str(tmp_path / "rm"))
    assert rewards.eos_token_ids == (EOS, 39) and rewards.eos_token_id == EOS
    for end in (EOS, 39):
        ended = Episode(language_model.encode("w4"), np.array([9, end]), True)
        assert Read(rewards, language_model).fed(ended) == [[BOS, 4, 9, EOS]]
        assert rewards.encode("w4", "w9").tolist() == [BOS, 4, 9, EOS]


def test_the_environment_and_a_pair_of_preferences_hold_the_same_prompt(tmp_path):
    folder = save_language_model(tmp_path / "lm")
    rewards = new_reward_model(folder)
    rewards.save_pretrained(tmp_path / "rm")
    env = gym.make(
        "TokenRLHF-v0",
        reference=folder,
        reward_model=str(tmp_path / "rm"),
        prompts=["w4 <eos>"],
        max_prompt_tokens=4,
        max_new_tokens=3,
    )
    observation, _ = env.reset()
    assert observation.tolist() == [-1, BOS, 4, EOS, -1, -1, -1]
    env.step(9)
    raw = env.step(EOS)[4]["rm_score"]
    trained = as_token_pair(PreferencePair("w4 <eos>", "w9", "w10"), rewards).chosen
    assert trained.tolist() == [BOS, 4, EOS, 9, EOS]
    assert raw == pytest.approx(rewards.raw_rewards([trained])[0], abs=1e-5)


def test_a_response_is_encoded_without_special_tokens_or_refused():
    """The notes of `exact` are all that its tokenizer can spell."""
    from tokenenv.models import load_frozen
    from tokenenv.tasks import model_source

    language_model = load_frozen(model_source("exact", "reference"))
    ids = language_model.encode_response("do mi")
    assert language_model.decode(ids) == "do mi" and len(ids) == 2
    with pytest.raises(ValueError, match=r"response 'do la' can't be encoded.*do, re, mi"):
        language_model.encode_response("do la")
    with pytest.raises(
        ValueError, match=r"'do  mi' comes back from the tokenizer of .* as 'do mi'"
    ):
        language_model.encode_response("do  mi")


def test_a_tokenizer_that_does_not_belong_to_the_model_is_refused(tmp_path):
    """With more tokens than the model reads; one id alone may be too much in a text."""
    folder = save_language_model(tmp_path / "model")
    other = word_tokenizer()
    more = [f"x{i}" for i in range(3)]
    other.add_tokens(more)  # as a pad token that was added: no text need hold it
    other.save_pretrained(folder)
    language_model = load_frozen(folder)
    assert len(language_model.encode("w4 w5")) == 3
    with pytest.raises(ValueError, match=r"can't be encoded .* the id 4\d, which the model has no"):
        language_model.encode("w4 x2")
    vocabulary = {**word_tokenizer().get_vocab(), **{f"y{i}": 40 + i for i in range(9)}}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="<unk>", eos_token="<eos>"
    ).save_pretrained(folder)
    for load, what in ((load_frozen, "reference"), (load_trainable, "actor")):
        with pytest.raises(ValueError, match=f"{what}=.* 49 tokens and its model reads 40"):
            load(folder)
