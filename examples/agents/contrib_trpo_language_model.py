"""sb3-contrib's TRPO trains our language model: eager attention, since it differentiates twice."""

from sb3_contrib import TRPO

from agents import LMActorCriticPolicy, RLHFCallback, make_vec_env
from tokenenv.optimum import enumerate_task, evaluate_exactly, solve

env = make_vec_env("TokenRLHF-Exact-v0", n_envs=32, seed=0)
model = TRPO(
    LMActorCriticPolicy,
    env,
    n_steps=16,
    cg_max_steps=5,
    n_critic_updates=3,
    target_kl=0.05,
    gamma=1.0,
    policy_kwargs={"actor": "exact", "attention": "eager"},
    seed=0,
    device="cpu",
)
solution = solve(enumerate_task("exact"))
before = evaluate_exactly(model.policy, solution)
model.learn(6_144, callback=RLHFCallback())
after = evaluate_exactly(model.policy, solution)
for name, found in (("reference", before), ("agent", after)):
    print(
        f"{name:13} J {found.objective:8.3f}   objective_fraction {found.objective_fraction:7.3f}"
    )
