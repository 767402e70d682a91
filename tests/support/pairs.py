"""Preference pairs that a reward model learns to tell apart."""

from __future__ import annotations

from tokenenv.rewards import PreferencePair

__all__ = ["separable_pairs"]


def separable_pairs(rng, count=300, prompts=60):
    """The chosen response holds w30, the rejected one w31; everything else is noise."""
    pairs = []
    for index in range(count):
        words = [[f"w{i}" for i in rng.integers(4, 20, size=rng.integers(2, 7))] for _ in range(2)]
        for response, marker in zip(words, ("w30", "w31"), strict=True):
            response.insert(int(rng.integers(len(response))), marker)
        prompt = f"w{20 + index % 10} w{20 + (index % prompts) // 10}"
        pairs.append(PreferencePair(prompt, " ".join(words[0]), " ".join(words[1])))
    return pairs
