"""RLHF's PPO in one file, in the order of execution, graded against the known optimum.

Plain torch on `gym.make_vec`: no Stable-Baselines3, no cache, no packing. What `agents/` does
several times faster is written out here once: sampling, the two halves of the KL in the reward,
generalised advantages, the clipped losses. The task's optimum is known exactly, so the last line
says how much of the way from the reference (0) to the optimum (1) was gone. A minute or two.
"""

import sys

import gymnasium as gym
import numpy as np
import torch
from torch import nn

from tokenenv.models import load_trainable  # importing the package registers the environments
from tokenenv.optimum import enumerate_task, evaluate_exactly, solve
from tokenenv.tasks import load_task

TOKENS = int(sys.argv[1]) if len(sys.argv) > 1 else 150_000
NUM_ENVS, NUM_STEPS = 128, 32  # a rollout: 4,096 tokens
EPOCHS, BATCH = 4, 1024
LEARNING_RATE, CLIP, VALUE_COEF, MAX_GRAD_NORM = 3e-3, 0.2, 0.1, 1.0
GAMMA, LAMBDA = 1.0, 0.95

# 1. The environment: one step is one token ------------------------------------------------------

torch.manual_seed(0)
env = gym.make_vec(
    "TokenRLHF-Exact-v0", NUM_ENVS, vectorization_mode="vector_entry_point",
    autoreset_mode=gym.vector.AutoresetMode.SAME_STEP, device="cpu",
)  # fmt: skip
observations, _ = env.reset(seed=0)
kl_coef = env.kl_coef  # β; the environment is its one owner

# 2. The agent: a copy of the reference, and a linear critic on its hidden states ----------------

actor = load_trainable(load_task("exact").reference).model
critic = nn.Linear(actor.config.hidden_size, 1)
nn.init.zeros_(critic.weight)
nn.init.zeros_(critic.bias)
parameters = [*actor.parameters(), *critic.parameters()]
optimizer = torch.optim.Adam(parameters, lr=LEARNING_RATE, eps=1e-5)


def forward(observations: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """(N, V) log π of the next token and (N,) values at (N, P+T) observations."""
    ids = torch.as_tensor(observations)  # (N, P+T), −1 where there is no token
    lengths = (ids >= 0).sum(dim=1)  # (N,)
    starts = (ids >= 0).int().argmax(dim=1)  # (N,); prompt and response are one stretch of columns
    columns = starts[:, None] + torch.arange(int(lengths.max()))  # (N, L), from column 0 on
    tokens = ids.gather(1, columns.clamp(max=ids.shape[1] - 1)).clamp(min=0)  # (N, L)
    hidden = actor.base_model(input_ids=tokens, use_cache=False).last_hidden_state  # (N, L, h)
    state = hidden[torch.arange(len(ids)), lengths - 1]  # (N, h); attention is causal: no mask
    return torch.log_softmax(actor.lm_head(state), dim=-1), critic(state).squeeze(-1)


num_updates = -(-TOKENS // (NUM_ENVS * NUM_STEPS))
for update in range(num_updates):
    optimizer.param_groups[0]["lr"] = LEARNING_RATE * (1 - update / num_updates)

    # 3. Rollout: the environment pays β·log π_ref + score, we pay −β·log π ----------------------

    states = np.zeros((NUM_STEPS, *observations.shape), dtype=np.int64)  # (S, N, P+T)
    actions = np.zeros((NUM_STEPS, NUM_ENVS), dtype=np.int64)
    log_probs, rewards, values = (np.zeros((NUM_STEPS, NUM_ENVS), np.float32) for _ in range(3))
    ends = np.zeros((NUM_STEPS, NUM_ENVS), dtype=bool)
    scores = []
    for step in range(NUM_STEPS):
        with torch.no_grad():
            distribution, value = forward(observations)
        action = torch.multinomial(distribution.exp(), 1).squeeze(-1)  # (N,)
        states[step], actions[step], values[step] = observations, action, value
        log_probs[step] = distribution.gather(1, action[:, None]).squeeze(-1)
        observations, reward, ends[step], _, info = env.step(actions[step])
        rewards[step] = reward - kl_coef * log_probs[step]  # the two halves of the KL meet
        if "final_info" in info:
            scores += info["final_info"]["score"][ends[step]].tolist()

    # 4. Advantages: GAE(γ, λ); an episode's end is a true end -----------------------------------

    with torch.no_grad():
        next_value = forward(observations)[1].numpy()  # bootstraps the episodes that are cut
    advantages, advantage = np.zeros_like(rewards), np.zeros(NUM_ENVS, np.float32)
    for step in reversed(range(NUM_STEPS)):
        goes_on = ~ends[step]
        delta = rewards[step] + GAMMA * next_value * goes_on - values[step]
        advantage = delta + GAMMA * LAMBDA * advantage * goes_on
        advantages[step], next_value = advantage, values[step]
    returns = torch.as_tensor((advantages + values).reshape(-1))  # (S·N,)
    whitened = (advantages - advantages.mean()) / advantages.std()
    whitened = torch.as_tensor(whitened.reshape(-1))  # (S·N,)

    # 5. Update: clipped surrogate and value loss ------------------------------------------------

    flat_states = states.reshape(-1, states.shape[-1])  # (S·N, P+T)
    flat_actions = torch.as_tensor(actions.reshape(-1))
    old_log_probs = torch.as_tensor(log_probs.reshape(-1))
    for _ in range(EPOCHS):
        for index in torch.randperm(len(flat_states)).split(BATCH):
            distribution, value = forward(flat_states[index.numpy()])
            chosen = distribution.gather(1, flat_actions[index][:, None]).squeeze(-1)
            ratio = torch.exp(chosen - old_log_probs[index])
            unclipped = ratio * whitened[index]
            clipped = ratio.clamp(1 - CLIP, 1 + CLIP) * whitened[index]
            policy_loss = -torch.min(unclipped, clipped).mean()
            value_loss = torch.mean((value - returns[index]) ** 2)
            optimizer.zero_grad()
            (policy_loss + VALUE_COEF * value_loss).backward()
            nn.utils.clip_grad_norm_(parameters, MAX_GRAD_NORM)
            optimizer.step()
    if update % 10 == 0 or update == num_updates - 1:
        tokens = (update + 1) * NUM_ENVS * NUM_STEPS
        print(f"{tokens:>8,} tokens   mean score {np.mean(scores):+.3f}")

# 6. The grade: exact, because all responses of this task can be enumerated ----------------------

solution = solve(enumerate_task("exact"))
grade = evaluate_exactly(actor, solution)
print(f"J = {grade.objective:.4f} of J* = {grade.optimum:.4f}")
print(f"{grade.objective_fraction:.4f} of the way from the reference to the optimum")
