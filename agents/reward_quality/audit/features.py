"""Whether scores follow features of the texts, beyond what they are for.

**Correlation.** All n texts are ranked by score and by feature; the ranks are centred within each
prompt, since a reward is compared between responses to one prompt and nowhere else: s̃ and f̃. Where
a gold reward is known, f̃ is freed from it, f̂ = f̃ − its regression on g̃, g̃² and g̃³ (g: the ranks
by gold, centred likewise): a good reward follows whatever good responses have. The number is

    ρ = Σ s̃ f̂ / √(Σ s̃² · Σ f̂²),

Spearman's correlation within prompts where no gold is known, and otherwise the part
("semi-partial") correlation: how much of the *whole* score follows the feature, so that a score
which is the gold reward but for a little has a ρ near 0 also where all of this little goes with the
feature. It is 0 for gold plus noise that knows nothing of the feature.

**Preferences.** Of pairs with labels whose sides differ in the feature, P_r is the share in which
the score prefers the side with more of it and P_l that in which the label does (ties count half).
Labels are noisy where gold is not. A correlation given a label would then blame a reward that is
right: where longer responses are better, it prefers them more often than its noisy labels do. So
the excess P_r − P_l counts where it is in the direction of the score's own preference, and where
noise can't explain it: if labels are the score's preferences, each turned around with a chance that
does not depend on the feature, they agree with it in a share A of the pairs that it orders, and

    P_l − ½ = (2A − 1) (P_r − ½).

Where the difference of the two sides has an interval that holds 0, and A is above ½ beyond doubt,
noise explains the excess. (A reward that the labels don't confirm at all gets no such excuse.)

**Strength.** Both are turned into deviations of the score, to be ranked beside the probes' shifts:
d = 2ρ/√(1 − ρ²) (Cohen 1988), and d = √2 (Φ⁻¹(P_r) − Φ⁻¹(P_l)) (McGraw and Wong 1992).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import ndtri

from agents.reward_quality.audit.bands import (
    Band,
    Clusters,
    Estimates,
    ratio_estimates,
    weighted_midranks,
)
from agents.reward_quality.audit.texts import Labels

__all__ = [
    "LEAST_VARYING",
    "FeatureEvidence",
    "FeatureStatistics",
    "Preference",
    "strength_of_correlation",
    "strength_of_preference",
]

LEAST_VARYING = 20
"""Prompts or pairs in which a feature must differ, to be looked at."""

_MOST = 0.999
"""Largest correlation and share that are turned into a strength: d has no end."""


@dataclass(frozen=True, slots=True)
class Preference:
    """How often score and labels prefer the side of a pair with more of a feature.

    Attributes:
        pairs: in which the sides differ.
        reward: P_r.
        labels: P_l.
        excess: P_r − P_l, with its interval.
        agreement: A, over all pairs that the score orders.
        is_noise: whether noise in the labels explains the excess.
    """

    pairs: int
    reward: float
    labels: float
    excess: Band
    agreement: float
    is_noise: bool

    def as_json(self) -> dict[str, Any]:
        """Its parts by name."""
        return {
            "pairs": self.pairs,
            "reward": self.reward,
            "labels": self.labels,
            "excess": self.excess.as_json(),
            "agreement_of_all_pairs": self.agreement,
            "explained_by_label_noise": self.is_noise,
        }


@dataclass(frozen=True, slots=True)
class FeatureEvidence:
    """What is known of a score and a feature.

    Attributes:
        name: of the feature.
        mean: of the feature over the texts.
        correlation: ρ, given gold where it is known; None where the feature hardly varies.
        preference: None without labels, or where the feature hardly differs in pairs.
        has_gold: whether a gold reward is known.
    """

    name: str
    mean: float
    correlation: Band | None
    preference: Preference | None
    has_gold: bool

    @property
    def by_correlation(self) -> float:
        """Strength of the correlation, where it is sure: its interval excludes 0. Otherwise 0.

        Without gold, where there are labels, the correlation says nothing: they decide.
        """
        if self.correlation is None or not self.correlation.excludes_zero:
            return 0.0
        if self.preference is not None and not self.has_gold:
            return 0.0
        return strength_of_correlation(self.correlation.value)

    @property
    def by_preference(self) -> float:
        """Strength of the excess over the labels, where it is sure and noise can't explain it."""
        preference = self.preference
        if preference is None or preference.is_noise or not preference.excess.excludes_zero:
            return 0.0
        if preference.excess.value * (preference.reward - 0.5) <= 0:
            return 0.0  # less of it than the labels: what a weak reward has of everything
        return strength_of_preference(preference.reward, preference.labels)

    @property
    def strength(self) -> float:
        """The stronger of both, with its sign: deviations of the score."""
        return max(self.by_correlation, self.by_preference, key=abs)


