"""A standard agent, as on CartPole: one environment id, Stable-Baselines3's DQN, nothing else."""

from stable_baselines3 import DQN
from stable_baselines3.common.evaluation import evaluate_policy

model = DQN("MlpPolicy", "tokenenv:TokenRLHF-Features-TopK-v0", learning_starts=500, seed=0)
before = evaluate_policy(model, model.get_env(), n_eval_episodes=20)[0]
model.learn(3_000)
after = evaluate_policy(model, model.get_env(), n_eval_episodes=20)[0]
print(f"plain return of the greedy policy: untrained {before:.2f}, after 3,000 tokens {after:.2f}")
