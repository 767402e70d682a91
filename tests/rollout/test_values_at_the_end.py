"""A critic with a trunk of its own values a rollout once it is complete, not while sampling."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from support.tiny_task import make_agent

from agents.ppo import TokenPPO
from agents.rollout import RLHFCallback


@pytest.fixture
def trained(tiny_task_kwargs) -> Callable[..., tuple[TokenPPO, list]]:
    """Makes a model after some updates, with values and following values of each of them."""

    def make(
        cut: str, value_head: str = "separate", updates: int = 3, **settings
    ) -> tuple[TokenPPO, list]:
        model = make_agent(
            {**tiny_task_kwargs, "scoring": "deferred"},
            n_steps=14,
            rollout_buffer_kwargs={"cut": cut},
            policy_kwargs={"value_head": value_head},
            **{"batch_size": 48, **settings},
        )
        values = []
        model.on_updated = lambda update: values.append(
            (update.buffer.values.copy(), update.buffer.following_values.copy())
        )
        model.learn(6 * 14 * updates)
        return model, values

    return make


@pytest.mark.parametrize("cut", ["bootstrap", "carry"])
def test_values_at_the_end_are_those_that_sampling_would_have_given(trained, cut, monkeypatch):
    later, updates = trained(cut)
    monkeypatch.setattr(RLHFCallback, "_values_of_a_rollout", lambda *_: None)
    stepwise, expected = trained(cut)
    assert len(updates) == 3 and updates[2][0].any()
    for (values, following), (values_then, following_then) in zip(updates, expected, strict=True):
        np.testing.assert_allclose(values, values_then, atol=1e-5)
        np.testing.assert_allclose(following, following_then, atol=1e-5)
    for one, other in zip(later.policy.parameters(), stepwise.policy.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
    if cut == "bootstrap":  # some episodes are cut, and the state after them has a value
        assert updates[2][1].any()


def test_only_the_actor_runs_while_sampling_and_the_critic_once_per_sequence(trained):
    model, _ = trained("bootstrap")
    assert model.policy.critic is not None
    calls = {"actor": 0, "critic": 0}

    def count(name):
        return lambda *_: calls.update({name: calls[name] + 1})

    model.policy.actor.base_model.register_forward_hook(count("actor"))
    model.policy.critic.model.base_model.register_forward_hook(count("critic"))
    model.train = lambda: None  # type: ignore[method-assign]
    model.learn(6 * 14, reset_num_timesteps=False)
    assert calls["critic"] == 1 and calls["actor"] >= 14


def test_values_are_nan_only_where_the_buffer_fills_them_in(trained):
    model, _ = trained("bootstrap")
    policy, observations = model.policy, torch.as_tensor(model._last_obs)
    with torch.no_grad():
        expected = policy.predict_values(observations)
    assert torch.isfinite(policy(observations)[1]).all()
    is_due = False
    policy.begin_rollout(lambda: is_due)
    with torch.no_grad():
        assert policy(observations)[1].isnan().all()
        torch.testing.assert_close(policy.predict_values(observations), expected)
        is_due = True
        assert policy.predict_values(observations).isnan().all()
    policy.end_rollout()
    torch.testing.assert_close(policy(observations)[1], expected, atol=1e-6, rtol=1e-5)


def test_a_rollout_that_a_callback_stops_leaves_values_as_they_are(trained):
    model, _ = trained("bootstrap")
    model.learn(84, lambda *_: False, reset_num_timesteps=False)
    assert torch.isfinite(model.policy(torch.as_tensor(model._last_obs))[1]).all()


def test_a_shared_trunk_still_gives_its_values_while_sampling(trained):
    model, _ = trained("bootstrap", "shared")
    assert model.rollout_buffer.binding is not None
    assert model.rollout_buffer.binding.values is None


def critic_weights(trained, updates: int, **settings) -> torch.Tensor:
    """All weights of a critic after some updates, without the joint clipping of gradients."""
    model, _ = trained("bootstrap", updates=updates, max_grad_norm=1e9, **settings)
    return torch.cat([weight.detach().flatten() for weight in model.policy.critic.parameters()])


def test_a_critic_learns_in_as_many_epochs_as_it_is_given(trained):
    one = critic_weights(trained, 1, n_epochs=2, critic_epochs=1)
    torch.testing.assert_close(one, critic_weights(trained, 1, n_epochs=1), atol=1e-7, rtol=0)
    both = critic_weights(trained, 1, n_epochs=2)
    torch.testing.assert_close(both, critic_weights(trained, 1, n_epochs=2, critic_epochs=2))
    assert (one - both).abs().max() > 1e-5


def test_the_critic_is_not_run_in_the_epochs_in_which_it_does_not_learn(trained):
    model, _ = trained("bootstrap", n_epochs=3, critic_epochs=1, batch_size=84)
    calls = {"critic": 0, "backward": 0}
    trunk = model.policy.critic.model.base_model
    trunk.register_forward_hook(lambda *_: calls.update(critic=calls["critic"] + 1))
    model.learn(84, reset_num_timesteps=False)
    assert calls["critic"] == 2  # the rollout's values, and the first epoch
    assert model.logger.name_to_value["train/value_loss"] > 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"value_head": "shared", "critic_epochs": 1}, "critic_epochs=1 is for a critic with a"),
        ({"n_epochs": 2, "critic_epochs": 3}, "critic_epochs=3 with n_epochs=2: .* up to n_epochs"),
        ({"critic_epochs": 0}, "critic_epochs=0 must be"),
    ],
)
def test_epochs_that_a_critic_can_not_have_are_refused(trained, settings, message):
    with pytest.raises(ValueError, match=message):
        trained("bootstrap", **settings)
