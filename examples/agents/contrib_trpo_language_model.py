"""sb3-contrib's TRPO trains our language model: eager attention, since it differentiates twice."""

from judging import show_objective
from sb3_contrib import TRPO

from agents import LMActorCriticPolicy, RLHFCallback, make_vec_env
from tokenenv.optimum import enumerate_task, evaluate_exactly, solve

env = make_vec_env("TokenRLHF-Exact-v0", n_envs=32, seed=0)
model = TRPO(
    LMActorCriticPolicy,
    env,
    n_steps=8,
    batch_size=64,
    cg_max_steps=3,
    target_kl=0.05,
    learning_rate=3e-3,
    gamma=1.0,
    # TRPO keeps the critic's gradients off the actor: on a shared trunk only its head would learn.
    policy_kwargs={"actor": "exact", "attention": "eager", "value_head": "separate"},
    seed=0,
    device="cpu",
)
solution = solve(enumerate_task("exact"))
before = evaluate_exactly(model.policy, solution)
model.learn(6_144, callback=RLHFCallback())
after = evaluate_exactly(model.policy, solution)
for name, found in (("reference", before), ("agent", after)):
    show_objective(name, found.objective, found.objective_fraction)
