"""A task made from a language model and texts, and the peer's side of it."""

from __future__ import annotations

import importlib
import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT.parent / "shared" / "data"
"""Real data, beside the project where there is some; it is no part of it."""


@pytest.fixture(scope="module")
def real_task():
    sys.path.append(str(ROOT / "examples"))
    try:
        yield importlib.import_module("real_task")
    finally:
        sys.path.remove(str(ROOT / "examples"))


@pytest.fixture(scope="module")
def reference() -> str:
    from tokenenv.tasks import load_task

    return load_task("reviews").reference


@pytest.fixture(scope="module")
def reviews() -> list[str]:
    from tokenenv.tasks.reviews.grammar import sample_review

    rng = np.random.default_rng(0)
    return [sample_review(rng) for _ in range(800)]


def test_prompts_have_one_length_and_end_between_two_words_within_a_sentence(
    real_task, reference, reviews
):
    from tokenenv.models import load_tokenizer, prompt_ids

    tokenizer = load_tokenizer(reference, "reference")
    settings = real_task.TaskSettings(10, 16, train_prompts=100, eval_prompts=70)
    rows = real_task.split_prompts(reviews, tokenizer, settings)
    assert [sum(r["split"] == s for r in rows) for s in ("train", "eval")] == [100, 70]
    assert len({row["prompt"] for row in rows}) == 170, "none is in both splits"
    for row in rows:
        assert len(row["ids"]) == 10
        assert list(prompt_ids(tokenizer, row["prompt"], [tokenizer.eos_token_id])) == row["ids"]
        (line, *_) = [line for line in reviews if line.startswith(row["prompt"])]
        assert line[len(row["prompt"].rstrip())] == " " and row["prompt"].rstrip()[-1].isalnum()


def test_too_few_prompts_are_refused(real_task, reference, reviews):
    from tokenenv.models import load_tokenizer

    tokenizer = load_tokenizer(reference, "reference")
    with pytest.raises(ValueError, match="at least 64 are needed to train on, and as many to eval"):
        real_task.split_prompts(reviews[:90], tokenizer, real_task.TaskSettings(10, 16))


def test_the_best_and_the_worst_sample_make_the_first_pair(real_task, monkeypatch):
    """Golds 3, 1, 4, 2 of tokens 30, 10, 40, 20: pairs (40, 10) and (30, 20); two 7s are a tie."""
    from types import SimpleNamespace

    tokens = [30, 10, 40, 20, 70, 70, 70, 50]
    sampled = [SimpleNamespace(tokens=np.array([t])) for t in tokens]
    monkeypatch.setattr(real_task, "sample_responses", lambda *_, **__: sampled)
    lm = SimpleNamespace(model=None, eos_token_ids=(2,), decode=lambda ids: str(ids[0]))
    rows = [{"prompt": "a", "ids": [1, 5]}, {"prompt": "b", "ids": [1, 6]}]
    settings = real_task.TaskSettings(samples=4)
    pairs, ties, golds = real_task.label_pairs(lm, rows, settings, lambda text: int(text) / 10)
    found = [(p.prompt, p.chosen.tolist(), p.rejected.tolist()) for p in pairs]
    assert found[:2] == [("a", [1, 5, 40], [1, 5, 10]), ("a", [1, 5, 30], [1, 5, 20])]
    assert found[2][0] == "b" and found[2][2] == [1, 6, 50] and len(found) == 3
    assert ties == 1 and golds.tolist() == [3, 1, 4, 2, 7, 7, 7, 5]


def test_the_lexicon_reads_the_response_without_spelled_out_special_tokens(real_task):
    pytest.importorskip("vaderSentiment", reason="of the extra `real`")
    good = real_task.lexicon_sentiment("They were happy.")
    assert good > 0.4 > -0.4 > real_task.lexicon_sentiment("It was a terrible, sad day.")
    assert real_task.lexicon_sentiment("They were happy.<|end_story|>") == good
    assert real_task.lexicon_sentiment("They were happy<|end_") == good
    assert real_task.lexicon_sentiment("A box.") == 0.0


