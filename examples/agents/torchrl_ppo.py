"""TorchRL's PPO loss on `GymWrapper` of the vector environment; `check_env_specs` comes first."""

import gymnasium as gym
import torch
from judging import judge
from tensordict.nn import InteractionType, TensorDictModule
from torch.distributions import Categorical
from torchrl.envs import GymEnv, GymWrapper
from torchrl.envs.utils import check_env_specs
from torchrl.modules import MLP, ProbabilisticActor, ValueOperator
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.value import GAE

ENV, TASK = "tokenenv:TokenRLHF-Features-TopK-v0", {"task": "exact", "k": 3}
NUM_ENVS, NUM_STEPS, ITERATIONS, EPOCHS, MINIBATCH = 32, 32, 40, 10, 256

torch.manual_seed(0)
# Without categorical_action_encoding TorchRL's actions are one-hot.
check_env_specs(GymEnv(ENV, categorical_action_encoding=True, **TASK))
vector = gym.make_vec(ENV, NUM_ENVS, "vector_entry_point", autoreset_mode="Disabled", **TASK)
env = GymWrapper(vector, categorical_action_encoding=True)
check_env_specs(env)
env.set_seed(0)

width, actions = vector.single_observation_space.shape[0], int(vector.single_action_space.n)
network = MLP(in_features=width, out_features=actions, num_cells=[64, 64])
actor = ProbabilisticActor(
    TensorDictModule(network, in_keys=["observation"], out_keys=["logits"]),
    in_keys=["logits"],
    distribution_class=Categorical,
    default_interaction_type=InteractionType.RANDOM,  # TorchRL acts greedily unless told
    return_log_prob=True,
)
value = MLP(in_features=width, out_features=1, num_cells=[64, 64])
critic = ValueOperator(value, in_keys=["observation"])
advantage = GAE(gamma=1.0, lmbda=0.95, value_network=critic, average_gae=True)
loss = ClipPPOLoss(actor, critic, clip_epsilon=0.2, entropy_coeff=0.3)
optimizer = torch.optim.Adam(loss.parameters(), lr=2e-3)

for _ in range(ITERATIONS):
    with torch.no_grad():
        data = env.rollout(NUM_STEPS, actor, break_when_any_done=False)
    for _ in range(EPOCHS):
        with torch.no_grad():
            advantage(data)
        flat = data.reshape(-1)
        for batch in torch.randperm(len(flat)).split(MINIBATCH):
            losses = loss(flat[batch])
            total = losses["loss_objective"] + losses["loss_critic"] + losses["loss_entropy"]
            optimizer.zero_grad()
            total.backward()
            torch.nn.utils.clip_grad_norm_(loss.parameters(), 0.5)
            optimizer.step()

judge(lambda o: int(network(torch.as_tensor(o)).argmax()), gym.make(ENV, split="eval", **TASK))
