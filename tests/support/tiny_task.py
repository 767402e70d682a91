"""A token MDP of tiny random models, and short ways to run agents in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from support.models import ARCHITECTURES, small_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedTokenizerFast

from agents import LMActorCriticPolicy, RLHFCallback, TokenPPO, make_vec_env
from tokenenv.models.preparation import disable_dropout

P, T, V = 5, 8, 40
MIXES_DTYPES = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 12)
"""Whether torch differentiates the squared error of numbers of two dtypes."""
EOS = [2, 5, 9, 11, 17, 23, 31]
"""Many ends, so that random models end their responses at every length."""
PROMPTS = ["w3", "w4 w6", "w7 w8 w10", "w12 w13 w14 w15", "w16 w18 w19 w20 w21", "w22 w24 w25"]


def tokenizer(words: str = "w") -> Any:
    """A word-level tokenizer of V entries, `w3` … `w39`."""
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2, **{f"{words}{i}": i for i in range(3, V)}}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


def save_actor(folder: Path, name: str, words: str = "w", **changes: Any) -> str:
    """A random causal LM of an architecture with its tokenizer, saved once; its folder."""
    if not (folder / "config.json").exists():
        model = small_model(name, seed=3)
        for key, value in changes.items():
            setattr(model.config, key, value)
        model.generation_config.eos_token_id = EOS
        model.save_pretrained(folder)
        tokenizer(words).save_pretrained(folder)
    return str(folder)


def save_reward_model(folder: Path) -> str:
    """A random reward model with its tokenizer and statistics, saved once; its folder."""
    if not (folder / "config.json").exists():
        config = AutoConfig.for_model(**ARCHITECTURES["llama"], num_labels=1)
        torch.manual_seed(11)
        model = AutoModelForSequenceClassification.from_config(config)
        disable_dropout(model)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.normal_(0.0, 0.3)
        model.config.reward_mean, model.config.reward_std = 0.4, 1.7
        model.save_pretrained(folder)
        tokenizer().save_pretrained(folder)
    return str(folder)


def task_kwargs(folder: Path, name: str) -> dict[str, Any]:
    """Keyword arguments of the tiny token MDP whose reference has an architecture."""
    return {
        "reference": save_actor(folder / name, name),
        "reward_model": save_reward_model(folder / "reward_model"),
        "prompts": PROMPTS,
        "max_prompt_tokens": P,
        "max_new_tokens": T,
        "kl_coef": 0.1,
        "device": "cpu",
    }


def make_agent(
    kwargs: dict[str, Any],
    agent: type = TokenPPO,
    n_envs: int = 6,
    env_seed: int = 0,
    policy_kwargs: dict[str, Any] | None = None,
    **agent_kwargs: Any,
) -> Any:
    """An agent on the tiny task whose actor starts from the reference; its value head is random."""
    dtype = kwargs.get("dtype", "float32")
    is_stock = agent.__module__.startswith("stable_baselines3")
    if is_stock and dtype == "float64" and not MIXES_DTYPES:
        pytest.skip("SB3 compares float32 returns with float64 values; torch 2.12 can")
    given = {"n_steps": 20, "batch_size": 64, "n_epochs": 2, "learning_rate": 1e-3, "seed": 0}
    if not issubclass(agent, PPO):
        given = {"n_steps": 5, "learning_rate": 1e-3, "seed": 0}
    model = agent(
        LMActorCriticPolicy,
        make_vec_env(n_envs=n_envs, seed=env_seed, **kwargs),
        policy_kwargs={"actor": kwargs["reference"], "dtype": dtype, **(policy_kwargs or {})},
        device="cpu",
        **{**given, **agent_kwargs},
    )
    if hasattr(model.policy, "value_net") and model.policy.critic is None:
        randomize_value_head(model.policy)
    return model


def randomize_value_head(policy: LMActorCriticPolicy) -> None:
    """Values that differ from state to state: a head of zeros would hide mistakes."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        weight = policy.value_net.weight
        weight.copy_(0.1 * torch.randn(weight.shape, generator=generator))


class Spy(BaseCallback):
    """Keeps what SB3 shows its callbacks at every step."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[dict[str, Any]] = []

    def _on_step(self) -> bool:
        seen = self.locals
        self.steps.append(
            {
                "observations": np.array(self.model._last_obs),
                "actions": np.array(seen["actions"]).reshape(-1),
                "rewards": np.array(seen["rewards"]),
                "log_probs": seen["log_probs"].detach().clone(),
                "values": seen["values"].detach().clone(),
                "dones": np.array(seen["dones"]),
                "infos": [dict(info) for info in seen["infos"]],
            }
        )
        return True


def begin(model: Any, *callbacks: BaseCallback) -> BaseCallback:
    """Start training without doing any: `RLHFCallback` first, as `learn` would call it."""
    given = list(callbacks)
    if not any(isinstance(c, RLHFCallback) for c in given):
        given = [RLHFCallback(), *given]
    _, callback = model._setup_learn(10**6, given)
    callback.on_training_start({}, {})
    return callback


def collect(model: Any, callback: BaseCallback) -> Any:
    """One rollout; the buffer that holds it."""
    model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)
    return model.rollout_buffer


def weights(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A copy of all weights."""
    return {name: weight.detach().clone() for name, weight in module.state_dict().items()}


def largest_difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """Of two sets of weights."""
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def perturb(module: torch.nn.Module, scale: float = 0.05) -> None:
    """Move the weights, alike for equal shapes, so that an actor is no longer the reference."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float32)
            parameter.add_((scale * noise).to(parameter))
    if isinstance(module, LMActorCriticPolicy):
        module.drop_caches()
