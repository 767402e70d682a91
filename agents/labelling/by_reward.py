"""Labels by a reward: the better response, or drawn as Bradley and Terry's people draw them."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np

from agents.labelling.pair_file import PairRow
from tokenenv.data import Prompt
from tokenenv.models import LanguageModel
from tokenenv.rewards import Episode, RewardSource

__all__ = ["bradley_terry_label", "label_by_reward"]


def bradley_terry_label(
    reward_a: float, reward_b: float, noise: float, rng: np.random.Generator
) -> str:
    """`"a"`, `"b"` or `"tie"`.

    Args:
        reward_a: of response a.
        reward_b: of response b.
        noise: τ; a is better with probability σ((r_a − r_b)/τ). 0: the one with the higher reward.
        rng: of the draw.

    Equal rewards are a tie in both cases: it says the same as many draws of a fair coin.
    """
    if reward_a == reward_b:
        return "tie"
    if not noise:
        return "a" if reward_a > reward_b else "b"
    probability = 0.5 * (1.0 + np.tanh((reward_a - reward_b) / (2.0 * noise)))
    return "a" if rng.random() < probability else "b"


def label_by_reward(
    rows: Sequence[PairRow],
    origins: Sequence[Prompt],
    prompts: Sequence[np.ndarray],
    reward: RewardSource,
    language_model: LanguageModel,
    noise: float = 0.0,
    seed: int = 0,
) -> list[PairRow]:
    """Rows with a label by the rewards of their responses, which are written down too.

    The draw of a noisy label depends on the seed and the row alone, not on what else is labelled.

    Args:
        rows: what is labelled.
        origins: the prompt of each, with the columns that a reward function may ask for.
        prompts: its token ids.
        reward: the source; a reward model's are normalised.
        language_model: in whose tokens a response is read.
        noise: see `bradley_terry_label`.
        seed: of noisy labels.

    Raises:
        ValueError: the reward fails, or is none.
    """
    episodes = [
        Episode(ids, _response_ids(language_model, text, finish), finish == "stop", origin)
        for row, ids, origin in zip(rows, prompts, origins, strict=True)
        for text, finish in ((row.response_a, row.finish_a), (row.response_b, row.finish_b))
    ]
    rewards = reward(episodes).normalized.reshape(-1, 2).tolist() if rows else []
    return [
        row.labelled(
            bradley_terry_label(
                a, b, noise, np.random.default_rng((seed, zlib.crc32(row.id.encode())))
            ),
            "reward",
            reward_a=a,
            reward_b=b,
        )
        for row, (a, b) in zip(rows, rewards, strict=True)
    ]


def _response_ids(language_model: LanguageModel, text: str, finish: str) -> np.ndarray:
    """The token ids of a response's text, with EOS where it ended by itself."""
    ids = list(language_model.tokenizer(text, add_special_tokens=False)["input_ids"])
    return np.asarray(ids + [language_model.eos_token_ids[0]] * (finish == "stop"), dtype=np.int64)