def strength_of_correlation(rho: float) -> float:
    """D = 2ρ/√(1 − ρ²)."""
    rho = float(np.clip(rho, -_MOST, _MOST))
    return 2 * rho / float(np.sqrt(1 - rho**2))


def strength_of_preference(reward: float, labels: float) -> float:
    """D = √2 (Φ⁻¹(P_r) − Φ⁻¹(P_l))."""
    shares = np.clip([reward, labels], 1 - _MOST, _MOST)
    quantiles = ndtri(shares)
    return float(np.sqrt(2) * (quantiles[0] - quantiles[1]))


class FeatureStatistics:
    """The numbers of all features for any weights of the texts, so that a bootstrap can ask again.

    Args:
        scores: (n,) of the texts.
        features: name → (n,).
        clusters: the texts' prompts.
        gold: (n,), or None.
        labels: of pairs among the texts, or None.

    Attributes:
        correlated: names of the features of which there is a correlation.
        preferred: names of those of which there is a preference.
        is_within: whether ranks are compared within prompts; otherwise no prompt has two texts.
    """

    def __init__(
        self,
        scores: np.ndarray,
        features: Mapping[str, np.ndarray],
        clusters: Clusters,
        gold: np.ndarray | None = None,
        labels: Labels | None = None,
    ) -> None:
        self.scores, self.features, self.clusters, self.gold = scores, features, clusters, gold
        self.starts, self.sizes = clusters.starts, clusters.sizes
        self.is_within = int((self.sizes > 1).sum()) >= LEAST_VARYING
        self.correlated = [n for n, v in features.items() if self._varies(v)]
        self.labels = labels
        self.preferred: list[str] = []
        if labels is not None:
            self._sides = {
                name: np.sign(values[labels.chosen] - values[labels.rejected])
                for name, values in features.items()
            }
            self.preferred = [n for n, s in self._sides.items() if (s != 0).sum() >= LEAST_VARYING]
            win = np.sign(scores[labels.chosen] - scores[labels.rejected]) / 2  # ½: the chosen one
            self._win, self._label = win, labels.preference - 0.5

    def _varies(self, values: np.ndarray) -> bool:
        if not self.is_within:
            common = np.unique(values, return_counts=True)[1].max()
            return len(values) - int(common) >= LEAST_VARYING
        low = np.minimum.reduceat(values, self.starts)
        return int((np.maximum.reduceat(values, self.starts) > low).sum()) >= LEAST_VARYING

    # Correlations --------------------------------------------------------------------------------

    def correlations(self, weights: np.ndarray) -> Estimates:
        """(R, features of `correlated`) Fisher's z = artanh ρ, of the ρ of the module's text.

        Args:
            weights: (R, n) how often each text is in a resample.
        """
        score = self._centred(self.scores, weights)
        gold = self._gold_powers(weights)
        columns = []
        for name in self.correlated:
            feature = self._centred(self.features[name], weights)
            feature = feature if gold is None else _residual(feature, gold, weights)
            columns.append(self._fishers_z(score, feature, weights))
        if not columns:
            return Estimates(*np.zeros((2, len(weights), 0)))
        return Estimates(*np.stack(columns, axis=-1))

    def _fishers_z(self, x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """(2, R) z of centred numbers, and its error: delta method over prompts."""
        of_prompt = weights[:, self.starts]
        xy, xx, yy = (self.clusters.sums(product) for product in (x * y, x * x, y * y))
        a, b, c = ((of_prompt * part).sum(axis=1, keepdims=True) for part in (xy, xx, yy))
        with np.errstate(divide="ignore", invalid="ignore"):
            rho = np.clip(a / np.sqrt(b * c), -_MOST, _MOST)
            influence = xy / np.sqrt(b * c) - rho / 2 * (xx / b + yy / c)
            error = np.sqrt((of_prompt * influence**2).sum(axis=1)) / (1 - rho[:, 0] ** 2)
        is_known = (b * c)[:, 0] > 1e-18
        return np.where(is_known, [np.arctanh(rho[:, 0]), error], 0.0)

    def _centred(self, values: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """(R, n) ranks, less their mean within the prompt (within all, where it has one text)."""
        return self._less_mean(weighted_midranks(values, weights), weights)

    def _less_mean(self, ranks: np.ndarray, weights: np.ndarray) -> np.ndarray:
        if not self.is_within:
            mean = (weights * ranks).sum(axis=1, keepdims=True) / weights.sum(axis=1, keepdims=True)
            return ranks - mean
        sums = np.add.reduceat(ranks, self.starts, axis=1)  # all texts of a prompt weigh the same
        return ranks - np.repeat(sums / self.sizes, self.sizes, axis=1)

    def _gold_powers(self, weights: np.ndarray) -> np.ndarray | None:
        """(R, n, 3) centred powers of the ranks by gold."""
        if self.gold is None:
            return None
        ranks = 2 * weighted_midranks(self.gold, weights)
        powers = [self._less_mean(ranks**power, weights) for power in (1, 2, 3)]
        return np.stack(powers, axis=-1)

    # Preferences ---------------------------------------------------------------------------------

    def excesses(self, weights: np.ndarray) -> Estimates:
        """(R, features of `preferred`) P_r − P_l.

        Args:
            weights: (R, n) how often each text is in a resample.
        """
        if not self.preferred:
            return Estimates(*np.zeros((2, len(weights), 0)))
        assert self.labels is not None
        of_prompt = self.clusters.of_text[self.labels.chosen]
        sides = self._sides_of_preferred()
        parts = np.zeros((2, self.clusters.count, len(self.preferred)))
        np.add.at(parts[0], of_prompt, sides * (self._win - self._label)[:, None])
        np.add.at(parts[1], of_prompt, (sides != 0).astype(np.float64))
        return ratio_estimates(parts[0], parts[1], weights[:, self.starts])

    def preferences(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """`"reward"` and `"labels"` → (R, features of `preferred`) P; `"agreement"` → (R,) A.

        Args:
            weights: (R, n) how often each text is in a resample.
        """
        assert self.labels is not None
        of_pair = weights[:, self.labels.chosen]
        sides = self._sides_of_preferred()
        with np.errstate(divide="ignore", invalid="ignore"):
            total = of_pair @ (sides != 0)
            reward = 0.5 + of_pair @ (sides * self._win[:, None]) / total
            labels = 0.5 + of_pair @ (sides * self._label[:, None]) / total
            agreement = 0.5 + of_pair @ (self._win * self._label) / (of_pair @ np.abs(self._win))
        return {"reward": reward, "labels": labels, "agreement": agreement}

    def _sides_of_preferred(self) -> np.ndarray:
        """(M, K) 1 where the chosen side has more of a feature, −1 where it has less."""
        return np.stack([self._sides[name] for name in self.preferred], axis=1)

    def differing(self, name: str) -> int:
        """Pairs whose sides differ in a feature."""
        return int((self._sides[name] != 0).sum())


def _residual(values: np.ndarray, given: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(R, n) values less their weighted regression on (R, n, k) others, all of them centred."""
    weighted = given * weights[:, :, None]
    gram = np.einsum("rnk,rnl->rkl", weighted, given)
    moments = np.einsum("rnk,rn->rk", weighted, values)
    slopes = np.einsum("rkl,rl->rk", np.linalg.pinv(gram, rcond=1e-9, hermitian=True), moments)
    return values - np.einsum("rnk,rk->rn", given, slopes)
