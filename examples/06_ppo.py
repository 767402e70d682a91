"""PPO trains the language model on the bundled task; see what it says before and after."""

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from agents import LMActorCriticPolicy, RLHFCallback, TokenPPO, make_vec_env
from agents.evaluation import HeldOut, evaluate
from tokenenv.tasks import load_task

env = make_vec_env("TokenRLHF-v0", n_envs=64, scoring="deferred", seed=0)
model = TokenPPO(LMActorCriticPolicy, env, learning_rate=5e-4, n_steps=32, batch_size=512, seed=0)
model.learn(24_000, callback=RLHFCallback())
model.policy.save_pretrained("my-policy")  # loads in plain transformers

for name, folder in (("before", load_task("reviews").reference), ("after", "my-policy")):
    speaker, tokenizer = (c.from_pretrained(folder) for c in (AutoModelForCausalLM, AutoTokenizer))
    tokens = tokenizer(["I saw this film today. The plot"] * 4, return_tensors="pt")
    torch.manual_seed(0)
    for said in speaker.generate(**tokens, do_sample=True, top_k=0, max_new_tokens=24):
        print(f"{name + ':':7}", tokenizer.decode(said, skip_special_tokens=True))

found = evaluate(
    model.policy.actor, HeldOut.from_env_kwargs({}, 16), responses_per_prompt=32, seed=1
)
print(
    f"J = E[score] − β·KL of the reference {found.objective_reference:.2f}, of the trained model "
    f"{found.objective:.2f}: score {found.score:.2f}, KL {found.kl:.2f} nats per response"
)
print("written: my-policy/")
