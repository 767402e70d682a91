"""PPO trains the language model on the bundled task; see what it says before and after."""

from agents import LMActorCriticPolicy, RLHFCallback, TokenPPO, make_vec_env
from agents.evaluation import evaluate
from agents.held_out import HeldOut

env = make_vec_env("TokenRLHF-v0", n_envs=64, scoring="deferred", seed=0)
model = TokenPPO(LMActorCriticPolicy, env, learning_rate=5e-4, n_steps=32, batch_size=512, seed=0)
model.learn(24_000, callback=RLHFCallback())
model.policy.save_pretrained("my-policy")  # loads in plain transformers

found = evaluate(model.policy.actor, HeldOut.of({}, 16), responses_per_prompt=32, seed=1)
print(
    f"J of the reference {found.objective_reference:.3f}, of the trained model "
    f"{found.objective:.3f}, KL {found.kl:.2f} nats per response"
)
