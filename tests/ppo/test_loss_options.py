"""Clip-higher, and the aggregation of the loss by token, by sequence and by a constant."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from stable_baselines3.common.buffers import RolloutBuffer
from support.tiny_task import (
    T,
    begin,
    collect,
    largest_difference,
    make_agent,
    perturb,
    weights,
)

from agents import EpisodeRolloutBuffer, TokenPPO, make_vec_env
from agents.config import TrainConfig
from agents.ppo.losses import aggregation_weights, ppo_losses
from agents.ppo.update import Update
from agents.runs.agent import build_agent
from agents.settings import LOSS_AGGREGATIONS
from tokenenv.maths.kl import kl_estimate


class Batch:
    """What `ppo_losses` reads of a minibatch."""

    def __init__(self, ratios: list[float]) -> None:
        self.old_log_prob = torch.full((len(ratios),), -1.0, dtype=torch.float64)
        self.old_values = self.returns = torch.zeros(len(ratios), dtype=torch.float64)


def wide(numbers: list[float]) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def losses_of(ratios, advantages, entropies=None, values=None, **given):
    """Losses of tokens with these ratios; and the log-probabilities, for their gradient."""
    batch = Batch(ratios)
    log_probs = (batch.old_log_prob + wide(ratios).log()).requires_grad_()
    nothing = torch.zeros(len(ratios), dtype=torch.float64)
    losses = ppo_losses(
        nothing if values is None else wide(values),
        log_probs,
        nothing if entropies is None else wide(entropies),
        batch,
        wide(advantages),
        clip_range=0.2,
        clip_range_vf=None,
        **given,
    )
    return losses, log_probs


# Clip-higher --------------------------------------------------------------------------------------


def test_clip_higher_by_hand():
    ratios, advantages = [1.4, 1.6, 0.7, 1.4, 0.9], [1.0, 2.0, -1.0, -1.0, 1.0]
    losses, log_probs = losses_of(ratios, advantages, clip_range_high=0.5)
    # min(1.4, 1.4); min(3.2, 2·1.5); min(−0.7, −0.8); min(−1.4, −1.4); min(0.9, 0.9)
    assert losses.policy.item() == pytest.approx(-(1.4 + 3.0 - 0.8 - 1.4 + 0.9) / 5, abs=1e-12)
    losses.policy.backward()
    # −A·ratio/n; 1.6 is above 1.5 and 0.7 below 0.8, so that neither moves.
    assert log_probs.grad.tolist() == pytest.approx([-0.28, 0.0, 0.0, 0.28, -0.18], abs=1e-12)
    assert float(losses.clip_fraction) == pytest.approx(2 / 5, abs=1e-7), "1.6 above, 0.7 below"
    usual, _ = losses_of(ratios, advantages)
    assert usual.policy.item() == pytest.approx(-(1.2 + 2.4 - 0.8 - 1.4 + 0.9) / 5, abs=1e-12)
    assert float(usual.clip_fraction) == pytest.approx(4 / 5, abs=1e-7), "and 1.4, twice"


@pytest.mark.parametrize("high", [0.05, 0.2, 0.5])
def test_the_clip_fraction_counts_each_side_by_its_own_range(high):
    ratios = np.linspace(0.5, 2.0, 301)
    losses, _ = losses_of(ratios.tolist(), np.ones(301).tolist(), clip_range_high=high)
    expected = np.mean((ratios < 1 - 0.2 - 1e-9) | (ratios > 1 + high + 1e-9))
    assert float(losses.clip_fraction) == pytest.approx(expected, abs=1.5 / 301)


def test_clip_higher_reaches_the_update_as_a_number_and_as_a_schedule(tiny_task_kwargs):
    found = {}
    for name, high in (
        ("none", None),
        ("as low", 0.1),
        ("higher", 0.4),
        ("schedule", lambda p: 0.4),
    ):
        model = make_agent(tiny_task_kwargs, clip_range=0.1, clip_range_high=high, n_epochs=1)
        collect(model, begin(model))
        perturb(model.policy, 0.02)
        model._current_progress_remaining = 1.0
        model.train()
        logged = model.logger.name_to_value
        found[name] = weights(model.policy), logged["train/clip_fraction"]
    assert largest_difference(found["none"][0], found["as low"][0]) == 0.0
    assert largest_difference(found["higher"][0], found["schedule"][0]) == 0.0
    assert largest_difference(found["none"][0], found["higher"][0]) > 1e-5
    assert found["higher"][1] < found["none"][1] == found["as low"][1]


# Aggregation --------------------------------------------------------------------------------------


def test_aggregation_weights_by_hand():
    rows = torch.tensor([0, 0, 0, 1])  # n = 4 tokens of S = 2 sequences, of 3 and 1
    assert aggregation_weights(rows, "token", 8) is None
    # 4/(2·3) and 4/(2·1)
    by_sequence = aggregation_weights(rows, "sequence", 8)
    assert by_sequence.tolist() == pytest.approx([2 / 3, 2 / 3, 2 / 3, 2.0], abs=1e-15)
    # 4/(2·8)
    assert aggregation_weights(rows, "constant", 8).tolist() == [0.25] * 4


def test_aggregated_losses_by_hand():
    """Surrogates 1, 2, 3 and 6 of sequences of 3 tokens and of 1; ratios are 1."""
    rows, surrogates = torch.tensor([0, 0, 0, 1]), [1.0, 2.0, 3.0, 6.0]
    for aggregation, expected in (
        ("token", 12 / 4),
        ("sequence", (2 + 6) / 2),
        ("constant", (6 / 8 + 6 / 8) / 2),
    ):
        losses, log_probs = losses_of(
            [1.0] * 4,
            surrogates,
            entropies=surrogates,
            values=[1.0, 2.0, 3.0, 4.0],
            weights=aggregation_weights(rows, aggregation, 8),
        )
        assert losses.policy.item() == pytest.approx(-expected, abs=1e-12)
        assert losses.entropy.item() == pytest.approx(-expected, abs=1e-12), "as the policy's"
        assert losses.value.item() == pytest.approx(30 / 4, abs=1e-12), "a mean over tokens always"
        losses.policy.backward()
        of_last = {"token": 6 / 4, "sequence": 6 / 2, "constant": 6 / 16}[aggregation]
        assert log_probs.grad[3].item() == pytest.approx(-of_last, abs=1e-12)


def test_sequences_of_one_length_are_aggregated_alike_and_the_constant_scales():
    rows = torch.tensor([1, 0, 1, 0, 2, 2])
    for aggregation, divisor in (("sequence", 8), ("constant", 2)):
        assert aggregation_weights(rows, aggregation, divisor).tolist() == [1.0] * 6
    assert aggregation_weights(rows, "constant", 6).tolist() == pytest.approx([1 / 3] * 6)


def by_hand(model, batch, aggregation, divisor):
    """A minibatch's loss, sequence by sequence: surrogate, entropy bonus, k3 loss, value loss."""
    policy, states = model.policy, batch.observations
    values, log_probs, entropies = policy.evaluate_actions(states, batch.actions.long().flatten())
    ratio = torch.exp(log_probs - batch.old_log_prob)
    surrogate = torch.min(
        ratio * batch.advantages, ratio.clamp(1 - 0.1, 1 + 0.3) * batch.advantages
    )
    kl = ratio.detach() * kl_estimate("k3", log_probs - batch.ref_log_prob)
    beta = model.rollout_buffer.kl_coef / model.advantage_std
    of_tokens = -surrogate - model.ent_coef * entropies + beta * kl
    sequences = [of_tokens[states.rows == row] for row in range(int(states.rows.max()) + 1)]
    if aggregation == "token":
        loss = torch.cat(sequences).mean()
    elif aggregation == "sequence":
        loss = torch.stack([sequence.mean() for sequence in sequences]).mean()
    else:
        loss = torch.stack([sequence.sum() / divisor for sequence in sequences]).mean()
    deviation = model.policy.critic_head.deviation
    errors = (values.flatten() - batch.returns) / deviation
    return loss + model.vf_coef * errors.square().mean()


