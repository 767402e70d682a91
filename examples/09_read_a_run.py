"""What a run leaves behind, and how to read it: a short one is trained first."""

import json
from pathlib import Path

import torch
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer

from agents.config import TrainConfig
from agents.runs.training import TrainingRun

config = TrainConfig(out=Path("run"), task="exact", total_tokens=16_384)
TrainingRun(config, Console(quiet=True)).train()  # = tokenrlhf train --task exact --out run …

print("files in run/:", *sorted(path.name for path in Path("run").iterdir()))
summary = json.loads(Path("run/summary.json").read_text())
for name in ("objective_reference", "objective", "optimum", "objective_fraction", "kl"):
    print(f"{name:20} {summary[name]:.3f}")

rows = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
scores = [row["rlhf/score"] for row in rows if "rlhf/score" in row]
print("score over training:", *(f"{score:.2f}" for score in scores))

model = AutoModelForCausalLM.from_pretrained("run/policy")
tokenizer = AutoTokenizer.from_pretrained("run/policy")
torch.manual_seed(0)
tokens = model.generate(**tokenizer("do", return_tensors="pt"), do_sample=True, max_new_tokens=6)
print("the policy in plain transformers:", tokenizer.decode(tokens[0], skip_special_tokens=True))
