"""Gymnasium's `RecordVideo` makes films of episodes, of single and of vector environments."""

from __future__ import annotations

from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import wrappers
from gymnasium.wrappers import vector as vector_wrappers

import tokenenv  # noqa: F401  (registers the ids)

pytestmark = pytest.mark.ecosystem

IDS = ["TokenRLHF-v0", "TokenRLHF-Exact-v0", "TokenRLHF-Features-TopK-v0"]


def frames_of(film: Path) -> np.ndarray:
    """(frames, height, width, 3) uint8: what a player shows."""
    ffmpeg = pytest.importorskip("imageio_ffmpeg")
    reader = ffmpeg.read_frames(str(film))
    width, height = next(reader)["size"]
    return np.stack([np.frombuffer(f, np.uint8).reshape(height, width, 3) for f in reader])


def assert_shows(film: Path, pictures: list[np.ndarray]) -> None:
    """The film has these pictures, one a frame, up to what its compression loses."""
    found = frames_of(film)
    assert found.shape == (len(pictures), *pictures[0].shape)
    for number, frame in enumerate(found):
        distances = [np.abs(frame.astype(float) - other).mean() for other in pictures]
        assert np.argmin(distances) == number and distances[number] < 4.0


@pytest.mark.parametrize("env_id", IDS)
def test_record_video_makes_a_film_of_each_episode(env_id, tmp_path):
    folder = tmp_path / "films"
    made = gym.make(env_id, render_mode="rgb_array", max_new_tokens=6)
    env = wrappers.RecordVideo(made, str(folder), episode_trigger=lambda number: number < 2)
    env.action_space.seed(1)
    expected: dict[str, list[np.ndarray]] = {}
    for number in range(3):
        env.reset(seed=number)
        pictures, ended = [made.render()], False
        while not ended:
            ended = env.step(env.action_space.sample())[2]
            pictures.append(made.render())
        if number < 2:
            assert len(env.recorded_frames) == len(pictures)
            expected[f"rl-video-episode-{number}.mp4"] = pictures
    env.close()
    assert {path.name for path in folder.glob("*.mp4")} == set(expected)
    for name, pictures in expected.items():
        assert_shows(folder / name, pictures)


@pytest.mark.parametrize("first_only", [True, False])
def test_vector_record_video_makes_a_film(first_only, tmp_path):
    folder = tmp_path / "films"
    made = gym.make_vec("TokenRLHF-Exact-v0", num_envs=4, render_mode="rgb_array")
    env = vector_wrappers.RecordVideo(
        made,
        str(folder),
        record_first_only=first_only,
        episode_trigger=lambda number: number == 0,
        video_aspect_ratio=(1, 1),
    )
    env.action_space.seed(0)
    env.reset(seed=0)
    shown = [made.render()]
    while env.episode_id == 0:  # of row 0; NEXT_STEP: the step behind its end starts the next
        env.step(env.action_space.sample())
        shown.append(made.render())
    env.close()
    films = list(folder.glob("*.mp4"))
    assert [film.name for film in films] == ["rl-video-episode-0.mp4"]
    height, width, _ = shown[0][0].shape
    if first_only:
        assert_shows(films[0], [pictures[0] for pictures in shown[:-1]])
    else:
        rows, columns = env.frame_rows, env.frame_cols
        assert rows * columns == 4
        assert frames_of(films[0]).shape == (len(shown) - 1, rows * height, columns * width, 3)
