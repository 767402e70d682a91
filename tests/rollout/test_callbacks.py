"""`RLHFCallback`: numbers that can be added up by hand, and refusals before anything is trained."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecMonitor, VecNormalize
from support.tiny_task import P, Spy, T, begin, collect, make_agent, perturb, save_actor

from agents import EpisodeRolloutBuffer, LMActorCriticPolicy, RLHFCallback, TokenPPO, make_vec_env


def stock(env, kwargs, **given):
    """Stock PPO on any SB3 environment over the tiny task."""
    return PPO(
        LMActorCriticPolicy,
        env,
        n_steps=12,
        batch_size=24,
        n_epochs=1,
        policy_kwargs={"actor": kwargs["reference"]},
        device="cpu",
        seed=0,
        **given,
    )


class BeforeRLHF(BaseCallback):
    """Keeps the rewards as the environment paid them."""

    def __init__(self) -> None:
        super().__init__()
        self.rewards: list[np.ndarray] = []

    def _on_step(self) -> bool:
        self.rewards.append(self.locals["rewards"].copy())
        return True


# Metrics ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scoring", ["step", "deferred"])
def test_metrics_by_hand(tiny_task_kwargs, scoring):
    """Everything is added up once more from the steps of a stepwise twin of the run."""
    model = make_agent({**tiny_task_kwargs, "scoring": scoring})
    perturb(model.policy)
    callback = begin(model)
    collect(model, callback)
    twin = make_agent(tiny_task_kwargs)  # seeds everything again
    perturb(twin.policy)
    spy = Spy()
    collect(twin, begin(twin, RLHFCallback(), spy))

    kl, paid, length = (np.zeros(6) for _ in range(3))
    episodes = []
    for step in spy.steps:
        ref = np.array([info["ref_logprob"] for info in step["infos"]])
        kl += step["log_probs"].numpy() - ref
        paid += step["rewards"]  # as the agent learns from them, with its half of the KL
        length += 1
        for env in np.flatnonzero(step["dones"]):
            info = step["infos"][env]
            stopped = info["finish_reason"] == "stop"
            assert info["response_length"] == length[env]
            episodes.append(
                (info["score"], info["rm_score"], kl[env], paid[env], length[env], stopped)
            )
            kl[env] = paid[env] = length[env] = 0.0
    score, rm_score, kl, paid, length, stopped = np.array(episodes, dtype=np.float64).T
    expected = {
        "score": score.mean(),
        "rm_score": rm_score.mean(),
        "kl": kl.mean(),
        "kl_coef": 0.1,
        "objective": score.mean() - 0.1 * kl.mean(),
        "response_length": length.mean(),
        "eos_rate": stopped.mean(),
        "entropy": -np.mean([step["log_probs"].numpy() for step in spy.steps]),
    }
    metrics = callback.callbacks[0].metrics
    assert expected["kl"] > 0.05 and 0 < expected["eos_rate"] < 1
    for name, value in expected.items():
        assert abs(metrics[name] - value) <= 1e-5, name
        assert model.logger.name_to_value[f"rlhf/{name}"] == metrics[name]
    returns = sorted(entry["r"] for entry in model.ep_info_buffer)
    assert np.abs(np.array(returns) - np.sort(paid)).max() <= 1e-5
    assert sorted(entry["l"] for entry in model.ep_info_buffer) == sorted(length)
    assert model.logger.name_to_value["time/tokens_per_second"] > 0


def test_the_mean_of_minus_log_probs_estimates_the_entropy(tiny_task_kwargs):
    """Over 3,000 tokens it agrees with the exact entropy of the same states within 4 errors."""
    model = make_agent(tiny_task_kwargs, n_envs=60, n_steps=50)
    spy = Spy()
    callback = begin(model, spy)
    collect(model, callback)
    estimates, exact = [], []
    for step in spy.steps:
        obs, actions = (torch.as_tensor(step[key]) for key in ("observations", "actions"))
        with torch.no_grad():
            exact.append(model.policy.evaluate_actions(obs, actions)[2].numpy())
        estimates.append(-step["log_probs"].numpy())
    difference = np.concatenate(estimates) - np.concatenate(exact)
    error = difference.std() / np.sqrt(difference.size)
    assert abs(difference.mean()) <= 4 * error <= 0.1
    metrics = callback.callbacks[0].metrics
    assert abs(metrics["entropy"] - np.concatenate(estimates).mean()) <= 1e-5


@pytest.mark.parametrize("scoring", ["step", "deferred"])
@pytest.mark.parametrize("monitor", [False, True])
def test_every_episode_enters_sb3s_window_once(tiny_task_kwargs, scoring, monitor):
    """Also under a monitor, which sees a part of the reward, or none where scoring is deferred."""
    env = make_vec_env(n_envs=4, seed=0, **{**tiny_task_kwargs, "scoring": scoring})
    env = VecMonitor(env) if monitor else env
    model = stock(env, tiny_task_kwargs, rollout_buffer_class=EpisodeRolloutBuffer)
    perturb(model.policy)
    callback = begin(model)
    collect(model, callback)
    plain = stock(make_vec_env(n_envs=4, seed=0, **tiny_task_kwargs), tiny_task_kwargs)
    perturb(plain.policy)
    collect(plain, begin(plain))
    assert len(callback.callbacks[0].records) == len(model.ep_info_buffer)
    found, expected = (
        np.sort([entry["r"] for entry in one.ep_info_buffer]) for one in (model, plain)
    )
    assert np.abs(found - expected).max() <= 1e-5
    assert np.abs(found).min() > 0


SCORED_BY_STEP = {"scoring": "step"}
DEFERRED = {"scoring": "deferred", "kl_shaping": "none"}


@pytest.mark.parametrize(
    ("agent", "given", "environment"),
    [
        pytest.param(TokenPPO, {}, SCORED_BY_STEP, id="TokenPPO"),
        pytest.param(PPO, {"batch_size": 96}, SCORED_BY_STEP, id="PPO"),
        pytest.param(A2C, {}, SCORED_BY_STEP, id="A2C"),
        pytest.param(TokenPPO, {"kl_estimator": "k3"}, DEFERRED, id="k3, deferred"),
        pytest.param(TokenPPO, {"kl_estimator": "full"}, DEFERRED, id="full, deferred"),
        pytest.param(
            TokenPPO, {"kl_estimator": "k3", "use_kl_loss": True}, DEFERRED, id="as a loss"
        ),
    ],
)
def test_ep_rew_mean_is_the_mean_of_score_less_beta_times_kl(
    tiny_task_kwargs, agent, given, environment
):
    """What SB3's users look at is J, as `rlhf/objective` is, whatever pays the KL and where."""
    env = make_vec_env(n_envs=8, seed=0, **{**tiny_task_kwargs, **environment})
    policy_kwargs = {"actor": tiny_task_kwargs["reference"]}
    settings = {"n_steps": 12, "device": "cpu", "seed": 0, **given}
    model = agent(LMActorCriticPolicy, env, policy_kwargs=policy_kwargs, **settings)
    perturb(model.policy)
    callback = begin(model)
    collect(model, callback)
    logged: dict[str, float] = {}
    model.logger.record = lambda name, value, exclude=None: logged.update({name: value})
    model.dump_logs()
    metrics = callback.callbacks[0].metrics
    assert len(callback.callbacks[0].records) == len(model.ep_info_buffer) < 100
    assert logged["rollout/ep_rew_mean"] == pytest.approx(metrics["objective"], abs=1e-6)
    assert logged["rollout/ep_len_mean"] == pytest.approx(metrics["response_length"])
    assert abs(metrics["kl_coef"] * metrics["kl"]) > 1e-3  # or the KL could be missing


