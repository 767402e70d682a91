"""RLlib's PPO on its new API stack: `rllib_ppo.py vector_entry_point` (or `sync`), then an id."""

import sys

import gymnasium as gym
import torch
from judging import judge
from ray import init, shutdown
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig

mode = sys.argv[1] if len(sys.argv) > 1 else "vector_entry_point"
env_id = sys.argv[2] if len(sys.argv) > 2 else "TokenRLHF-Features-TopK-v0"
ENV, TASK = f"tokenenv:{env_id}", {"task": "exact"} | ({"k": 3} if "TopK" in env_id else {})

torch.set_num_threads(1)  # of such small networks more threads only get in each other's way
init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
algorithm = (
    PPOConfig()
    .environment(ENV, env_config=TASK)
    .env_runners(
        num_env_runners=0,
        num_envs_per_env_runner=8,
        gym_env_vectorize_mode=mode,
    )
    # With shared layers, RLlib's default, the critic's far larger loss forms the actor's too.
    .rl_module(model_config=DefaultModelConfig(fcnet_hiddens=[64, 64], vf_share_layers=False))
    .training(
        lr=2e-3,
        gamma=1.0,
        lambda_=0.95,
        entropy_coeff=0.2,
        use_kl_loss=False,
        vf_clip_param=float("inf"),
        train_batch_size_per_learner=512,
        minibatch_size=128,
        num_epochs=10,
    )
    .debugging(seed=0)
    .build_algo()
)
for _ in range(32):
    algorithm.train()
module = algorithm.get_module()


def act(observation):
    with torch.no_grad():
        found = module.forward_inference({"obs": torch.as_tensor(observation)[None]})
    return int(found["action_dist_inputs"].argmax())


judge(act, gym.make(ENV, split="eval", **TASK))
shutdown()
