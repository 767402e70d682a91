"""The picture of an episode: what it shows, that it is legible, and that films can be made."""

from __future__ import annotations

import io
import itertools
import re
import sys

import gymnasium as gym
import numpy as np
import pytest
from PIL import ImageFont
from support.hostile import ESCAPES, acting
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from tokenizers import decoders as tokenizer_decoders
from transformers import PreTrainedTokenizerFast

import tokenenv
from tokenenv.env import TokenEnv
from tokenenv.rendering import (
    FULL_COLOUR,
    diverging_colour,
    draw_episode,
    legend,
    on_ground,
    reward_colour,
    text_colour,
    token_texts,
)
from tokenenv.rendering.image import image_size, printable
from tokenenv.rendering.palette import terminal_colour
from tokenenv.wrappers import fork


def make(**settings):
    return gym.make("TokenRLHF-Exact-v0", render_mode="rgb_array", **settings)


@pytest.mark.parametrize("env_id", tokenenv.ENV_IDS)
def test_pictures_have_one_size_and_change_with_every_token(env_id):
    env = gym.make(env_id, render_mode="rgb_array")
    env.reset(seed=0)
    size = (*image_size(env.unwrapped.mdp), 3)
    frames = [env.render()]
    terminated = False
    env.action_space.seed(0)
    while not terminated:
        terminated = env.step(env.action_space.sample())[2]
        frames.append(env.render())
    assert all(f.shape == size and f.dtype == np.uint8 for f in frames)
    assert all((a != b).any() for a, b in itertools.pairwise(frames))
    assert size[0] % 16 == size[1] % 16 == 0  # video encoders ask for it


def test_the_ground_of_a_token_is_the_colour_of_its_reward():
    env = make()
    env.reset(options={"prompt": "sol"})
    rewards = []
    for token in (4, 2, 1, 0, 5):
        before = env.render()
        rewards.append(env.step(token)[1])
        after = env.render()
        colour = reward_colour(rewards[-1])
        # The legend shows all colours; the token adds a whole ground of its own.
        grounds = [(f == np.array(colour)).all(-1).sum() for f in (before, after)]
        assert grounds[1] > grounds[0] + 200
    assert rewards[-1] > FULL_COLOUR  # the cadence: the last ground is the fullest blue
    assert colour == reward_colour(100.0)


def test_colours_tell_sign_and_size():
    red, _, blue = reward_colour(-FULL_COLOUR)
    assert red > 2 * blue and reward_colour(-5.0) == reward_colour(-FULL_COLOUR)
    red, _, blue = reward_colour(FULL_COLOUR)
    assert blue > 2 * red
    assert reward_colour(0.0) == (247, 247, 247)
    for sign in (-1.0, 1.0):
        strengths = [
            sum(abs(c - 247) for c in reward_colour(sign * r)) for r in np.linspace(0, 2, 9)
        ]
        assert strengths == sorted(strengths) and strengths[1] > 60  # 0.25 shows already


def luminance(colour):
    parts = [c / 255 for c in colour]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return float(np.dot([0.2126, 0.7152, 0.0722], linear))


def test_text_stands_out_on_every_ground():
    for reward in np.linspace(-3, 3, 121):
        ground = reward_colour(float(reward))
        low, high = sorted((luminance(ground), luminance(text_colour(ground))))
        assert (high + 0.05) / (low + 0.05) >= 4.0


def test_whatever_a_token_says_the_font_can_show_it():
    font = ImageFont.load_default(18)
    missing = bytes(font.getmask("\uffff"))
    for text in (" the", "\n", "naïve", "Ġ中文 Ж", "\ufffd", "don't", "\\", "€±…"):
        shown = printable(text)
        assert shown and all(bytes(font.getmask(c)) != missing for c in shown), (text, shown)
    assert printable(" the") == "·the" and printable("naïve") == "naive"
    assert (
        printable("\n") == "\\n" and printable("中") == "\\u4e2d" and printable("don't") == "don't"
    )