@pytest.mark.parametrize("scoring", ["step", "deferred"])
def test_an_episode_whose_start_was_not_seen_leaves_no_wrong_record(tiny_task_kwargs, scoring):
    """`learn` goes on in the middle of episodes: a KL without its first tokens is no KL."""
    found = []
    for interrupted in (False, True):
        model = make_agent({**tiny_task_kwargs, "scoring": scoring}, n_envs=8, n_steps=5)
        perturb(model.policy)
        callback = begin(model)
        collect(model, callback)
        if interrupted:  # as a second `learn` does, with a callback of its own
            _, callback = model._setup_learn(10**6, [RLHFCallback()], reset_num_timesteps=False)
            callback.on_training_start({}, {})
        under_way = ~model._last_episode_starts
        collect(model, callback)
        found.append({round(r.ref_log_prob, 3): r.kl for r in callback.callbacks[0].records})
    whole, rest = found
    assert under_way.any() and rest
    assert all(abs(kl - whole[key]) <= 1e-5 for key, kl in rest.items())
    if scoring == "deferred":  # the buffer has kept them
        assert rest.keys() == whole.keys()
    else:
        assert len(rest) < len(whole)


def test_beta_is_read_from_the_environment_at_every_rollout(tiny_task_kwargs):
    model = make_agent(tiny_task_kwargs, rollout_buffer_class=None)
    perturb(model.policy)
    before, spy = BeforeRLHF(), Spy()
    callback = begin(model, before, RLHFCallback(), spy)
    for kl_coef in (0.5, 0.0):
        model.env.env_method("set_kl_coef", kl_coef)
        before.rewards.clear()
        spy.steps.clear()
        collect(model, callback)
        for rewards, step in zip(before.rewards, spy.steps, strict=True):
            assert {info["kl_coef"] for info in step["infos"]} == {kl_coef}
            expected = rewards - kl_coef * step["log_probs"].numpy()
            assert np.abs(step["rewards"] - expected).max() <= 1e-6
        assert callback.callbacks[1].metrics["kl_coef"] == kl_coef


