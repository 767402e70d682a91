"""The token MDP's contract, held by every face of it: single, vector, features, wrapped.

`EnvContract` is written against one environment. A vector environment is looked at through `Row`,
one of its rows: the others do something else meanwhile.
"""

from __future__ import annotations

import copy
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode
from support.chat import save_chat_classifier, save_chat_model

from tokenenv import wrappers
from tokenenv.env import TokenEnv
from tokenenv.feature_envs import TokenFeaturesEnv, TokenFeaturesVectorEnv
from tokenenv.mdp import rows_of
from tokenenv.vector_env import TokenVectorEnv
from tokenenv.wrappers import vector

EOS, T = 2, 5
OF_A_STEP = {"ref_logprob", "kl_coef"}
OF_AN_END = {"rm_score", "score", "finish_reason", "response", "response_length"}


class Row:
    """Row 1 of a vector environment without autoreset, as a single environment."""

    def __init__(self, env: Any) -> None:
        self.env = env
        self.observation_space, self.action_space = (
            env.single_observation_space,
            env.single_action_space,
        )
        self.unwrapped = env.unwrapped

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        seeds = None if seed is None else [seed + 100, seed, seed + 101]
        observations, infos = self.env.reset(seed=seeds, options=options)
        return observations[1], self._info(infos)

    def step(self, action: Any) -> Any:
        waiting = np.array(self.env.unwrapped._waiting)
        waiting[1] = False  # that is what the contract looks at
        if waiting.any():
            self.env.reset(options={"reset_mask": waiting})
        actions = np.array([3, action, 4])
        observations, rewards, terminations, truncations, infos = self.env.step(actions)
        ends = (bool(terminations[1]), bool(truncations[1]))
        return observations[1], float(rewards[1]), *ends, self._info(infos)

    def _info(self, infos: dict[str, Any]) -> dict[str, Any]:
        return rows_of(infos, [1])[0]


class EnvContract:
    """What holds for each of them; subclasses say how to make one, and little else."""

    @staticmethod
    def make(settings: dict[str, Any]) -> Any:
        """The environment with the settings of a small token MDP."""
        raise NotImplementedError

    eos = EOS
    """The action that ends the response."""
    others = (3, 7, 11)
    """Actions that do not."""

    @pytest.fixture
    def env(self, settings):
        return self.make(settings)

    def play(self, env, actions) -> list[Any]:
        return [env.step(action) for action in actions]

    def test_observations_and_actions_are_in_their_spaces(self, env):
        observation, info = env.reset(seed=0)
        assert isinstance(info, dict) and observation in env.observation_space
        assert isinstance(env.action_space, gym.spaces.Discrete)
        assert env.action_space.dtype == np.int64
        for result in self.play(env, self.others):
            assert result[0] in env.observation_space

    def test_the_same_seed_gives_the_same_episode(self, env):
        runs = []
        for _ in range(2):
            observations = [env.reset(seed=5)[0]]
            steps = self.play(env, (*self.others, self.eos))
            runs.append([observations, [(s[0], s[1], s[2]) for s in steps]])
        for one, other in zip(runs[0][1], runs[1][1], strict=True):
            np.testing.assert_array_equal(one[0], other[0])
            assert one[1:] == other[1:]

    def test_eos_terminates_and_nothing_truncates(self, env):
        env.reset(seed=0)
        *before, last = self.play(env, (*self.others[:2], self.eos))
        assert not any(step[2] or step[3] for step in before)
        assert last[2] and not last[3] and last[4]["finish_reason"] == "stop"
        assert last[4]["response_length"] == 3

    def test_the_budget_terminates_and_nothing_truncates(self, env):
        env.reset(seed=0)
        *before, last = self.play(env, [self.others[0]] * T)
        assert not any(step[2] or step[3] for step in before)
        assert last[2] and not last[3] and last[4]["finish_reason"] == "length"
        assert last[4]["response_length"] == T

    def test_every_step_says_what_the_agent_needs_and_the_end_what_came_of_it(self, env):
        env.reset(seed=0)
        first, last = self.play(env, (self.others[0], self.eos))
        assert set(first[4]) >= OF_A_STEP and not set(first[4]) & OF_AN_END
        assert set(last[4]) >= OF_A_STEP | OF_AN_END
        assert first[4]["kl_coef"] == last[4]["kl_coef"] == env.unwrapped.kl_coef

    def test_rewards_are_the_references_half_and_the_score_at_the_end(self, env):
        env.reset(seed=0)
        steps = self.play(env, (*self.others, self.eos))
        for reward, info in ((step[1], step[4]) for step in steps):
            paid = info["kl_coef"] * info["ref_logprob"] + info.get("score", 0.0)
            assert reward == pytest.approx(paid, abs=1e-6)

    def test_the_prompt_can_be_given(self, env):
        observation, _ = env.reset(seed=0, options={"prompt": "w7"})
        again, _ = env.reset(seed=9, options={"prompt": "w7"})
        np.testing.assert_array_equal(observation, again)
        with pytest.raises(ValueError, match="tempo"):
            env.reset(options={"tempo": 1})

    def test_a_step_needs_a_running_episode(self, env):
        with pytest.raises(ResetNeeded):
            env.step(self.others[0])
        env.reset(seed=0)
        env.step(self.eos)
        with pytest.raises(ResetNeeded):
            env.step(self.others[0])

    def test_what_is_no_action_is_refused(self, env):
        env.reset(seed=0)
        for action in (env.action_space.n, -1):
            with pytest.raises(ValueError, match=str(action)):
                env.step(action)
        env.step(self.others[0])  # the episode goes on

    def test_a_copy_goes_on_alike(self, env):
        env.reset(seed=0)
        env.step(self.others[0])
        twin = copy.deepcopy(env)
        for one, other in zip(
            self.play(env, (self.others[1], self.eos)),
            self.play(twin, (self.others[1], self.eos)),
            strict=True,
        ):
            # Ids are equal; hidden states to rounding, as the copy has a cache of its own.
            np.testing.assert_allclose(one[0], other[0], rtol=0, atol=1e-5)
            assert one[1] == pytest.approx(other[1], abs=1e-6) and one[2:4] == other[2:4]