def test_long_texts_show_their_end_in_the_same_size(monkeypatch):
    monkeypatch.setattr("tokenenv.rendering.image._MAX_LINES", 2)
    env = gym.make("TokenRLHF-v0", max_new_tokens=40)
    mdp = env.unwrapped.mdp
    env.reset(seed=0)
    size, frames = draw_episode(mdp, 0).shape, []
    word, other = (int(mdp.language_model.encode(text)[-1]) for text in (" thriller", " the"))
    for step in range(39):
        env.step(word if step % 7 else other)
        frames.append(draw_episode(mdp, 0))
    assert all(frame.shape == size for frame in frames)
    assert all((a != b).any() for a, b in itertools.pairwise(frames))
    mdp.token_rewards[0, :39] = 0.0
    shown = {}
    for position in (0, 38):  # of a response that is longer than its place, the end is shown
        mdp.token_rewards[0, position] = FULL_COLOUR
        shown[position] = (draw_episode(mdp, 0) == np.array(reward_colour(2.0))).all(-1).sum()
        mdp.token_rewards[0, position] = 0.0
    assert shown[38] > shown[0] + 500


def test_the_vector_env_gives_a_picture_of_every_row():
    env = gym.make_vec("TokenRLHF-Exact-v0", num_envs=3, render_mode="rgb_array")
    env.reset(options={"prompt": ["do", "re", "mi"]})
    env.step(np.array([1, 2, 5]))
    pictures = env.render()
    assert isinstance(pictures, tuple) and len(pictures) == 3
    for row, prompt in enumerate(("do", "re", "mi")):
        single = make()
        single.reset(options={"prompt": prompt})
        single.step([1, 2, 5][row])
        np.testing.assert_array_equal(pictures[row], single.render())


def test_render_collection_gives_the_frames_of_an_episode():
    env = gym.make("TokenRLHF-Exact-v0", render_mode="rgb_array_list")
    env.reset(seed=0)
    for token in (0, 1, 5):
        env.step(token)
    assert len(env.render()) == 4


def test_record_video_makes_a_film(tmp_path):
    pytest.importorskip("moviepy")
    env = gym.wrappers.RecordVideo(make(), str(tmp_path), episode_trigger=lambda _: True)
    env.reset(seed=0)
    for token in (0, 1, 5):
        env.step(token)
    env.close()
    films = list(tmp_path.glob("*.mp4"))
    assert len(films) == 1 and films[0].stat().st_size > 1000


# In the terminal ---------------------------------------------------------------------------------

CODES = re.compile(r"\x1b\[38;5;(\d+);48;5;(\d+)m(.*?)\x1b\[0m")


def coloured(text: str) -> list[tuple[str, int]]:
    """The pieces of a text that stand on a ground, with its number."""
    return [(piece, int(ground)) for _, ground, piece in CODES.findall(text)]


def without_codes(text: str) -> str:
    return CODES.sub(r"\3", text)


class Terminal(io.StringIO):
    """A standard output that says that it is a terminal."""

    def isatty(self) -> bool:
        return True