@pytest.mark.parametrize("cut", ["bootstrap", "carry"])
@pytest.mark.parametrize(
    ("aggregation", "divisor"),
    [("token", None), ("sequence", None), ("constant", None), ("constant", 3)],
)
def test_the_gradient_of_every_minibatch_is_that_of_the_loss_written_out(
    tiny_task_kwargs, aggregation, divisor, cut
):
    """Minibatches have different numbers of tokens and of sequences; micro-batches split them."""
    kwargs = {**tiny_task_kwargs, "dtype": "float64", "kl_shaping": "none"}
    model = make_agent(
        kwargs,
        kl_estimator="k3",
        use_kl_loss=True,
        ent_coef=0.3,
        clip_range=0.1,
        clip_range_high=0.3,
        clip_range_vf=None,
        loss_aggregation=aggregation,
        loss_divisor=divisor,
        rollout_buffer_kwargs={"cut": cut},
    )
    buffer = collect(model, begin(model))
    perturb(model.policy, 0.02)
    model._current_progress_remaining = 1.0
    update = Update(model)
    update.whiten_advantages()
    update.follow_returns()
    model.advantage_std = update.advantage_std
    sizes = set()
    for batch in buffer.get(40):
        lengths = torch.bincount(batch.observations.rows)
        assert len(set(lengths.tolist())) > 1, "sequences of different length"
        sizes.add((len(lengths), int(lengths.sum())))
        found = []
        for micro_batch_tokens in (None, 40, 1):
            model.micro_batch_tokens = micro_batch_tokens
            parts = update.accumulate_gradients(batch)
            found.append([p.grad.clone() for p in model.policy.parameters()])
        model.policy.optimizer.zero_grad()
        loss = by_hand(model, batch, aggregation, divisor or T)
        loss.backward()
        expected = [p.grad for p in model.policy.parameters()]
        assert float(parts["loss"]) == pytest.approx(loss.item(), abs=1e-6)
        for gradients in found:
            for own, other in zip(gradients, expected, strict=True):
                assert (own - other).abs().max() <= 1e-6 * max(1.0, float(other.abs().max()))
    assert len({sequences for sequences, _ in sizes}) > 1 and len({n for _, n in sizes}) > 1


