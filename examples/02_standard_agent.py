"""A standard agent, as on CartPole: Stable-Baselines3's PPO with an MLP, on a small text task."""

import gymnasium as gym
from stable_baselines3 import PPO

from agents import make_vec_env

ENV, TASK = "TokenRLHF-Features-TopK-v0", {"task": "exact", "k": 3}


def plain_return(policy):
    """The mean return over the prompts of the task, which are five."""
    env, total = gym.make(ENV, **TASK), 0.0
    prompts = ("do", "re", "mi", "fa", "sol")
    for prompt in prompts:
        (observation, _), done = env.reset(options={"prompt": prompt}), False
        while not done:
            observation, reward, done, _, _ = env.step(policy(observation))
            total += reward
    return total / len(prompts)


def learned(observation):
    return model.predict(observation, deterministic=True)[0]


env = make_vec_env(ENV, n_envs=32, seed=0, **TASK)  # SB3's own make_vec_env does as well, slower
model = PPO(
    "MlpPolicy",
    env,
    n_steps=32,
    batch_size=512,
    learning_rate=2e-3,
    gamma=1.0,
    ent_coef=0.3,
    seed=0,
    device="cpu",
)
print(f"mean return of greedy decoding (action 0) {plain_return(lambda observation: 0):.2f}")
print(f"of PPO's greedy policy: untrained {plain_return(learned):.2f}, ", end="", flush=True)
model.learn(30_000)
print(f"after 30,000 tokens {plain_return(learned):.2f}; the best there is has 2.89")
