"""`LMActorCriticPolicy`: a Stable-Baselines3 policy whose actor is a causal language model."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.distributions import CategoricalDistribution, Distribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule

from agents.policy.checks import as_token_ids, check_spaces, check_vocabulary
from agents.policy.critic import SeparateCritic, build_critic, new_value_head
from agents.policy.decoders import PolicyDecoders
from agents.policy.fast_paths import fused_where_possible, in_one_transfer, optimizer_of
from agents.policy.files import json_config, load_policy, save_policy
from agents.policy.lora import (
    check_digest,
    leave_out_frozen,
    load_adapted,
    lora_kwargs,
    lora_settings,
)
from agents.policy.token_scores import score_tokens, scores_of_logits
from agents.policy.value_head import ValueHead
from tokenenv.models import (
    PackedSequences,
    build_language_model,
    check_cached_step,
    check_context,
    enable_checkpointing,
    hidden_states,
    load_trainable,
    log_softmax,
    one_at_a_time,
    output_folder,
    pack_observations,
    refuse_nan,
    sample_tokens,
    tempered_logits,
)
from tokenenv.ranges import WEIGHT
from tokenenv.tasks import model_source

__all__ = ["VALUE_HEADS", "LMActorCriticPolicy"]

VALUE_HEADS = ("shared", "separate")


class LMActorCriticPolicy(ActorCriticPolicy):
    """A causal LM as actor, with a value head on its trunk or a critic of its own.

    While sampling, every token costs one forward (a slot cache per environment); in the update,
    whole sequences are evaluated at once. All of it is exact: dropout is off, one temperature
    divides the logits everywhere, log-softmax runs in float32 at least.

    Args:
        observation_space: of the token MDP: `Box(-1, V-1, (P+T,), int64)`.
        action_space: `Discrete(V)`.
        lr_schedule: SB3's learning-rate schedule.
        actor: task name, folder or hub id of the causal LM to train; a copy is taken.
        value_head: `"shared"`: a linear head on the actor's trunk; `"separate"`: its own trunk.
        critic: for `"separate"`: where its trunk starts from: `"actor"`, or the folder or hub id of
            a reward model (then with its head, normalised) or of a causal LM.
        temperature: divides the logits in sampling and in every log-probability.
        dtype: of the weights.
        attention: implementation of transformers' attention: `"eager"` for algorithms that
            differentiate twice (TRPO), it keeps all logits of an update; None: the model's own,
            which is the fastest.
        config: build the actor from this transformers config, randomly initialised, instead of
            loading `actor`; a saved model carries it, so that it loads without the first
            checkpoint.
        critic_config: likewise for a separate critic.
        lora: train low-rank adapters alone: `{"rank": r}`, with `"alpha"` (2·r unless given) and
            `"target_modules"` (peft's for the architecture). The frozen weights are those of the
            environment's reference, not a copy; a separate critic gets adapters as well.
        gradient_checkpointing: compute the layers' activations again in the backward pass of an
            update instead of keeping them: less memory, a third more time.
        optimizer_class: torch optimiser, or `"adam"`, `"adamw"`, `"sgd"` or `"adagrad"`.
        optimizer_kwargs: of the optimiser; ε of Adam and AdamW is 1e-5 unless given.
        use_sde: not available for token ids.
        **sb3_kwargs: nothing else is known; it is refused by name.

    Raises:
        ValueError: the spaces are not the token MDP's (an observation normaliser changes them), the
            vocabularies differ, or a model can't be used.
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        lr_schedule: Schedule,
        actor: str = "reviews",
        value_head: str = "shared",
        critic: str = "actor",
        temperature: float = 1.0,
        dtype: str = "float32",
        attention: str | None = None,
        config: dict[str, Any] | None = None,
        critic_config: dict[str, Any] | None = None,
        lora: dict[str, Any] | None = None,
        gradient_checkpointing: bool = False,
        optimizer_class: str | type[torch.optim.Optimizer] = torch.optim.Adam,
        optimizer_kwargs: dict[str, Any] | None = None,
        use_sde: bool = False,
        **sb3_kwargs: Any,
    ) -> None:
        check_spaces(observation_space, action_space)
        if sb3_kwargs or use_sde:
            unknown = ", ".join([*sb3_kwargs, *(["use_sde"] if use_sde else [])])
            raise ValueError(
                f"LMActorCriticPolicy has no use for {unknown}: its networks are the language "
                "model's. Leave them out of policy_kwargs."
            )
        if value_head not in VALUE_HEADS:
            raise ValueError(f"value_head={value_head!r} is unknown: choose one of {VALUE_HEADS}.")
        if not (WEIGHT.holds(temperature) and temperature > 0):
            raise ValueError(f"temperature={temperature!r} must be a positive number.")
        self.actor_source = model_source(actor, "reference")
        self.value_head = value_head
        self.critic_source = critic if critic == "actor" else model_source(critic, "reward_model")
        self.temperature = temperature
        if attention not in (None, "eager", "sdpa"):
            raise ValueError(
                f"attention={attention!r} is unknown: choose 'eager' (slower, differentiable "
                "twice), 'sdpa', or None for the model's own."
            )
        self.dtype_name = dtype
        self.attention = attention
        self._config, self._critic_config = config, critic_config
        self.lora, self._digests = lora_settings(lora)
        self.gradient_checkpointing = gradient_checkpointing
        self.entropy_weight: Callable[[], float] | None = None
        optimizer, optimizer_kwargs = optimizer_of(optimizer_class, optimizer_kwargs)
        with one_at_a_time():  # a value head, too, must find torch's own initialisers
            super().__init__(
                observation_space,
                action_space,
                lr_schedule,
                ortho_init=False,
                optimizer_class=optimizer,
                optimizer_kwargs=optimizer_kwargs,
            )

    # Building ------------------------------------------------------------------------------------

    def _build(self, lr_schedule: Schedule) -> None:
        """Load the actor, add the critic, and set up the optimiser; called by SB3's constructor."""
        width = int(self.observation_space.shape[0])  # type: ignore[index]
        tokenizer = None
        if self.lora is not None:
            loaded = load_adapted(self.actor_source, self.dtype_name, self.lora)
            self.actor, tokenizer = loaded.model, loaded.tokenizer
            check_digest(
                self.actor, self._digests.get("actor_digest"), f"actor={self.actor_source!r}"
            )
        elif self._config is not None:
            self.actor = build_language_model(self._config, self.dtype_name)
        else:
            loaded = load_trainable(self.actor_source, dtype=self.dtype_name)
            self.actor, tokenizer = loaded.model, loaded.tokenizer
        check_vocabulary(self.actor, int(self.action_space.n), self.actor_source)  # type: ignore[attr-defined]
        check_context(self.actor, width, "actor")
        self.critic: SeparateCritic | None = None
        if self.value_head == "separate":
            self.critic = build_critic(
                *(self.critic_source, self.actor, tokenizer, self._critic_config),
                *(self.dtype_name, self.lora),
            )
            digest = self._digests.get("critic_digest")
            check_digest(self.critic.model, digest, f"critic={self.critic_source!r}")
        else:
            hidden_size = self.actor.get_output_embeddings().weight.shape[1]
            self.value_net = new_value_head(hidden_size, self.dtype_name)
        if self.attention is not None:
            for trunk in self._trunks():
                trunk.set_attn_implementation(self.attention)
        self._check_trunks(width)
        if self.gradient_checkpointing:
            for trunk in self._trunks():
                enable_checkpointing(trunk)
        if self.lora is not None:
            trunks = dict(zip(("actor.", "critic.model."), self._trunks(), strict=False))
            leave_out_frozen(self, trunks)
        self.optimizer = self.optimizer_class(
            [weight for weight in self.parameters() if weight.requires_grad],
            lr=lr_schedule(1),  # type: ignore[call-arg]
            **fused_where_possible(self.optimizer_class, self.optimizer_kwargs),
        )
        self._host_observations: Callable[[], np.ndarray] | None = None
        self._values_are_due: Callable[[], bool] | None = None
        self._is_predicting = False
        self._new_decoders()
        self.register_load_state_dict_post_hook(_drop_caches_of)

    def _new_decoders(self) -> None:
        self.decoders = PolicyDecoders(self._check_trunks)
        self.decoders.watch(self.optimizer)

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles: everything but the caches and what training lends."""
        lent = {"_host_observations": None, "_values_are_due": None, "entropy_weight": None}
        state = {**self.__dict__, **lent}
        del state["decoders"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._new_decoders()  # and optimisers leave their hooks behind

    def _check_trunks(self, width: int) -> None:
        """Refuse an actor or critic that can't be followed token by token."""
        check_cached_step(self.actor, -(-width // 2), width // 2, f"actor {self.actor_source!r}")
        if self.critic is not None:
            name = f"critic {self.critic_source!r}"
            check_cached_step(self.critic.model, -(-width // 2), width // 2, name)

    def rebuild_kwargs(self) -> dict[str, Any]:
        """`policy_kwargs` that build the same shapes without the first checkpoint; JSON only."""
        kwargs: dict[str, Any] = {
            "actor": self.actor_source,
            "value_head": self.value_head,
            "critic": self.critic_source,
            "temperature": self.temperature,
            "dtype": self.dtype_name,
        }
        if self.gradient_checkpointing:
            kwargs["gradient_checkpointing"] = True
        if self.attention is not None:
            kwargs["attention"] = self.attention
        if self.lora is not None:  # over the frozen weights, which no archive holds
            critic = None if self.critic is None else self.critic.model
            places = {name: _absolute(kwargs[name]) for name in ("actor", "critic")}
            return {**kwargs, **places, "lora": lora_kwargs(self.lora, self.actor, critic)}
        kwargs["config"] = json_config(self.actor)
        if self.critic is not None:
            kwargs["critic_config"] = json_config(self.critic.model)
        return kwargs

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {
            "observation_space": self.observation_space,
            "action_space": self.action_space,
            "lr_schedule": self._dummy_schedule,
            "optimizer_class": self.optimizer_class,
            "optimizer_kwargs": self.optimizer_kwargs,
            **self.rebuild_kwargs(),
        }

    def _trunks(self) -> list[Any]:
        """The actor, and the critic's model where it has its own."""
        return [self.actor] + ([self.critic.model] if self.critic is not None else [])

    # Caches --------------------------------------------------------------------------------------

    def drop_caches(self) -> None:
        """Forget all keys and values: called by itself whenever weights can have changed."""
        self.decoders.drop()

    def _apply(self, *args: Any, **kwargs: Any) -> LMActorCriticPolicy:
        """Torch's way to another device or dtype: what was cached does not move along."""
        self.drop_caches()
        return super()._apply(*args, **kwargs)

    def set_training_mode(self, mode: bool) -> None:
        """SB3's switch between update and rollout; dropout is off in both.

        Either way nothing is known of the weights any more, unless it is `predict` that calls.
        """
        super().set_training_mode(mode)
        if not self._is_predicting:
            self.end_rollout()
            self.drop_caches()

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        """SB3's; what a rollout has cached stays."""
        self._is_predicting = True
        try:
            return super().predict(*args, **kwargs)
        finally:
            self._is_predicting = False

    @contextlib.contextmanager
    def reading(self, observations: Callable[[], np.ndarray]) -> Iterator[None]:
        """While this lasts, `forward` takes its observations from the host.

        SB3 uploads them to the policy's device before every call, where nothing needs them: the
        decoder follows them on the host and uploads one token for each. So they are not fetched
        back.

        Args:
            observations: gives the (N, P+T) token ids of the call that is made.
        """
        self._host_observations = observations
        self.begin_rollout()
        try:
            yield
        finally:
            self._host_observations = None
            self.end_rollout()

    def begin_rollout(self, values_are_due: Callable[[], bool] | None = None) -> None:
        """Let `forward` take a quick look at the weights only, until the rollout ends.

        It does not see what is written through `.data` to a part of a tensor, nor in place on a
        GPU; called by anyone else, `forward` reads all weights, as `predict` does.

        Args:
            values_are_due: given where the buffer asks a critic of its own for the values of the
                whole rollout at its end. Then `forward` does not run the critic and its values are
                NaN; nor does `predict_values` where this returns True: the rollout is complete, and
                the buffer is about to ask.
        """
        self.decoders.is_in_rollout = True
        self._values_are_due = values_are_due

    def end_rollout(self) -> None:
        """Let `forward` and `predict_values` read all weights again, and give values."""
        self.decoders.is_in_rollout = False
        self._values_are_due = None

    @property
    def entropy_needs_gradient(self) -> bool:
        """Whether entropies carry gradient: not while an update gives them the weight 0.

        `entropy_weight` is asked for each forward pass, so that a weight which is raised in the
        middle of training acts at once; without one, they carry it.
        """
        return self.entropy_weight is None or self.entropy_weight() != 0.0

    # SB3's interface -----------------------------------------------------------------------------

    def forward(
        self, obs: torch.Tensor, deterministic: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Sample one token for each of (N, P+T) observations, with one forward of one token.

        Returns:
            (N,) actions, (N, 1) values, (N,) log-probabilities; without gradient, and on the host,
            where the environment and the buffer want them. The values are NaN where the buffer
            computes them later: see `begin_rollout`.
        """
        read = None if obs.device.type == "cpu" else self._host_observations
        observations = as_token_ids(obs) if read is None else read()
        with torch.no_grad():
            trunks = self._trunks() if self._values_are_due is None else [self.actor]
            hidden = self.decoders.follow("rollout", trunks, observations)  # (N, h) each
            log_probs = log_softmax(self.actor, hidden[0], self.temperature)  # (N, V)
            if deterministic:
                chosen_log_probs, actions = log_probs.max(dim=-1)
            else:
                actions, chosen_log_probs = sample_tokens(log_probs)
            if self._values_are_due is None:
                values = self.values_of(hidden[-1])
            else:
                values = chosen_log_probs.new_full((len(actions), 1), math.nan)
        if actions.is_cuda:
            actions, values, chosen_log_probs = in_one_transfer(actions, values, chosen_log_probs)
        refuse_nan(chosen_log_probs, "the actor")
        return actions, values, chosen_log_probs

    def evaluate_actions(
        self,
        obs: PyTorchObs | PackedSequences,
        actions: torch.Tensor,
        with_values: bool = True,
    ) -> tuple[Any, torch.Tensor, torch.Tensor]:
        """Values, log-probabilities and entropies of `actions`, with gradient.

        Args:
            obs: (n, P+T) observations, one per action (SB3's buffer), or the `PackedSequences` of n
                states (ours): then every sequence is evaluated by one forward.
            actions: (n,) token ids.
            with_values: whether a critic of its own is run; without it, there are no values.

        Returns:
            (n, 1) values or None, (n,) log-probabilities, (n,) entropies in nats.
        """
        if self.attention == "eager":  # score_tokens can be differentiated once
            return self.evaluate_with_logits(obs, actions, with_values)[:3]
        hidden, values = self._hidden_and_values(self._packed(obs), with_values)
        scores = score_tokens(
            self.actor,
            hidden,
            actions.long().flatten(),
            self.temperature,
            self.entropy_needs_gradient,
        )
        return values, *scores

    def log_probs_of(
        self, states: PackedSequences, actions: torch.Tensor, by_logits: bool = False
    ) -> torch.Tensor:
        """(n,) log π of `actions`; a critic of its own does not run.

        Args:
            states: n states.
            actions: (n,) token ids.
            by_logits: compute as `evaluate_with_logits` does.
        """
        evaluate = self.evaluate_with_logits if by_logits else self.evaluate_actions
        choice = {} if self.critic is None else {"with_values": False}
        return evaluate(states, actions, **choice)[1]

    def evaluate_with_logits(
        self,
        obs: PyTorchObs | PackedSequences,
        actions: torch.Tensor,
        with_values: bool = True,
    ) -> tuple[torch.Tensor | None, torch.Tensor, torch.Tensor, torch.Tensor]:
        """As `evaluate_actions`, and the (n, V) logits, divided by the temperature."""
        hidden, values = self._hidden_and_values(self._packed(obs), with_values)
        logits = tempered_logits(self.actor, hidden, self.temperature)
        scores = scores_of_logits(logits, actions.long().flatten(), self.entropy_needs_gradient)
        return values, *scores, logits

    def get_distribution(self, obs: PyTorchObs) -> Distribution:
        """The distribution over the next token at (N, P+T) observations, by a full forward."""
        hidden = hidden_states(self.actor, self._packed(obs))  # (N, h)
        logits = tempered_logits(self.actor, hidden, self.temperature)
        assert isinstance(self.action_dist, CategoricalDistribution)
        return self.action_dist.proba_distribution(action_logits=logits)

    def predict_values(self, obs: PyTorchObs) -> torch.Tensor:
        """(N, 1) values of (N, P+T) observations.

        At the end of a rollout they follow on from its cache, which a single observation never
        touches; or they are NaN, where the buffer computes them later: see `begin_rollout`.
        """
        if self._values_are_due is not None:
            if self._values_are_due():
                return torch.full((len(obs), 1), math.nan)
            return self.state_values(self._packed(obs))
        follows = len(obs) > 1 and self.decoders.have_followed("rollout", len(obs))
        if follows and not torch.is_grad_enabled():
            hidden = self.decoders.follow("rollout", self._trunks(), as_token_ids(obs))
            return self.values_of(hidden[-1])
        return self.state_values(self._packed(obs))

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> torch.Tensor:
        """Actions for `predict`, which has a cache of its own."""
        with torch.no_grad():
            (hidden,) = self.decoders.follow("predict", [self.actor], as_token_ids(observation))
            log_probs = log_softmax(self.actor, hidden, self.temperature)  # (N, V)
            return log_probs.argmax(dim=-1) if deterministic else sample_tokens(log_probs)[0]

    @property
    def q_net(self) -> Any:
        """The Q-network that DQN looks for; always raises ValueError."""
        raise ValueError(
            "LMActorCriticPolicy has no Q-values, so DQN can't train it: use PPO, A2C or TRPO, or "
            "DQN with 'MlpPolicy' on 'TokenRLHF-Features-TopK-v0'."
        )

    quantile_net = q_net  # the name that QR-DQN looks for

    # Parts ---------------------------------------------------------------------------------------

    def _packed(self, obs: Any) -> PackedSequences:
        if isinstance(obs, PackedSequences):
            return obs
        as_token_ids(obs)
        return pack_observations(obs)

    def trunk_states(self, packed: PackedSequences) -> tuple[torch.Tensor, torch.Tensor]:
        """(n, h) of the actor's trunk and (n, h') of the critic's; the same where it is shared."""
        hidden = hidden_states(self.actor, packed)
        if self.critic is None:
            return hidden, hidden
        return hidden, hidden_states(self.critic.model, packed)

    def _hidden_and_values(
        self, packed: PackedSequences, with_values: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(n, h) hidden states of the actor's trunk, and (n, 1) values."""
        if not with_values:
            return hidden_states(self.actor, packed), None
        hidden, critic_hidden = self.trunk_states(packed)
        return hidden, self.values_of(critic_hidden)

    def state_values(self, packed: PackedSequences) -> torch.Tensor:
        """(n, 1) V, in units of the reward, of packed states; the actor runs where it is shared."""
        trunk = self.actor if self.critic is None else self.critic.model
        return self.values_of(hidden_states(trunk, packed))

    @property
    def critic_head(self) -> ValueHead:
        """The linear layer of the critic, on the actor's trunk or on one of its own."""
        if self.critic is not None:
            return self.critic.head
        assert isinstance(self.value_net, ValueHead)
        return self.value_net

    def values_of(self, hidden: torch.Tensor) -> torch.Tensor:
        """(n, 1) V, in units of the reward, at (n, h') hidden states of the critic's trunk."""
        head = self.critic_head
        with torch.autocast(hidden.device.type, enabled=False):
            return head(hidden.to(head.weight.dtype))

    # Files ---------------------------------------------------------------------------------------

    def save_pretrained(self, folder: str | Path, tokenizer: Any = None) -> None:
        """Write a folder that `AutoModelForCausalLM` loads, with the critic beside it.

        Args:
            folder: where to.
            tokenizer: written with it; None takes the one where the actor came from.

        Raises:
            ValueError: `tokenizer` is None and the place where the actor came from is gone; or
                `folder` is empty, or is there and is no folder.
        """
        save_policy(self, output_folder(folder), tokenizer)

    @classmethod
    def from_pretrained(cls, folder: str | Path, device: str = "cpu") -> LMActorCriticPolicy:
        """The policy that `save_pretrained` wrote.

        Raises:
            ValueError: the folder holds none.
        """
        return load_policy(cls, Path(folder)).to(device)


def _absolute(source: str) -> str:
    """A folder's whole path: a policy is loaded in other working directories too."""
    return os.path.abspath(source) if os.path.isdir(source) else source


def _drop_caches_of(policy: LMActorCriticPolicy, _incompatible: Any) -> None:
    policy.drop_caches()