# Refusals -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", [{"norm_obs": False}, {"norm_reward": False}])
def test_a_normaliser_is_refused(tiny_task_kwargs, which):
    env = make_vec_env(n_envs=2, **tiny_task_kwargs)
    model = stock(env, tiny_task_kwargs)
    model.set_env(VecMonitor(VecNormalize(env, **which)))
    with pytest.raises(ValueError, match=r"VecNormalize stands in front .* Take it off"):
        model.learn(1, callback=RLHFCallback())


def test_a_normaliser_that_does_nothing_is_none(tiny_task_kwargs):
    env = VecNormalize(
        make_vec_env(n_envs=2, **tiny_task_kwargs), norm_obs=False, norm_reward=False
    )
    model = stock(env, tiny_task_kwargs).learn(1, callback=RLHFCallback())
    assert model.num_timesteps == 24  # one whole rollout: nothing refused it


def test_features_may_be_normalised_but_not_rewards(tiny_task_kwargs):
    def normalized(norm_reward: bool) -> PPO:
        env = make_vec_env("TokenRLHF-Features-v0", n_envs=2, **tiny_task_kwargs)
        return PPO(
            "MlpPolicy", VecNormalize(env, norm_reward=norm_reward), n_steps=12, batch_size=24
        )

    model = normalized(norm_reward=False).learn(1, callback=RLHFCallback())
    assert model.num_timesteps == 24  # one whole rollout: nothing refused it
    with pytest.raises(ValueError, match="Give it norm_reward=False"):
        normalized(norm_reward=True).learn(1, callback=RLHFCallback())


def test_a_temperature_mismatch_is_refused(tiny_task_kwargs):
    model = make_agent({**tiny_task_kwargs, "temperature": 0.7})
    with pytest.raises(ValueError, match=r"temperature 1\.0.*0\.7.*Give both the same"):
        model.learn(1)


def test_deferred_scoring_with_a_buffer_that_can_not_score_is_refused(tiny_task_kwargs):
    env = make_vec_env(n_envs=2, **{**tiny_task_kwargs, "scoring": "deferred"})
    with pytest.raises(ValueError, match="rollout_buffer_class=EpisodeRolloutBuffer"):
        stock(env, tiny_task_kwargs).learn(1, callback=RLHFCallback())


def test_tokenizers_that_differ_at_equal_sizes_are_refused(tiny_task_kwargs, tmp_path):
    other = save_actor(tmp_path / "other", "gpt2", words="v")
    model = make_agent(tiny_task_kwargs, policy_kwargs={"actor": other})
    with pytest.raises(ValueError, match="different tokenizers"):
        model.learn(1)


