"""How fast the `PPOTrainer` of TRL 1.12.0 learns a task: a peer for `bench_learning.py`.

Needs an environment of its own, beside the project's: torch==2.13.0 trl==1.12.0.

    python trl_learning.py TASK TASK/prompts.jsonl --learning-rate 1e-3 --updates 100 --every 10

TASK holds lm/ and rm/: a causal LM and a classifier of one label, read on its raw scale, with one
tokenizer. The prompts are JSON Lines with `ids`, all of one length, and `split`. Every few updates
one JSON line is printed: response tokens, seconds of training by wall clock and of this process on
its CPUs, and J of one response to each held-out prompt at temperature 1, with its score and KL.

With `--policies FOLDER`, J is left to who reads that: the policy is saved there, the line names its
folder, and training goes on after a line on stdin. The time of either is not counted.
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
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    TrainerCallback,
)
from trl.experimental.ppo import PPOConfig, PPOTrainer


def say(line: dict) -> None:
    """Print JSON at once."""
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


@torch.no_grad()
def measure(policy, reference, reward, prompts, length, pad, kl_coef, seed) -> dict:
    """Mean raw score, KL and J of one response to each of (n, P) prompts."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        tokens = policy.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            max_new_tokens=length,
            do_sample=True,
            top_k=0,
            pad_token_id=pad,
        )
    width = prompts.shape[1]
    mask = (tokens != pad).long()
    mask[:, :width] = 1
    log_probs = []
    for model in (policy, reference):
        logits = model(tokens, attention_mask=mask).logits[:, width - 1 : -1].float()
        log_probs.append(torch.log_softmax(logits, -1).gather(-1, tokens[:, width:, None])[..., 0])
    kl = ((log_probs[0] - log_probs[1]) * mask[:, width:]).sum(-1).mean().item()
    score = reward(tokens, attention_mask=mask).logits[:, 0].mean().item()
    return {"objective": score - kl_coef * kl, "score": score, "kl": kl}


class Measure(TrainerCallback):
    """Every few updates and at the last, `found(policy, updates)` is said; its time isn't counted.

    Args:
        every: updates between two.
        updates: all of them.
        tokens: of an update.
        found: a function (policy, updates) → what to say of the policy.
    """

    def __init__(self, every, updates, tokens, found) -> None:
        self.every, self.last, self.tokens, self.found = every, updates, tokens, found
        self.updates, self.paused = 0, (0.0, 0.0)
        self.start = time.process_time(), time.perf_counter()

    def on_step_end(self, args, state, control, model=None, **kwargs):
        """After each update."""
        self.updates += 1
        if self.updates % self.every and self.updates != self.last:
            return
        before = time.process_time(), time.perf_counter()
        cpu, wall = (
            round(b - s - p, 2) for b, s, p in zip(before, self.start, self.paused, strict=True)
        )
        line = {"tokens": self.updates * self.tokens, "updates": self.updates}
        line |= {"cpu_seconds": cpu, "wall_seconds": wall}
        self.found(getattr(model, "policy", model), line)
        after = time.process_time(), time.perf_counter()
        self.paused = tuple(p + a - b for p, a, b in zip(self.paused, after, before, strict=True))


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", help="holds lm/ and rm/")
    parser.add_argument("prompts", help="JSON Lines with ids and split")
    sizes = {"batch": 64, "response": 32, "updates": 100, "epochs": 4, "minibatches": 1}
    for name, default in {**sizes, "every": 10, "seed": 0}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--kl-coef", type=float, default=0.05)
    parser.add_argument("--policies", help="folder for the policies, measured by who reads this")
    return parser.parse_args()


def settings(args: argparse.Namespace, out: str) -> PPOConfig:
    """TRL's settings."""
    return PPOConfig(
        output_dir=out,
        per_device_train_batch_size=args.batch // args.minibatches,
        gradient_accumulation_steps=args.minibatches,
        num_mini_batches=args.minibatches,
        num_ppo_epochs=args.epochs,
        total_episodes=args.batch * args.updates,
        response_length=args.response,
        local_rollout_forward_batch_size=args.batch,
        stop_token="eos",
        temperature=1.0,
        kl_coef=args.kl_coef,
        learning_rate=args.learning_rate,
        lr_scheduler_type="constant",
        bf16=False,
        use_cpu=not torch.cuda.is_available(),
        gradient_checkpointing=False,
        report_to=[],
        num_sample_generations=0,
        save_strategy="no",
        logging_steps=10**9,
        disable_tqdm=True,
        seed=args.seed,
    )


def main() -> None:
    """Train, and print a line every few updates."""
    args = arguments()
    torch.manual_seed(args.seed)
    tokenizer = AutoTokenizer.from_pretrained(f"{args.models}/lm", padding_side="left")
    pad = tokenizer.pad_token_id
    actor, reference = (AutoModelForCausalLM.from_pretrained(f"{args.models}/lm") for _ in range(2))
    reward, value, judge = (
        AutoModelForSequenceClassification.from_pretrained(f"{args.models}/rm", num_labels=1)
        for _ in range(3)
    )
    with open(args.prompts, encoding="utf8") as file:
        rows = [json.loads(line) for line in file]
    train = [row["ids"] for row in rows if row["split"] == "train"]
    held_out = torch.tensor([row["ids"] for row in rows if row["split"] == "eval"])
    needed = args.batch * args.updates
    dataset = Dataset.from_dict({"input_ids": (train * (needed // len(train) + 1))[:needed]})

    def objective(policy) -> dict:
        length, seed = args.response, args.seed + 1
        judge.eval()
        return measure(policy, reference, judge, held_out, length, pad, args.kl_coef, seed)

    def found(policy, line: dict) -> None:
        if args.policies is None:
            say({**line, **objective(policy)})
            return
        folder = os.path.join(args.policies, str(line["updates"]))
        policy.save_pretrained(folder)
        say({**line, "policy": folder})
        sys.stdin.readline()

    if args.policies is None:
        say({"peer": "trl 1.12.0 PPOTrainer", **vars(args), "reference": objective(reference)})
    with tempfile.TemporaryDirectory() as out:
        trainer = PPOTrainer(
            args=settings(args, out),
            processing_class=tokenizer,
            model=actor,
            ref_model=reference,
            reward_model=reward,
            value_model=value,
            train_dataset=dataset,
            eval_dataset=dataset,
        )
        trainer.add_callback(Measure(args.every, args.updates, args.batch * args.response, found))
        trainer.train()


if __name__ == "__main__":
    main()
