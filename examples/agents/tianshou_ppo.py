"""Tianshou 2's PPO on its own DummyVectorEnv of single environments."""

import gymnasium as gym
import torch
from judging import judge
from tianshou.algorithm import PPO
from tianshou.algorithm.modelfree.reinforce import ProbabilisticActorPolicy
from tianshou.algorithm.optim import AdamOptimizerFactory
from tianshou.data import Collector, VectorReplayBuffer
from tianshou.env import DummyVectorEnv
from tianshou.trainer import OnPolicyTrainerParams
from tianshou.utils.net.common import Net
from tianshou.utils.net.discrete import DiscreteActor, DiscreteCritic

ENV, TASK = "tokenenv:TokenRLHF-Features-TopK-v0", {"task": "exact", "k": 3}

torch.manual_seed(0)
envs = DummyVectorEnv([lambda: gym.make(ENV, **TASK) for _ in range(8)])
envs.seed(0)
held_out = gym.make(ENV, split="eval", **TASK)
shape, actions = held_out.observation_space.shape, int(held_out.action_space.n)
trunks = [Net(state_shape=shape, hidden_sizes=(64, 64)) for _ in range(2)]

policy = ProbabilisticActorPolicy(
    actor=DiscreteActor(preprocess_net=trunks[0], action_shape=actions, softmax_output=False),
    dist_fn=lambda logits: torch.distributions.Categorical(logits=logits),
    action_space=held_out.action_space,
    deterministic_eval=True,
    action_scaling=False,
)
algorithm = PPO(
    policy=policy,
    critic=DiscreteCritic(preprocess_net=trunks[1]),
    optim=AdamOptimizerFactory(lr=2e-3),
    gamma=1.0,
    ent_coef=0.2,
    max_grad_norm=0.5,
)

# Tianshou's buffer stores every info, fills a text that came at an episode's end with None at all
# other steps, and its trainer takes None for NaN and stops: leave the infos out of the buffer.
collector = Collector(
    algorithm,
    envs,
    VectorReplayBuffer(512, buffer_num=8),
    on_step_hook=lambda _, rollout: rollout.pop("info"),
)
algorithm.run_training(
    OnPolicyTrainerParams(
        training_collector=collector,
        max_epochs=1,
        epoch_num_steps=14_336,
        collection_step_num_env_steps=512,
        batch_size=128,
        update_step_num_repetitions=10,
        verbose=False,
        show_progress=False,
    )
)
judge(policy.compute_action, held_out)