class TestTokenEnv(EnvContract):
    @staticmethod
    def make(settings):
        return TokenEnv(**settings)


class TestRowOfTokenVectorEnv(EnvContract):
    @staticmethod
    def make(settings):
        return Row(TokenVectorEnv(3, autoreset_mode=AutoresetMode.DISABLED, **settings))


class TestTokenFeaturesEnv(EnvContract):
    @staticmethod
    def make(settings):
        return TokenFeaturesEnv(**settings)


class TestHiddenStateObservation(EnvContract):
    @staticmethod
    def make(settings):
        return wrappers.HiddenStateObservation(TokenEnv(**settings))


class TestActionMask(EnvContract):
    @staticmethod
    def make(settings):
        return wrappers.ActionMask(TokenEnv(**settings), forbid=[5])


class TestRowOfHiddenStateObservation(EnvContract):
    @staticmethod
    def make(settings):
        batch = TokenVectorEnv(3, autoreset_mode=AutoresetMode.DISABLED, **settings)
        return Row(vector.HiddenStateObservation(batch))


class TestRowOfTokenFeaturesVectorEnv(EnvContract):
    @staticmethod
    def make(settings):
        return Row(
            TokenFeaturesVectorEnv(num_envs=3, autoreset_mode=AutoresetMode.DISABLED, **settings)
        )


@pytest.fixture(scope="module")
def chat_settings(tmp_path_factory):
    """Of a token MDP whose prompts are conversations, with columns and two rewards."""
    folder = tmp_path_factory.mktemp("chat")
    question = [{"role": "system", "content": "w9"}, {"role": "user", "content": "w4 w5"}]
    return {
        "reference": save_chat_model(folder / "reference"),
        "reward_model": [save_chat_classifier(folder / "reward"), _answers],
        "reward_weights": [0.5, 1.0],
        "prompts": [question, {"prompt": question[1:], "answer": "w3"}],
        "max_prompt_tokens": 16,
        "max_new_tokens": T,
        "kl_coef": 0.2,
        "device": "cpu",
    }


def _answers(prompts, responses, answer=None, messages=None):
    return [None if a is None else float(a in r) for a, r in zip(answer, responses, strict=True)]


class TestTokenEnvOfConversations(EnvContract):
    @pytest.fixture
    def settings(self, chat_settings):
        return chat_settings

    @staticmethod
    def make(settings):
        return TokenEnv(**settings)


class TestRowOfTokenVectorEnvOfConversations(EnvContract):
    @pytest.fixture
    def settings(self, chat_settings):
        return chat_settings

    @staticmethod
    def make(settings):
        return Row(TokenVectorEnv(3, autoreset_mode=AutoresetMode.DISABLED, **settings))