def on_terminal(monkeypatch) -> Terminal:
    """Let the standard output be a terminal in colours; pytest's own is back after the test."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    return terminal


def test_the_palette_diverges_from_near_white():
    assert diverging_colour(-1.0) == diverging_colour(-9.0) == (213, 94, 0)
    assert diverging_colour(1.0) == diverging_colour(float("inf")) == (0, 114, 178)
    assert diverging_colour(0.0) == diverging_colour(float("nan")) == (247, 247, 247)
    assert diverging_colour(0.5) == (124, 180, 212)  # halves of 247 + 0, 247 + 114, 247 + 178


def test_a_terminal_shows_the_palette_in_nine_steps_in_order():
    steps = [terminal_colour(diverging_colour(share)) for share in np.linspace(-1, 1, 201)]
    order = [step for step, _ in itertools.groupby(steps)]
    assert order == [166, 173, 216, 223, 231, 153, 110, 67, 25]
    assert on_ground("a", reward_colour(-5.0)) == "\x1b[38;5;16;48;5;166ma\x1b[0m"
    assert on_ground("a", reward_colour(5.0)) == "\x1b[38;5;231;48;5;25ma\x1b[0m"


def test_ansi_colours_tokens_by_reward_and_has_a_legend(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    env = gym.make("TokenRLHF-Exact-v0", render_mode="ansi")
    env.reset(options={"prompt": "sol"})
    rewards = [env.step(token)[1] for token in (4, 2, 1, 0, 5)]
    text = env.render()
    grounds = [terminal_colour(reward_colour(reward)) for reward in rewards]
    lines = text.splitlines()
    assert coloured(lines[1]) == list(
        zip(["sol", " mi", " re", " do", " <eos>"], grounds, strict=True)
    )
    assert [coloured(line)[0][1] for line in lines[3:8]] == grounds and grounds[-1] == 25
    assert lines[-1] == f"colours   {legend()}"
    monkeypatch.setenv("NO_COLOR", "1")
    plain = env.render()
    assert "\x1b" not in plain
    assert plain.splitlines()[2:] == [without_codes(line) for line in lines[2:-1]]


def test_the_vector_env_colours_every_row(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    env = gym.make_vec("TokenRLHF-Exact-v0", num_envs=2, render_mode="ansi")
    env.reset(seed=0)
    env.step(np.array([0, 4]))
    assert [coloured(text)[0][0] for text in env.render()] == ["do", "sol"]


def test_human_on_a_terminal_is_one_paragraph_in_colours(monkeypatch):
    terminal = on_terminal(monkeypatch)
    env = gym.make("TokenRLHF-Exact-v0", render_mode="human")
    env.reset(options={"prompt": "sol"})
    assert terminal.getvalue() == f"colours   {legend()}\nprompt    sol\nresponse  "
    terminal.truncate(0), terminal.seek(0)
    reward = env.step(4)[1]
    assert terminal.getvalue() == on_ground("sol", reward_colour(reward))
    rewards = [reward, *(env.step(token)[1] for token in (2, 5))]
    assert without_codes(terminal.getvalue()) == (
        f"sol mi <eos>\n{sum(rewards):+8.4f}  sum of 3 tokens  (stop)\n\n"
    )
    terminal.truncate(0), terminal.seek(0)
    env.reset(options={"prompt": "mi"})
    env.step(0)
    env.reset(options={"prompt": "fa"})  # an episode that was broken off: the next has its lines
    assert without_codes(terminal.getvalue()) == (
        "prompt    mi\nresponse  do\nprompt    fa\nresponse  "
    )


def test_a_fork_writes_on_by_itself(monkeypatch):
    terminal = on_terminal(monkeypatch)
    env = gym.make("TokenRLHF-Exact-v0", render_mode="human")
    env.reset(options={"prompt": "sol"})
    env.step(4)
    terminal.truncate(0), terminal.seek(0)
    fork(env).step(2)
    env.step(2)
    assert without_codes(terminal.getvalue()) == " mi mi"


@pytest.mark.parametrize("setting", [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_human_without_colours_has_a_line_per_token(monkeypatch, setting):
    terminal = on_terminal(monkeypatch)
    monkeypatch.setenv(*setting)
    env = gym.make("TokenRLHF-Exact-v0", render_mode="human")
    env.reset(options={"prompt": "sol"})
    env.step(4)
    lines = terminal.getvalue().splitlines()
    assert lines[:2] == ["prompt    sol", "reward    token"] and lines[2].endswith("  'sol'")
    assert "\x1b" not in terminal.getvalue()


def byte_level_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE that has learned nothing: every byte is a token."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = tokenizer_decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=256, initial_alphabet=alphabet, show_progress=False)
    inner.train_from_iterator([], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=inner)


def test_a_character_in_pieces_belongs_to_the_token_that_completes_it():
    tokenizer = byte_level_tokenizer()
    for text in ("naïve", "中文", "a👩\u200d🚀b", "\ufffd"):
        ids = tokenizer(text)["input_ids"]
        assert len(ids) == len(text.encode())
        pieces = token_texts(tokenizer, ids)
        assert "".join(pieces) == text and len(pieces) == len(ids)
    assert token_texts(tokenizer, tokenizer("aé")["input_ids"]) == ["a", "", "é"]
    broken = tokenizer("a中")["input_ids"][:-1]  # a response that its length has cut
    assert token_texts(tokenizer, broken) == ["a", "", "\ufffd"]
    assert token_texts(tokenizer, []) == []


@pytest.mark.parametrize("mode", ["ansi", "human"])
def test_what_a_model_says_in_colours_acts_on_no_terminal(settings, monkeypatch, mode):
    terminal = on_terminal(monkeypatch)
    env = TokenEnv(**settings, render_mode=mode)
    env.reset(seed=0)
    tokenizer = env.mdp.language_model.tokenizer
    hostile = ESCAPES + "\r\n\u2066"
    monkeypatch.setattr(tokenizer, "decode", lambda ids, **_: len(ids) * hostile)
    env.step(5)
    env.step(2)
    shown = env.render() or terminal.getvalue()
    assert coloured(shown) and not acting(without_codes(shown))
    assert "\\x1b[31m" in shown and "\\u202e" in shown
