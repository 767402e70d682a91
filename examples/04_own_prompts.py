"""Prompts of your own: a list, a file of lines, a .jsonl file, or one for a single episode."""

from pathlib import Path

import gymnasium as gym

Path("prompts.txt").write_text("I saw this film today.\nWe watched the new comedy at home.\n")
for prompts in (["Today we saw a thriller.", "The music"], "prompts.txt"):
    # They are of films too, so the task's reward model can score what follows; else name yours.
    env = gym.make("tokenenv:TokenRLHF-v0", prompts=prompts, reward_model="reviews")
    starts = {env.reset(seed=seed)[1]["prompt"] for seed in range(20)}
    print(f"prompts={prompts!r}: episodes start from {sorted(starts)}")

envs = gym.make_vec("tokenenv:TokenRLHF-v0", num_envs=2)
_, infos = envs.reset(options={"prompt": ["I saw this film today.", "The music"]})
print("one for each episode:", list(infos["prompt"]))