@pytest.mark.parametrize("agent", ["PPO", "TokenPPO"])
def test_a_time_limit_shorter_than_the_response_is_refused(tiny_task_kwargs, agent):
    def make_env():
        return gym.make("TokenRLHF-v0", max_episode_steps=T // 2, **tiny_task_kwargs)

    env = DummyVecEnv([make_env] * 6)
    if agent == "PPO":
        model, callback = stock(env, tiny_task_kwargs), RLHFCallback()
    else:
        actor = {"actor": tiny_task_kwargs["reference"]}
        model, callback = TokenPPO(LMActorCriticPolicy, env, n_steps=12, policy_kwargs=actor), None
    with pytest.raises(ValueError, match=f"max_new_tokens={T}.*Lower max_new_tokens"):
        model.learn(72, callback=callback)


def test_an_environment_without_a_token_mdp_is_refused():
    model = PPO("MlpPolicy", "CartPole-v1", n_steps=8, batch_size=8, device="cpu")
    with pytest.raises(ValueError, match=r"agents\.make_vec_env"):
        model.learn(8, callback=RLHFCallback())


def test_without_the_callback_our_buffer_says_what_is_missing(tiny_task_kwargs):
    env = make_vec_env(n_envs=2, **tiny_task_kwargs)
    model = stock(env, tiny_task_kwargs, rollout_buffer_class=EpisodeRolloutBuffer)
    with pytest.raises(RuntimeError, match=r"callback=RLHFCallback\(\)"):
        model.learn(1)


def test_an_observation_wrapper_is_refused_before_training(tiny_task_kwargs):
    env = gym.wrappers.NormalizeObservation(gym.make("TokenRLHF-v0", **tiny_task_kwargs))
    assert env.observation_space.shape == (P + T,)
    with pytest.raises(ValueError, match="Take observation wrappers and normalisers off"):
        stock(DummyVecEnv([lambda: env]), tiny_task_kwargs)


@pytest.mark.parametrize("wrapper", ["normalize", "scale"])
def test_a_wrapper_that_changes_the_reward_is_refused(tiny_task_kwargs, wrapper):
    def wrapped() -> gym.Env:
        env = gym.make("TokenRLHF-v0", **tiny_task_kwargs)
        if wrapper == "normalize":
            return gym.wrappers.NormalizeReward(env)
        return gym.wrappers.TransformReward(env, lambda reward: 100.0 * reward)

    model = stock(DummyVecEnv([wrapped]), tiny_task_kwargs)
    with pytest.raises(ValueError, match="wrapper changed the reward"):
        model.learn(24, callback=RLHFCallback())


def test_a_reward_before_the_deferred_one_is_refused(tiny_task_kwargs):
    """Deferred steps pay 0; what a wrapper adds would be added to the score."""
    env = make_vec_env(
        n_envs=2,
        wrapper_class=gym.wrappers.vector.TransformReward,
        wrapper_kwargs={"func": lambda rewards: rewards + 1.0},
        **{**tiny_task_kwargs, "scoring": "deferred"},
    )
    model = TokenPPO(
        LMActorCriticPolicy, env, n_steps=12, policy_kwargs={"actor": tiny_task_kwargs["reference"]}
    )
    with pytest.raises(ValueError, match="environment paid 0, 1 arrived"):
        model.learn(24)


def test_stacked_frames_are_refused(tiny_task_kwargs):
    env = VecFrameStack(make_vec_env(n_envs=2, **tiny_task_kwargs), 2)
    model = TokenPPO(
        LMActorCriticPolicy, env, n_steps=12, policy_kwargs={"actor": tiny_task_kwargs["reference"]}
    )
    with pytest.raises(ValueError, match="wrapper"):
        model.learn(24)


def test_an_off_policy_algorithm_is_refused(tiny_task_kwargs):
    env = make_vec_env(n_envs=1, **tiny_task_kwargs)
    model = DQN("MlpPolicy", env, buffer_size=100, learning_starts=10)
    with pytest.raises(ValueError, match="on-policy"):
        model.learn(20, callback=RLHFCallback())
