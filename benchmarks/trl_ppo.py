"""Time the `PPOTrainer` of TRL 1.12.0, the last release that has it: a peer for `bench_ppo.py`.

Needs an environment of its own, `make bench-trl` makes one: torch, transformers, trl==1.12.0.

    python trl_ppo.py MODELS --batch 64 --prompt 16 --response 48 --updates 3 --epochs 4

MODELS holds lm/ and rm/. The last line printed is JSON: tokens per second over whole updates
(generation, reference, values, reward model, optimisation), response tokens counted once.
"""

import argparse
import json
import os
import sys
import tempfile
import time

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from trl.experimental.ppo import PPOConfig, PPOTrainer


def main() -> None:
    """Train, and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models")
    sizes = {"batch": 64, "prompt": 16, "response": 48, "updates": 3, "epochs": 4, "minibatches": 1}
    for name, default in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--bf16", action="store_true")
    args = parser.parse_args()

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(f"{args.models}/lm", padding_side="left")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    actor, reference = (AutoModelForCausalLM.from_pretrained(f"{args.models}/lm") for _ in range(2))
    reward, value = (
        AutoModelForSequenceClassification.from_pretrained(f"{args.models}/rm", num_labels=1)
        for _ in range(2)
    )
    prompts = torch.randint(
        3, actor.config.vocab_size, (args.batch * args.updates, args.prompt)
    ).tolist()
    dataset = Dataset.from_dict({"input_ids": prompts})
    with tempfile.TemporaryDirectory() as out:
        config = PPOConfig(
            output_dir=out,
            per_device_train_batch_size=args.batch // args.minibatches,
            gradient_accumulation_steps=args.minibatches,
            num_mini_batches=args.minibatches,
            num_ppo_epochs=args.epochs,
            total_episodes=args.batch * args.updates,
            response_length=args.response,
            local_rollout_forward_batch_size=args.batch,
            stop_token=None,
            temperature=1.0,
            kl_coef=0.05,
            learning_rate=1e-5,
            bf16=args.bf16,
            use_cpu=not torch.cuda.is_available(),
            gradient_checkpointing=False,
            report_to=[],
            num_sample_generations=0,
            save_strategy="no",
            logging_steps=10**9,
            disable_tqdm=True,
        )
        trainer = PPOTrainer(
            args=config,
            processing_class=tokenizer,
            model=actor,
            ref_model=reference,
            reward_model=reward,
            value_model=value,
            train_dataset=dataset,
            eval_dataset=dataset,
        )
        start = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - start
    tokens = args.batch * args.response * args.updates
    found = {"peer": "trl 1.12.0 PPOTrainer", **vars(args), "seconds": seconds}
    sys.stdout.write(json.dumps({**found, "tokens_per_second": tokens / seconds}) + "\n")


if __name__ == "__main__":
    main()
