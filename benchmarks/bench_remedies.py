"""What helps against a weak reward model on `reviews`: gold reward after PPO with each remedy.

Every seed has pairs of its own, two responses of the reference to a prompt, labelled by a
Bradley-Terry annotator with the card's sharpness; four reward models trained on all of them; and
one training for each remedy. Without one, the reward is the first of the four models.

- gold: mean gold reward after the training, on held-out prompts.
- against none: its difference from the same seed without a remedy, mean over the seeds, with the
  95 % interval of Student's t; one seed has none.

FOLDER keeps everything: what is finished there is not done again. `--table` prints what there is.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from reporting import Row, arguments_parser, report
from scipy import stats

from tokenenv.json_files import read_json_object
from tokenenv.models import load_frozen, sample_responses
from tokenenv.tasks import load_task

NONE = "none"
MEMBERS = 4
REMEDIES: dict[str, list[str]] = {
    NONE: ["--reward-model", "FIRST"],
    "length penalty": [
        *("--reward-model", "FIRST", "tokenenv.rewards:response_length"),
        *("--reward-weights", "1", "-0.05"),
    ],
    "KL target": [
        *("--reward-model", "FIRST", "--kl-controller", "adaptive"),
        *("--kl-target", "5", "--kl-horizon", "1000"),
    ],
    "reward clipping": ["--reward-model", "FIRST", "--score-clip", "2"],
    "mean": ["--reward-model", "ALL"],
    "worst case": ["--reward-model", "ALL", "--combine", "min"],
    "uncertainty, c = 1": ["--reward-model", "ALL", "--combine", "uncertainty"],
    "uncertainty, c = 2": [
        *("--reward-model", "ALL", "--combine", "uncertainty"),
        *("--uncertainty-coef", "2"),
    ],
}
TABLE = "gold reward after PPO against a weak reward model, by remedy"


def write_pairs(path: Path, count: int, seed: int) -> None:
    """Pairs of the reference's responses, as a file."""
    task, rng = load_task("reviews"), np.random.default_rng(seed)
    assert task.gold_reward is not None and task.card is not None
    sharpness = read_json_object(task.card, "a card")["reward_model"]["annotator_sharpness"]
    reference = load_frozen(task.reference)
    prompts = [str(prompt) for prompt in rng.choice(task.prompts("train"), count)]
    sides = [
        sample_responses(
            reference.model,
            reference.eos_token_ids,
            [reference.encode(prompt) for prompt in prompts],
            task.max_new_tokens,
            seed=int(rng.integers(2**31)),
        )
        for _ in range(2)
    ]
    rows = []
    for prompt, first, second in zip(prompts, *sides, strict=True):
        if not (first.stopped and second.stopped):
            continue  # a file says nothing of responses that ran out of room
        texts = [reference.decode(side.tokens[:-1]) for side in (first, second)]
        gold = [task.gold_reward(prompt, text, True) for text in texts]
        first_wins = rng.random() < 1 / (1 + np.exp(-sharpness * (gold[0] - gold[1])))
        chosen, rejected = texts if first_wins else texts[::-1]
        rows.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")


def call(*arguments: Any) -> None:
    """A command of `tokenrlhf`, in a process of its own."""
    command = [sys.executable, "-m", "agents.cli", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")


def prepare(folder: Path, pairs: int, seed: int) -> None:
    """The pairs and the reward models of a seed, where they are not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "pairs.jsonl").is_file():
        write_pairs(folder / "pairs.jsonl", pairs, seed)
    if not (folder / "rm" / "report.json").is_file():
        call(
            *("reward-model", "--pairs", folder / "pairs.jsonl", "--base", "reviews"),
            *("--out", folder / "rm", "--overwrite", "--members", MEMBERS, "--seed", seed),
            *("--device", "cpu"),
        )


def train(folder: Path, remedy: str, tokens: int, seed: int) -> None:
    """One training, where it is not finished yet."""
    out = _place(folder, remedy)
    if _summary(out) is not None:
        return
    places = {"FIRST": str(folder / "rm" / "member-1"), "ALL": str(folder / "rm")}
    call(
        *("train", "--out", out, "--overwrite", "--seed", seed, "--device", "cpu"),
        *("--kl-coef", "0.02", "--learning-rate", "1e-3", "--total-tokens", tokens),
        *("--explain-every", "0", "--checkpoint-every", "0", "--shift-every", "16"),
        *(places.get(option, option) for option in REMEDIES[remedy]),
    )


def _place(folder: Path, remedy: str) -> Path:
    return folder / re.sub(r"[^\w]+", "-", remedy)


def _summary(out: Path) -> dict[str, Any] | None:
    path = out / "summary.json"
    content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return content if content.get("finished") else None


def finished(folder: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """Remedy → seed → summary, of what is finished."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for place in sorted(folder.glob("seed-*")):
        for remedy in REMEDIES:
            if (summary := _summary(_place(place, remedy))) is not None:
                found.setdefault(remedy, {})[place.name] = summary
    return found


def rows_of(folder: Path) -> list[Row]:
    """The table of what is finished."""
    found, rows = finished(folder), []
    without = found.get(NONE, {})
    for remedy, of_seeds in found.items():
        gains = [
            summary["gold_reward"] - without[seed]["gold_reward"]
            for seed, summary in of_seeds.items()
            if seed in without and remedy != NONE
        ]
        mean, (low, high) = (float(np.mean(gains)) if gains else None), _interval(gains)
        names = ("gold_reward", "score", "kl", "response_length")
        means = {n: float(np.mean([one[n] for one in of_seeds.values()])) for n in names}
        rows.append(
            {
                **{"table": TABLE, "what": remedy, "gold": means.pop("gold_reward")},
                **{"against none": mean, "from": low, "to": high, **means},
                "seeds": len(of_seeds),
            }
        )
    return rows


def _interval(gains: list[float]) -> tuple[float | None, float | None]:
    """95 % by Student's t, of two seeds or more."""
    if len(gains) < 2:
        return None, None
    half = float(stats.t.ppf(0.975, len(gains) - 1) * stats.sem(gains))
    return float(np.mean(gains)) - half, float(np.mean(gains)) + half


def main() -> None:
    """Do what is missing, then print the table."""
    parser = arguments_parser(__doc__, repetitions=1)
    parser.add_argument("folder", type=Path, help="what is finished stays here")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--pairs", type=int, default=150, help="for the reward models of a seed")
    parser.add_argument("--tokens", type=int, default=131_072, help="of a training")
    parser.add_argument("--remedies", nargs="+", choices=REMEDIES, default=list(REMEDIES))
    parser.add_argument("--table", action="store_true", help="train nothing")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.seeds, arguments.tokens = arguments.seeds[:1], 2048
        arguments.remedies = arguments.remedies[:1] + arguments.remedies[-1:]
    for seed in [] if arguments.table else arguments.seeds:
        place = arguments.folder / f"seed-{seed}"
        prepare(place, arguments.pairs, seed)
        for remedy in arguments.remedies:
            train(place, remedy, arguments.tokens, seed)
    setting = {"pairs": arguments.pairs, "members": MEMBERS, "tokens": arguments.tokens}
    report(rows_of(arguments.folder), setting, arguments.json)


if __name__ == "__main__":
    main()
