"""The command line, as a person would use it and as they would get it wrong."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from agents.cli import main
from agents.config import TrainConfig
from agents.runs.curves import read_metrics
from agents.runs.folder import RunFolder
from agents.runs.tables import _shown

TINY = [
    *("--total-tokens", "512", "--n-envs", "16", "--n-steps", "16", "--batch-size", "128"),
    *(
        "--eval-prompts",
        "4",
        "--eval-responses",
        "8",
        "--eval-every",
        "1",
        "--checkpoint-every",
        "1",
    ),
    *("--device", "cpu"),
]


REWARD_MODEL = ["reward-model", "--pairs", "no.jsonl", "--base", "reviews", "--out", "rm"]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A small finished run."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    assert main(["train", "--out", str(folder), *TINY]) == 0
    return folder


def test_a_run_leaves_the_folder_that_was_promised(run):
    for name in ("config.json", "metrics.jsonl", "samples.jsonl", "summary.json", "curves.png"):
        assert (run / name).stat().st_size > 0, name
    for name in ("checkpoints", "policy", "reward_model", "tensorboard"):
        assert any((run / name).iterdir()), name
    assert (run / "checkpoints" / "tokens-512.zip").is_file()
    assert (run / "checkpoints" / "best" / "model.safetensors").is_file()
    assert not list(run.rglob("*.tmp*"))


def test_the_version_is_that_of_the_installed_package_and_costs_no_torch():
    script = (
        "import sys; from agents.cli import main; status = main(['--version']); "
        "sys.exit(status or 10 * ('torch' in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"tokenrlhf {importlib.metadata.version('tokenrlhf')}\n"


def test_the_summary_holds_the_numbers_that_a_run_is_judged_by(run):
    summary = json.loads((run / "summary.json").read_text())
    expected = {
        *("objective", "objective_reference", "optimum_lower_bound", "objective_fraction", "kl"),
        *("score", "gold_reward", "tokens", "tokens_per_second", "wall_seconds", "seed"),
    }
    assert expected <= set(summary)
    assert summary["tokens"] == 512
    # J = E[R] − β·KL, from its own parts
    parts = summary["score"] - summary["kl_coef"] * summary["kl"]
    assert summary["objective"] == pytest.approx(parts, abs=1e-9)
    gain = summary["objective"] - summary["objective_reference"]
    reach = summary["optimum_lower_bound"] - summary["objective_reference"]
    assert summary["objective_fraction"] == pytest.approx(gain / reach, abs=1e-9)


def test_metrics_have_all_four_families_and_what_the_last_update_said(run):
    rows = read_metrics(run / "metrics.jsonl")
    names = {name for row in rows for name in row}
    for name in ("score", "rm_score", "gold_reward", "kl", "kl_coef", "objective", "entropy"):
        assert f"rlhf/{name}" in names
    assert {"rlhf/response_length", "rlhf/eos_rate", "time/tokens_per_second"} <= names
    assert {"train/approx_kl", "train/clip_fraction", "train/explained_variance"} <= names
    assert {"rollout/ep_rew_mean", "rollout/ep_len_mean", "eval/objective"} <= names
    assert [r["time/total_timesteps"] for r in rows if "rlhf/kl" in r] == [256, 512]
    updates = [r["train/n_updates"] for r in rows if "train/n_updates" in r]
    assert updates == [4, 8]


def test_the_same_seed_gives_the_same_run(run, tmp_path):
    assert main(["train", "--out", str(tmp_path / "again"), *TINY]) == 0
    timing = {"tokens_per_second", "wall_seconds"}
    one, other = (
        {k: v for k, v in json.loads((r / "summary.json").read_text()).items() if k not in timing}
        for r in (run, tmp_path / "again")
    )
    assert one == other


def test_a_configuration_survives_its_json(run):
    config = RunFolder.open(run).read_config()
    assert config.n_envs == 16 and config.out == run
    assert TrainConfig.from_json(config.as_json()) == config


def test_what_was_trained_loads_in_plain_transformers(run):
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
        AutoTokenizer,
        pipeline,
    )

    model = AutoModelForCausalLM.from_pretrained(run / "policy")
    tokenizer = AutoTokenizer.from_pretrained(run / "policy")
    generate = pipeline("text-generation", model=model, tokenizer=tokenizer)
    prompt = "I saw this film today. The plot"
    assert generate(prompt, max_new_tokens=8)[0]["generated_text"].startswith(prompt)
    reward_model = AutoModelForSequenceClassification.from_pretrained(run / "reward_model")
    assert reward_model.config.num_labels == 1 and reward_model.config.reward_std > 0


def test_a_checkpoint_loads_and_continues(run):
    from agents import TokenPPO, make_vec_env

    env = make_vec_env(n_envs=16, seed=1, scoring="deferred", device="cpu")
    model = TokenPPO.load(run / "checkpoints" / "tokens-512.zip", env=env, device="cpu")
    assert model.num_timesteps == 512
    model.learn(256, reset_num_timesteps=False)
    assert model.num_timesteps == 768


def test_evaluate_and_sample(run, capsys):
    assert main(["evaluate", str(run)]) == 0
    assert "objective_fraction" in capsys.readouterr().out
    prompt = "I saw this film today. The plot"
    assert main(["sample", str(run), "--prompt", prompt, "--n", "2"]) == 0
    out = capsys.readouterr().out
    assert "policy" in out and "reference" in out and "score" in out


def test_a_run_folder_that_exists_is_refused_unless_told(run, tmp_path, capsys):
    assert main(["train", "--out", str(run), *TINY]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "exists already" in said and "--overwrite" in said
    (tmp_path / "mine.txt").write_text("keep")
    assert main(["train", "--out", str(tmp_path), "--overwrite", *TINY]) == 0
    assert (tmp_path / "mine.txt").read_text() == "keep"


@pytest.mark.parametrize(
    ("arguments", "telling"),
    [
        (["train", "--task", "rewievs"], ["rewievs", "'reviews'"]),
        (["train", "--kl-coef", "-1"], ["kl_coef=-1", "0 or a positive"]),
        (["train", "--reference", "/nowhere"], ["reward_model is missing", "reference"]),
        (
            ["train", "--reference", "/nowhere", "--reward-model", "reviews"],
            ["reference='/nowhere'", "neither"],
        ),
        (["train", "--reward-model", "nothing:here"], ["'nothing:here'", "module"]),
        (
            ["train", "--prompts", "missing.txt", "--reward-model", "reviews"],
            ["missing.txt", "no file"],
        ),
        (["train", "--total-tokens", "0"], ["total_tokens=0"]),
        (["train", "--cut", "carry", "--n-steps", "4"], ["carry", "max_new_tokens"]),
        (["train", "--device", "quantum"], ["device='quantum'", "cpu"]),
        (["evaluate", "/nowhere"], ["/nowhere", "no run"]),
        (["sample", "/nowhere", "--prompt", "x"], ["/nowhere", "no run"]),
        (["train", "--clip-range", "0"], ["clip_range=0", "greater than 0"]),
        (["train", "--clip-range-vf", "-0.2"], ["clip_range_vf=-0.2", "or None"]),
        (["train", "--num-threads", "0"], ["num_threads=0", "at least 1"]),
        (["train", "--vf-coef", "-1"], ["vf_coef=-1", "0 or a positive"]),
        (["train", "--ent-coef", "inf"], ["ent_coef=inf", "finite"]),
        (["train", "--learning-rate", "nan"], ["learning_rate=nan", "finite"]),
        (["train", "--max-grad-norm", "0"], ["max_grad_norm=0", "greater than 0"]),
        (["train", "--gamma", "1.1"], ["gamma=1.1", "from 0 to 1"]),
        (["train", "--gae-lambda", "-0.1"], ["gae_lambda=-0.1", "from 0 to 1"]),
        (["train", "--target-kl", "0"], ["target_kl=0", "or None"]),
        (["train", "--micro-batch-tokens", "0"], ["micro_batch_tokens=0", "at least 1"]),
        (["train", "--eval-every", "-1"], ["eval_every=-1", "0 for none"]),
        (["train", "--checkpoint-every", "-1"], ["checkpoint_every=-1", "0 for none"]),
        (["train", "--eval-responses", "-2"], ["eval_responses=-2", "0 for no evaluation", "even"]),
        (["train", "--eval-responses", "7"], ["eval_responses=7", "even"]),
        (["train", "--seed", "-1"], ["seed=-1", "0 or more"]),
        (["train", "--critic", "reward_model"], ["'reward_model'", "--value-head separate"]),
        (["evaluate", "run", "--eval-prompts", "0"], ["eval_prompts=0", "at least 1"]),
        (["evaluate", "run", "--eval-responses", "0"], ["eval_responses=0", "even"]),
        (["evaluate", "run", "--eval-responses", "3"], ["eval_responses=3", "even"]),
        (["evaluate", "run", "--seed", "-1"], ["seed=-1"]),
        (["sample", "run", "--prompt", "x", "--n", "0"], ["n=0", "at least 1"]),
        (["sample", "run", "--prompt", "x", "--seed", "-1"], ["seed=-1"]),
        ([*REWARD_MODEL, "--max-tokens", "0"], ["max_tokens=0", "at least 1"]),
        ([*REWARD_MODEL, "--centering-coef", "-1"], ["centering_coef=-1", "0 or a positive"]),
        ([*REWARD_MODEL, "--seed", "-1"], ["seed=-1"]),
        (REWARD_MODEL, ["no.jsonl"]),
    ],
)
def test_a_mistake_gets_an_answer_and_no_traceback(
    arguments, telling, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    if arguments[0] == "train":
        arguments = [*TINY, *arguments[1:], "--out", str(tmp_path / "run")]
        arguments.insert(0, "train")
    try:
        status = main(arguments)
    except SystemExit as stopped:  # refused by the argument parser itself
        status = stopped.code
    assert status == 2
    captured = capsys.readouterr()
    said = " ".join(captured.err.split())
    for part in telling:
        assert part in said
    assert "Traceback" not in captured.err + captured.out


def refused(arguments, capsys) -> str:
    """What a command that must fail with status 2 said."""
    capsys.readouterr()
    assert main(arguments) == 2
    return " ".join(capsys.readouterr().err.split())


def test_a_folder_that_cannot_be_made_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "1000")
    file = tmp_path / "file"
    file.write_text("not a folder")
    assert str(file) in refused(["train", "--out", str(file / "run"), *TINY], capsys)
    pairs = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"p{i}", "chosen": " good", "rejected": " bad"} for i in range(4)]
    pairs.write_text("\n".join(map(json.dumps, rows)))
    arguments = ["reward-model", "--pairs", str(pairs), "--base", "reviews"]
    assert str(file) in refused([*arguments, "--out", str(file / "rm")], capsys)


def test_a_mistake_in_the_constructor_is_refused_like_one_on_the_command_line():
    from agents import LMActorCriticPolicy, TokenPPO

    for name, value in {"clip_range": 0.0, "gamma": 2.0, "vf_coef": -1, "n_epochs": 0}.items():
        with pytest.raises(ValueError, match=f"{name}={value} must be"):
            TokenPPO(LMActorCriticPolicy, None, **{name: value})


@pytest.mark.parametrize(
    ("name", "content", "telling"),
    [
        ("config.json", "{", "config.json"),
        ("config.json", "[1]", "JSON object"),
        ("config.json", '{"colour": 1, "out": "x"}', "'colour'"),
        ("config.json", '{"n_envs": "many"}', "n_envs='many'"),
        ("policy/policy.json", "{", "policy.json"),
        ("policy/policy.json", "[]", "policy.json"),
        ("policy/policy.json", '{"width": 4}', "vocabulary_size"),
        ("policy/critic.pt", None, "critic.pt"),
        ("policy/critic.pt", "nonsense", "critic.pt"),
    ],
)
def test_a_broken_file_of_a_run_is_named(
    run, name, content, telling, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("COLUMNS", "1000")
    broken = tmp_path / "broken"
    shutil.copytree(run, broken)
    if content is None:
        (broken / name).unlink()
    else:
        (broken / name).write_text(content)
    said = refused(["sample", str(broken), "--prompt", "The plot", "--n", "1"], capsys)
    assert str(broken / name) in said and telling in said


def test_pairs_with_the_same_text_twice_are_counted(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "1000")
    rows = [
        {"prompt": f"The plot {i}", "chosen": " was fun.", "rejected": " was dull."}
        for i in range(8)
    ]
    rows[3]["rejected"] = rows[3]["chosen"]
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("\n".join(map(json.dumps, rows)))
    arguments = ["reward-model", "--pairs", str(pairs), "--base", "reviews", "--device", "cpu"]
    arguments += ["--epochs", "1", "--eval-fraction", "0.3", "--out", str(tmp_path / "rm")]
    assert main(arguments) == 0
    assert "1 of 8 pairs have the same text twice" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "--actor", ""],
        ["train", "--actor", "  "],
        ["train", "--actor="],
        ["train", "--out", ""],
        ["train", "--reward-model", "\t"],
        ["evaluate", ""],
        ["verify", "--json", ""],
        ["compare", "--out", ""],
        [*REWARD_MODEL[:-1], ""],
    ],
)
def test_an_empty_name_or_path_is_refused_and_nothing_is_written(
    arguments, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    said = refused(arguments, capsys)
    assert re.search(r"got '(|\\t| +)'", said), said  # `refused` makes one space of several
    assert not list(tmp_path.iterdir())


def test_help_explains_every_setting(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["train", "--help"])
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    for name in TrainConfig.__dataclass_fields__:
        assert f"--{name.replace('_', '-')}" in shown


def test_help_loads_no_model_library():
    code = (
        "import sys\nfrom agents.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "sys.exit(any(m in sys.modules for m in ('torch', 'transformers')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.usefixtures("usual_signals")
def test_a_stopped_run_keeps_a_checkpoint_and_the_metrics(tmp_path):
    folder = tmp_path / "stopped"
    arguments = ["train", "--out", str(folder), *TINY, "--total-tokens", "100000000"]
    arguments[arguments.index("--checkpoint-every") + 1] = "0"
    process = subprocess.Popen(
        [sys.executable, "-m", "agents.cli", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "COLUMNS": "200"},
    )
    deadline = time.monotonic() + 90
    while len(read_metrics(folder / "metrics.jsonl")) < 2 and time.monotonic() < deadline:
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "stopped after" in out and str(folder) in out.replace("\n", "")
    assert "Traceback" not in out + err
    assert (folder / "checkpoints" / "interrupted.zip").is_file()
    assert (folder / "policy" / "model.safetensors").is_file()
    assert len(read_metrics(folder / "metrics.jsonl")) >= 2


def test_reward_model_from_a_file_of_pairs(tmp_path, capsys):
    rng = np.random.default_rng(0)
    words = {True: ["great", "superb", "fun"], False: ["awful", "dull", "bad"]}
    rows = []
    for _ in range(60):
        good, bad = (str(rng.choice(words[side])) for side in (True, False))
        aspect = str(rng.choice(["plot", "cast", "pace", "music", "script"]))
        prompt = f"{rng.choice(['I', 'We'])} saw this film today. The {aspect}"
        rows.append({"prompt": prompt, "chosen": f" was {good}.", "rejected": f" was {bad}."})
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("\n".join(json.dumps(row) for row in rows))
    out = tmp_path / "reward-model"
    arguments = ["reward-model", "--pairs", str(pairs), "--base", "reviews", "--out", str(out)]
    settings = [
        "--epochs",
        "12",
        "--batch-size",
        "16",
        "--learning-rate",
        "2e-3",
        "--device",
        "cpu",
    ]
    assert main([*arguments, *settings]) == 0
    report = json.loads((out / "report.json").read_text())
    assert report["accuracy"] == 1.0
    assert "accuracy" in capsys.readouterr().out
    # what it wrote is a reward model for `train`
    trained = tmp_path / "run"
    assert main(["train", "--out", str(trained), *TINY, "--reward-model", str(out)]) == 0
    assert main([*arguments, *settings]) == 2
    assert "exists already" in " ".join(capsys.readouterr().err.split())


def test_the_summary_shows_numbers_ranges_and_names():
    assert _shown(0.96712) == "0.967" and _shown(65_536) == "65,536"
    assert _shown((1.25, 2)) == "1.250 … 2" and _shown("bfloat16") == "bfloat16"


@pytest.mark.slow
def test_a_run_says_which_precision_auto_chose(tmp_path, capsys):
    out = tmp_path / "run"
    assert main(["train", "--out", str(out), "--precision", "auto", *TINY]) == 0
    chosen = json.loads((out / "summary.json").read_text())["precision"]
    assert chosen in ("float32", "bfloat16")
    assert f"updates compute in {chosen}" in capsys.readouterr().out


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        torch.OutOfMemoryError("CUDA out of memory"),
    ],
)
def test_a_machine_without_memory_is_said(error, monkeypatch, capsys, tmp_path):
    def fails(**_: object) -> None:
        raise error

    monkeypatch.setattr("agents.runs.ranks.make_vec_env", fails)
    assert main(["train", "--out", str(tmp_path / "run")]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "not enough memory" in said and "--n-envs" in said and "Traceback" not in said


def test_another_error_of_the_program_is_no_lack_of_memory(monkeypatch, tmp_path):
    def fails(**_: object) -> None:
        raise RuntimeError("something else")

    monkeypatch.setattr("agents.runs.ranks.make_vec_env", fails)
    with pytest.raises(RuntimeError, match="something else"):
        main(["train", "--out", str(tmp_path / "run")])
