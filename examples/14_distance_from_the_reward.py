"""How far from the score can credit reach? Signal and noise of advantages, exact at any length.

Every token is +1, 0 or −1; the score comes after the last of T tokens and depends on their sum
alone. So V and A are functions of position and running count, known by dynamic programming, and so
are mean and variance of GAE(λ) given state and token, for any critic.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import torch
from experiment import COLORS, in_parallel, interval, new_figure, options, said, write
from rich.console import Console
from rich.table import Table

from tokenenv.maths import generalized_advantages

STEPS = np.array([-1, 0, 1])
PROBS = np.array([0.25, 0.5, 0.25])  # of the policy, in every state
LAMBDAS = (0.9, 0.95, 0.99, 1.0)
CRITICS = ("untrained", "half-trained", "trained")
ESTIMATES = (*(f"λ = {x:g}" for x in LAMBDAS), "uniform")


class Chain:
    """The token MDP of T tokens; arrays are (T + 1, W): position, running count from −T to T."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.counts = np.arange(-length - 1, length + 2)  # one beyond each end, never visited
        self.deviation = np.sqrt(length / 2)  # of the last count
        self.scores = np.tanh(self.counts / self.deviation)  # (W,)
        self.visits = np.zeros((length + 1, len(self.counts)))
        self.visits[0, length + 1] = 1.0
        self.values = np.zeros_like(self.visits)
        self.values[-1] = self.scores
        for t in range(length):
            self.visits[t + 1] = sum(p * np.roll(self.visits[t], s) for s, p in self._actions())
            before = length - 1 - t
            self.values[before] = PROBS @ self.after(self.values[before + 1])
        self.values_after = [self.after(level) for level in self.values]  # Q(s, a) at t − 1
        self.advantages = [
            self.values_after[t + 1] - self.values[t] for t in range(length)
        ]  # T × (3, W)

    @staticmethod
    def _actions() -> list[tuple[int, float]]:
        return list(zip(STEPS.tolist(), PROBS.tolist(), strict=True))

    def after(self, level: np.ndarray) -> np.ndarray:
        """(3, W) what stands at the count that each token leads to."""
        return np.stack([np.roll(level, -step) for step in STEPS])

    def gae(self, critic: np.ndarray, gae_lambda: float) -> list[tuple[np.ndarray, np.ndarray]]:
        """T pairs of (3, W) mean and variance of GAE given state and token, γ = 1.

        As `tokenenv.optimum.bias_variance` has them: E[Â] = δ + λ·E[Â'], and Var[Â] = λ²·(Var of
        the next token's mean + mean of its variance).
        """
        width = len(self.counts)
        mean_after, variance_after, moments = np.zeros(width), np.zeros(width), []
        for t in reversed(range(self.length)):
            is_last = t == self.length - 1
            following = self.scores if is_last else critic[t + 1]
            mean = self.after(following) - critic[t] + gae_lambda * self.after(mean_after)
            variance = gae_lambda**2 * self.after(variance_after)
            moments.insert(0, (mean, variance))
            mean_after = PROBS @ mean
            variance_after = PROBS @ (variance + np.square(mean - mean_after))
        return moments

    def uniform(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """The same of the score minus its mean, which all tokens of a response get."""
        mean_score = self.values[0, self.length + 1]
        squares = np.square(self.scores)
        moments = []
        for t in reversed(range(self.length)):
            after = self.after(squares)  # E[R²|s, a]
            mean = self.values_after[t + 1]
            moments.insert(0, (mean - mean_score, after - np.square(mean)))
            squares = PROBS @ after
        return moments

    def signal(self, moments: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
        """(T,) signal-to-noise ratio and (T,) gain of an estimate at each position.

        Gain: the slope of Â against A; 1 where the whole of the true advantage arrives. Noise: what
        of Â is not gain·A. The ratio is that of their variances, ρ²/(1 − ρ²).
        """
        ratios, gains = np.zeros(self.length), np.zeros(self.length)
        for t, (mean, variance) in enumerate(moments):
            weights = PROBS[:, None] * self.visits[t]  # (3, W)
            truth = self.advantages[t]
            power = (weights * truth**2).sum()
            covariance = (weights * mean * truth).sum()
            whole = (weights * (variance + mean**2)).sum() - (weights * mean).sum() ** 2
            gains[t] = covariance / power
            ratios[t] = covariance**2 / max(power * whole - covariance**2, 1e-12 * power * whole)
        return ratios, gains

    def explained(self, critic: np.ndarray) -> float:
        """1 − E[(V̂ − V)²]/Var(V) over the states that the policy visits."""
        weights, truth = self.visits[:-1] / self.length, self.values[:-1]
        variance = (weights * truth**2).sum() - (weights * truth).sum() ** 2
        return float(1 - (weights * np.square(critic[:-1] - truth)).sum() / variance)

    def sample(self, responses: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """(B, T) indices of tokens and (B, T + 1) running counts."""
        tokens = rng.choice(3, size=(responses, self.length), p=PROBS)
        counts = np.concatenate([np.zeros((responses, 1)), STEPS[tokens].cumsum(axis=1)], axis=1)
        return tokens, counts.astype(int)


def train_critics(chain: Chain, seed: int, steps: int) -> dict[str, tuple[np.ndarray, int]]:
    """Critics and the responses they have seen: at the start, half-way and in the end.

    A small network of position and count, trained on the scores of fresh responses. Half-trained:
    the first that explains half of the variance of V.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    sizes, batch, length = (2, 32, 32, 1), 16, chain.length
    layers = [torch.nn.Linear(a, b) for a, b in pairwise(sizes)]
    torch.nn.init.zeros_(layers[-1].weight)
    torch.nn.init.zeros_(layers[-1].bias)
    network = torch.nn.Sequential(layers[0], torch.nn.Tanh(), layers[1], torch.nn.Tanh(), layers[2])
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, steps)

    def values(times: np.ndarray, counts: np.ndarray) -> torch.Tensor:
        features = np.stack([times / length, counts / chain.deviation], axis=-1)
        return network(torch.as_tensor(features, dtype=torch.float32)).squeeze(-1)

    def everywhere() -> np.ndarray:
        times, counts = np.meshgrid(np.arange(length + 1), chain.counts, indexing="ij")
        with torch.no_grad():
            return values(times, counts).double().numpy()

    critics = {"untrained": (everywhere(), 0)}
    for step in range(1, steps + 1):
        _, counts = chain.sample(batch, rng)
        scores = chain.scores[counts[:, -1:] + length + 1]  # (B, 1)
        times = np.broadcast_to(np.arange(length), counts[:, :-1].shape)
        target = torch.as_tensor(scores, dtype=torch.float32)
        loss = (values(times, counts[:, :-1]) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decay.step()
        if "half-trained" not in critics and chain.explained(everywhere()) >= 0.5:
            critics["half-trained"] = (everywhere(), step * batch)
    critics["trained"] = (everywhere(), steps * batch)
    return critics


def measure(length: int, seed: int, steps: int) -> list[dict]:
    """Signal and gain of all estimates at one length, by one seed of the critic."""
    torch.set_num_threads(1)
    chain, rows = Chain(length), []
    for critic, (values, responses) in train_critics(chain, seed, steps).items():
        moments = [chain.gae(values, x) for x in LAMBDAS] + [chain.uniform()]
        for estimate, of_estimate in zip(ESTIMATES, moments, strict=True):
            ratios, gains = chain.signal(of_estimate)
            rows.append(
                {
                    **{"length": length, "seed": seed, "critic": critic, "responses": responses},
                    **{"explained": chain.explained(values), "estimate": estimate},
                    **{"signal_to_noise": ratios.tolist(), "gain": gains.tolist()},
                }
            )
    return rows


def correlation_of_samples(length: int, gae_lambda: float, responses: int = 50_000) -> list[float]:
    """(T,) correlation of sampled advantages with A, the critic V/2: the long way to the ratio."""
    chain = Chain(length)
    tokens, counts = chain.sample(responses, np.random.default_rng(0))
    places, times = counts + length + 1, np.arange(length + 1)
    values = chain.values[times, places] / 2
    rewards = np.zeros(tokens.shape)
    rewards[:, -1] = chain.scores[places[:, -1]]
    ended = np.zeros(responses)
    lengths = np.full(responses, length)
    estimates = generalized_advantages(rewards, values[:, :-1], lengths, ended, 1.0, gae_lambda)
    truth = [chain.advantages[t][tokens[:, t], places[:, t]] for t in range(length)]
    return [float(np.corrcoef(estimates[:, t], truth[t])[0, 1]) for t in range(length)]


def correlation_by_recursion(length: int, gae_lambda: float) -> list[float]:
    chain = Chain(length)
    ratios, _ = chain.signal(chain.gae(chain.values / 2, gae_lambda))
    return np.sqrt(ratios / (1 + ratios)).tolist()


Chooser = Callable[[str, str, int], list[dict]]


def print_table(choose: Chooser, lengths: tuple[int, ...]) -> None:
    shown = Table(title="signal-to-noise ratio at the first token; gain where it is below 0.9")
    for header in ("critic", "estimate", *(f"T = {n}" for n in lengths)):
        shown.add_column(header, justify="right")
    for critic in CRITICS:
        for estimate in ESTIMATES:
            cells = []
            for length in lengths:
                rows = choose(critic, estimate, length)
                gain = interval([row["gain"][0] for row in rows])[0]
                ratio = said([row["signal_to_noise"][0] for row in rows], ".3f")
                ratio = ratio.removesuffix(" ± 0.000")  # no critic in it, or one that is the same
                cells.append(ratio + (f" ({gain:.2g})" if gain < 0.9 else ""))
            shown.add_row(critic, estimate, *cells, end_section=estimate == ESTIMATES[-1])
    Console(width=160).print(shown)


def draw(choose: Chooser, lengths: tuple[int, ...], length: int):
    """By distance from the score at one length, and at the first token by length."""
    figure, axes = new_figure(2, 4, 11.5, 5.0, sharey="row")
    quantities = ("signal_to_noise", "gain")
    for j, critic in enumerate(CRITICS):
        for estimate, color in zip(ESTIMATES, COLORS, strict=False):
            for axis, name in zip(axes[:, j], quantities, strict=True):
                curves = np.array([row[name] for row in choose(critic, estimate, length)])
                middle, distance = curves.mean(axis=0), np.arange(length, 0, -1)
                style = "--" if estimate == "uniform" else "-"
                axis.plot(distance, middle, style, color=color, label=estimate)
                low, high = curves.min(axis=0), curves.max(axis=0)
                axis.fill_between(distance, low, high, color=color, alpha=0.2, linewidth=0)
        axes[0, j].set_title(f"{critic} critic, T = {length}")
        axes[1, j].set_xlabel("tokens to the score")
    for axis, name, critic in zip(axes[:, 3], quantities, ("trained", "half-trained"), strict=True):
        for estimate, color in zip(ESTIMATES, COLORS, strict=False):
            first = [
                interval([row[name][0] for row in choose(critic, estimate, n)])[0] for n in lengths
            ]
            style = "o--" if estimate == "uniform" else "o-"
            axis.plot(lengths, first, style, color=color, markersize=3.5)
        axis.set_xscale("log", base=2)
        axis.set_xticks(lengths, [str(n) for n in lengths])
        axis.set_title(f"first token, {critic} critic")
    axes[1, 3].set_xlabel("T, tokens of a response")
    axes[0, 0].set(yscale="log", ylabel="signal-to-noise ratio of Â")
    axes[0, 0].text(0.5, 0.3, "all five are equal", ha="center", transform=axes[0, 0].transAxes)
    axes[1, 0].set(ylim=(-0.05, 1.15), ylabel="gain: share of A in Â")
    axes[1, 2].legend(loc="lower left")
    return figure


def main() -> None:
    arguments = options(__doc__)
    lengths = (16, 32) if arguments.quick else (16, 32, 64, 128, 256, 512)
    seeds, steps = (1, 400) if arguments.quick else (3, 3200)
    jobs = [(length, seed, steps) for length in reversed(lengths) for seed in range(seeds)]
    rows = [row for part in in_parallel(measure, jobs, arguments.processes) for row in part]

    def choose(critic: str, estimate: str, length: int) -> list[dict]:
        wanted = (critic, estimate, length)
        return [row for row in rows if (row["critic"], row["estimate"], row["length"]) == wanted]

    for critic in CRITICS:
        of_critic = [row for n in lengths for row in choose(critic, ESTIMATES[0], n)]
        explained = [row["explained"] for row in of_critic]
        responses = [row["responses"] for row in of_critic]
        print(
            f"{critic}: explains {min(explained):.3f} to {max(explained):.3f} of V's variance, "
            f"after {min(responses):,} to {max(responses):,} responses"
        )
    print_table(choose, lengths)
    check = {
        "sampled": correlation_of_samples(16, 0.9),
        "exact": correlation_by_recursion(16, 0.9),
    }
    figure = draw(choose, lengths, 32 if arguments.quick else 128)
    write(arguments.out, "distance", {"rows": rows, "correlation_both_ways": check}, figure)


if __name__ == "__main__":
    main()