def test_aggregations_train_differently_and_a_cut_response_is_two_sequences(tiny_task_kwargs):
    """With rollouts of 3 steps no sequence is longer than that, whatever its response is."""
    ends = []
    for aggregation in LOSS_AGGREGATIONS:
        model = make_agent(tiny_task_kwargs, n_steps=3, n_envs=8, loss_aggregation=aggregation)
        model.learn(2 * 3 * 8)
        buffer = model.rollout_buffer
        assert max(buffer.lengths) <= 3 and max(map(len, map(buffer.prefix, range(8)))) > 3
        assert math.isfinite(model.logger.name_to_value["train/loss"])
        ends.append(weights(model.policy))
    assert min(largest_difference(ends[0], end) for end in ends[1:]) > 1e-5
    assert largest_difference(ends[1], ends[2]) > 1e-5


# Settings -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"loss_aggregation": "mean"}, r"'mean' is unknown: choose one of 'token', 'sequence'"),
        ({"loss_divisor": 8}, r"loss_divisor=8 is without effect with loss_aggregation='token'"),
        (
            {"loss_aggregation": "sequence", "loss_divisor": 8},
            r"loss_divisor=8 is without effect .* use loss_aggregation='constant'",
        ),
        ({"loss_aggregation": "constant", "loss_divisor": 0}, "loss_divisor=0 must be a whole"),
        ({"clip_range_high": 0.0}, r"clip_range_high=0\.0 must be a positive"),
        ({"clip_range_high": math.inf}, "clip_range_high=inf must be a positive, finite"),
    ],
)
def test_what_makes_no_sense_is_refused_by_agent_and_command_line(tiny_task_kwargs, given, message):
    with pytest.raises(ValueError, match=message):
        make_agent(tiny_task_kwargs, **given)
    with pytest.raises(ValueError, match=message):
        TrainConfig(**given)


def test_aggregation_needs_whole_sequences(tiny_task_kwargs):
    with pytest.raises(ValueError, match="RolloutBuffer has single time steps: use rollout_buffer"):
        make_agent(
            tiny_task_kwargs, loss_aggregation="sequence", rollout_buffer_class=RolloutBuffer
        )
    make_agent(tiny_task_kwargs, clip_range_high=0.3, rollout_buffer_class=RolloutBuffer).learn(1)


def test_the_command_line_passes_them_on_and_archives_keep_them(tiny_task_kwargs, tmp_path):
    given = {"clip_range_high": 0.3, "loss_aggregation": "constant", "loss_divisor": 6}
    own = {k: v for k, v in tiny_task_kwargs.items() if k != "prompts"}
    config = TrainConfig(n_envs=2, n_steps=12, **own, **given)
    assert TrainConfig.from_json(config.as_json()) == config
    environment = {**config.environment(), "prompts": tiny_task_kwargs["prompts"]}
    model = build_agent(config, make_vec_env(n_envs=2, **environment))
    assert isinstance(model.rollout_buffer, EpisodeRolloutBuffer)
    assert {name: getattr(model, name) for name in given} == given
    model.save(tmp_path / "model")
    loaded = TokenPPO.load(tmp_path / "model", env=model.env, device="cpu")
    assert {name: getattr(loaded, name) for name in given} == given
    loaded.learn(24)
