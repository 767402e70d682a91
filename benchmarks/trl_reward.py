"""Time the `RewardTrainer` of TRL 1.12.0: a peer for `bench_reward_model.py`.

Needs an environment of its own, `make bench-trl` makes one: torch, transformers, trl==1.12.0.

    python trl_reward.py MODEL PAIRS.json --epochs 2 --learning-rate 3e-4 --batch 8

MODEL is a classifier with one output. PAIRS.json holds `training` and `held_out`: pairs of token
ids, [chosen, rejected]. The last line printed is JSON: wall and CPU seconds of the training alone,
and the rewards of the held-out pairs after it.
"""

import argparse
import json
import os
import sys
import tempfile
import time

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from trl import RewardConfig, RewardTrainer


def main() -> None:
    """Train, and print what it took and what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("pairs")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bf16", action="store_true")
    args = parser.parse_args()

    with open(args.pairs, encoding="utf-8") as file:
        pairs = json.load(file)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    if tokenizer.pad_token is None or tokenizer.pad_token == tokenizer.eos_token:
        # It reads at the last token that is no pad token: EOS as one would hide a final EOS.
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    model = AutoModelForSequenceClassification.from_pretrained(args.model, dtype=torch.float32)
    chosen, rejected = zip(*pairs["training"], strict=True)
    dataset = Dataset.from_dict({"chosen_ids": chosen, "rejected_ids": rejected})
    with tempfile.TemporaryDirectory() as out:
        config = RewardConfig(
            output_dir=out,
            per_device_train_batch_size=args.batch,
            num_train_epochs=args.epochs,
            learning_rate=args.learning_rate,
            max_length=None,
            bf16=args.bf16,
            use_cpu=not torch.cuda.is_available(),
            gradient_checkpointing=False,  # its default is slower
            report_to=[],
            save_strategy="no",
            logging_steps=10**9,
            disable_tqdm=True,
            seed=args.seed,
        )
        trainer = RewardTrainer(
            model=model, args=config, processing_class=tokenizer, train_dataset=dataset
        )
        start, start_cpu = time.perf_counter(), time.process_time()
        trainer.train()
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - start_cpu
    rewards = [[reward(model, ids) for ids in pair] for pair in pairs["held_out"]]
    found = {"peer": "trl 1.12.0 RewardTrainer", **vars(args), "pairs": len(chosen)}
    found |= {"seconds": seconds, "cpu_seconds": cpu_seconds, "rewards": rewards}
    sys.stdout.write(json.dumps(found) + "\n")


@torch.no_grad()
def reward(model: torch.nn.Module, ids: list[int]) -> float:
    """The reward of one sequence, which needs no padding."""
    model.eval()
    tokens = torch.tensor([ids], device=model.device)
    return float(model(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits)


if __name__ == "__main__":
    main()
