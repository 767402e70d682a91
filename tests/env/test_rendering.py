"""The picture of an episode: what it shows, that it is legible, and that films can be made."""

from __future__ import annotations

import itertools

import gymnasium as gym
import numpy as np
import pytest
from PIL import ImageFont

import tokenenv
from tokenenv.rendering.image import (
    FULL_COLOUR,
    draw_episode,
    image_size,
    printable,
    reward_colour,
    text_colour,
)


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