def test_a_folder_without_a_task_is_answered_with_how_to_make_one(real_task, tmp_path):
    with pytest.raises(ValueError, match=r"no task\.json.*21_real_model\.py --task-only"):
        real_task.environment(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "--lm and --texts are missing.*--quick"),
        (["--lm", "nowhere", "--texts", "nothing.txt"], "nowhere"),
        (["--lm", "REFERENCE", "--texts", "nothing.txt"], "nothing.txt"),
    ],
)
def test_the_example_says_what_it_lacks(
    options, message, real_task, reference, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    given = [reference if word == "REFERENCE" else word for word in options]
    monkeypatch.setattr(sys, "argv", ["21_real_model.py", *given, "--out", "real"])
    with pytest.raises(SystemExit, match=message):
        runpy.run_path(str(ROOT / "examples" / "21_real_model.py"), run_name="__main__")


@pytest.fixture(scope="module")
def task(real_task, reference, reviews, tmp_path_factory) -> Path:
    """A small task, whose gold counts letters."""
    folder = tmp_path_factory.mktemp("task")
    (folder / "texts.txt").write_text("\n".join(reviews), encoding="utf-8")
    settings = real_task.TaskSettings(
        10, 12, train_prompts=100, eval_prompts=64, samples=4, epochs=2, learning_rate=2e-3
    )
    gold = lambda text: text.count("o") / 10  # noqa: E731
    real_task.make_task(Path(reference), folder / "texts.txt", folder, settings, gold)
    return folder


@pytest.mark.slow
def test_the_reward_is_the_classifiers_output_on_its_raw_scale(real_task, task):
    """Ours, in the environment, is what plain transformers read from the folder."""
    import torch
    from transformers import AutoModelForSequenceClassification

    from agents.evaluation import measure
    from tokenenv.rewards import Episode

    held_out = real_task.held_out_of(task, 8, gold=len)
    row = json.loads((task / "prompts.jsonl").read_text().splitlines()[-64])
    assert row["split"] == "eval" and held_out.prompts[0].tolist() == row["ids"]
    episode = Episode(held_out.prompts[0], np.array([7, 9, 11]), False)
    classifier = AutoModelForSequenceClassification.from_pretrained(task / "rm", num_labels=1)
    with torch.no_grad():
        raw = classifier.eval()(torch.tensor([[*row["ids"], 7, 9, 11]])).logits.item()
    assert held_out.scorer.score([episode]).score[0] == pytest.approx(raw, abs=1e-5)
    numbers = measure(held_out.scorer.reference.language_model.model, held_out, 1, seed=0)
    assert numbers["kl"] == pytest.approx(0, abs=1e-4) and numbers["gold_reward"] > 5


PEER = """
import json, shutil, sys
task, _, _, policies, *words = sys.argv[1:]
options = dict(zip(words[::2], words[1::2]))
print("log")
for update in (1, 2):
    folder = f"{policies}/{update}"
    shutil.copytree(f"{task}/lm", folder)
    tokens = update * int(options["--batch"]) * int(options["--response"])
    line = {"tokens": tokens, "updates": update, "cpu_seconds": 2.0 * update, "policy": folder}
    print(json.dumps(line), flush=True)
    assert sys.stdin.readline() == "\\n"
"""


@pytest.mark.slow
def test_a_peers_policies_are_measured_as_ours_are(task, tmp_path, monkeypatch):
    """A peer that learns nothing: J of its policies is that of the reference, by one evaluator.

    Weights that are stored in bfloat16 are computed with in float32, as the reference's are.
    """
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    runs, peer = map(importlib.import_module, ("learning_runs", "learning_peer"))
    script = tmp_path / "peer.py"
    script.write_text(PEER)
    monkeypatch.setattr(peer, "PEER_SCRIPT", script)
    run = runs.Run(str(task), "trl", 0, {"batch": 4}, 96, points=2, responses=1, prompts=8)
    points: list[dict] = []
    peer.train_peer(Path(sys.executable), run, points.append)
    assert [(p["tokens"], p["is_last"]) for p in points] == [(0, False), (48, False), (96, True)]
    assert points[0]["objective"] == points[1]["objective"] == points[2]["objective"]
    script.write_text("import sys; sys.exit('out of memory')")
    with pytest.raises(RuntimeError, match="out of memory"):
        peer.train_peer(Path(sys.executable), run, points.append)


@pytest.mark.slow
def test_a_real_model_gives_real_prompts(real_task):
    from tokenenv.models import load_tokenizer

    lm, texts = DATA / "tinystories-656k", DATA / "tinystories-sample.txt"
    if not (lm.is_dir() and texts.is_file()):
        pytest.skip(f"no TinyStories in {DATA}: real data is no part of the project")
    lines = texts.read_text(encoding="utf-8").splitlines()[:1500]
    tokenizer = load_tokenizer(str(lm), "reference")
    settings = real_task.TaskSettings(eval_prompts=64)
    rows = real_task.split_prompts(lines, tokenizer, settings)
    assert all(row["ids"][0] == tokenizer.bos_token_id for row in rows)
    assert len(rows) > 400 and all(len(row["ids"]) == 16 for row in rows)
