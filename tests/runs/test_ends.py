"""How a run ends: below the untrained model, without an evaluation, in numbers that are lost."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from agents.cli import main
from agents.config import TrainConfig
from agents.evaluation import EvaluationSize, evaluation_size
from agents.policy import LMActorCriticPolicy
from agents.ppo import NonFiniteStep, NonFiniteWeights, TokenPPO, Update
from agents.runs.curves import read_metrics
from agents.runs.outcome import Gain, gain_of, lines_of_a_fall
from agents.runs.training import TrainingRun
from tokenenv.models import NonFiniteNumbers
from tokenenv.tasks import load_task

SMALL = {
    **{"task": "exact", "total_tokens": 384, "n_envs": 16, "n_steps": 8, "batch_size": 64},
    "reward_model": "reward_of_ends:length",
    **{"eval_prompts": 4, "eval_every": 0, "explain_every": 0, "device": "cpu"},
}
FLAGS = [
    word for name, value in SMALL.items() for word in (f"--{name.replace('_', '-')}", str(value))
]


@pytest.fixture(autouse=True)
def reward(tmp_path_factory, monkeypatch):
    """A reward that is a function, so that nothing is enumerated: that takes longer than to train.

    It asks for short responses.
    """
    folder = tmp_path_factory.mktemp("code")
    (folder / "reward_of_ends.py").write_text(
        "def length(prompts, responses):\n    return [-len(r) / 10 for r in responses]\n"
    )
    monkeypatch.syspath_prepend(str(folder))


def made(out: Path, **changes) -> tuple[TrainingRun, io.StringIO]:
    said = io.StringIO()
    console = Console(file=said, width=2000)
    return TrainingRun(TrainConfig(out=out, **{**SMALL, **changes}), console), said


# The size of the evaluation -----------------------------------------------------------------------


def size(
    prompts: int = 64, has_function: bool = False, episodes: int = 0, **settings
) -> EvaluationSize:
    return evaluation_size(TrainConfig(**settings), prompts, 16, 32, episodes, has_function)


def test_the_evaluation_costs_as_much_as_the_training_at_most():
    # P 16, T 32: S = 16 + 3·32 = 112 to sample, F = 48; trained 112 + 2·48 + 4·3·48 = 784,
    # evaluated 112 + 3·48 = 256; 65,536/32 = 2,048 episodes pay for 6,272 responses, 98 a prompt.
    assert size() == EvaluationSize(64, 98, 64, 256)
    assert size(total_tokens=131_072).responses == 196
    # One epoch: 112 + 96 + 144 = 352, so 2,816 responses; with a critic's own trunk 144 more, and
    # 48 for its values: 544, so 4,352. Of four epochs it learns in the first: 976, so 7,808.
    assert size(n_epochs=1).responses == 44
    assert size(n_epochs=1, value_head="separate").responses == 68
    assert size(value_head="separate", critic_epochs=1).responses == 122
    # Adapters: 112 + 96 + 4·2·48 = 592, so 4,736.
    assert size(lora_rank=4).responses == 74
    assert size(actor="somewhere").responses == 48, "the untrained actor is evaluated as well"
    assert size(has_function=True).responses == 32, "no more than training asks it for"
    # Responses that end early are more than tokens / T; 4,000 pay for 12,250 here.
    assert size(episodes=4000).responses == 190
    assert size(episodes=4000, has_function=True).responses == 62
    assert not size(episodes=9781).is_reduced, "a default run on `reviews`"


def test_prompts_are_reduced_last_and_nothing_grows():
    assert size(total_tokens=10**7) == EvaluationSize(64, 256, 64, 256)
    assert size(total_tokens=2048) == EvaluationSize(64, 2, 64, 256)  # 196 responses
    assert size(total_tokens=1024) == EvaluationSize(49, 2, 64, 256)
    assert size(total_tokens=1) == EvaluationSize(1, 2, 64, 256)
    # 10 prompts where 64 were asked for: 7 times as many responses to each.
    assert size(10, total_tokens=10**8) == EvaluationSize(10, 7 * 256, 10, 7 * 256)


def test_a_number_is_taken_as_it_is_and_0_is_none():
    assert size(eval_responses=256, total_tokens=64) == EvaluationSize(64, 256, 64, 256)
    assert not size(eval_responses=256, total_tokens=64).is_reduced
    assert size(eval_responses=0).responses == 0
    note = size(total_tokens=2048).note()
    assert "64 prompts × 2 responses from 64 × 256" in note and "--eval-responses 256" in note
    for wrong in (-2, 3, 2.0, True):
        with pytest.raises(ValueError, match=r"eval_responses=.*None.*0 for no evaluation.*even"):
            TrainConfig(eval_responses=wrong)


@pytest.mark.slow
def test_what_was_reduced_is_said_and_stands_in_the_summary(tmp_path):
    few = {"task": "reviews", "total_tokens": 512, "reward_model": None}
    run, said = made(tmp_path / "run", eval_prompts=70, **few)
    summary = run.train()
    episodes = run.metrics.num_episodes
    assert 32 <= episodes <= 64  # of about 10 tokens: more than 512 / 32
    prompts = int(episodes * 784 / 256 / 2)  # as above
    assert f"reduced to {prompts} prompts × 2 responses from 70 × 256" in said.getvalue()
    assert summary["evaluation_reduced_from"] == [70, 256] and summary["evaluated"]
    assert (summary["prompts"], summary["responses_per_prompt"]) == (prompts, 2)
    assert summary["fraction_interval"] is None, "one response of each shows no scatter"
    assert summary["gain_interval"] is not None


# No evaluation ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_without_an_evaluation_everything_else_is_there(tmp_path, capsys):
    out = tmp_path / "run"
    assert main(["train", "--out", str(out), *FLAGS, "--eval-responses", "0"]) == 0
    said = capsys.readouterr().out
    assert "note: not evaluated (--eval-responses 0)" in said.split("next: tokenrlhf")[1]
    summary = json.loads((out / "summary.json").read_text())
    assert summary["finished"] is True and summary["evaluated"] is False
    assert summary["tokens"] == 384 and "objective" not in summary
    assert (out / "curves.png").stat().st_size > 10_000
    page = (out / "report.html").read_text()
    assert "The run was not evaluated (--eval-responses 0)" in page and "not finished" not in page
    evaluate = ["evaluate", str(out), "--trust-code", "--eval-responses", "4"]
    assert main(evaluate) == 0
    assert "objective_reference" in capsys.readouterr().out


@pytest.mark.slow
def test_seeds_without_an_evaluation(tmp_path, capsys):
    out = tmp_path / "seeds"
    flags = ["--seeds", "2", "--eval-responses", "0"]
    assert main(["train", "--out", str(out), *FLAGS, *flags]) == 0
    content = json.loads((out / "seeds.json").read_text())
    assert set(content["numbers"]) == {"tokens_per_second"} and content["below_untrained"] == []


# Below the untrained model ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gain", "is_fall", "is_rise"),
    [
        (Gain(1.0, 0.5, (-0.9, -0.1)), True, False),
        (Gain(1.0, 0.5, (-1.1, 0.1)), False, False),
        (Gain(1.0, 1.5, (0.1, 0.9)), False, True),
        (Gain(1.0, 0.5), True, False),
        (Gain(1.0, 1.0), False, False),
        (Gain(1.0, 1.0 - 1e-12, (-1e-12, -1e-12)), False, False),  # rounding
    ],
)
def test_a_fall_is_one_beyond_the_error_alone(gain, is_fall, is_rise):
    assert (gain.is_fall, gain.is_rise) == (is_fall, is_rise)


def test_the_gain_of_a_summary():
    of = {"objective": 0.5, "objective_reference": 1.0}
    assert gain_of({**of, "gain_interval": [-0.9, -0.1]}) == Gain(1.0, 0.5, (-0.9, -0.1))
    assert gain_of({**of, "optimum": 2.0}) == Gain(1.0, 0.5)
    assert gain_of(of) is None and gain_of({}) is None, "older runs, and those not evaluated"


def test_what_to_change_first_is_said_with_the_policy_that_was_better():
    summary = {
        **{"objective": 0.5, "objective_reference": 1.0, "gain_interval": [-0.9, -0.1]},
        **{"score": 1.7, "score_reference": 1.0, "kl": 4.0, "kl_coef": 0.3},
    }
    rows = [
        {"eval/objective": 1.25, "time/total_timesteps": 4096},
        {"eval/objective": 0.7, "time/total_timesteps": 8192},
        {"eval/objective": float("nan"), "time/total_timesteps": 9000},
    ]
    first, change, best = lines_of_a_fall(summary, 3e-4, rows)
    assert "J is 0.5 after training and 1 before" in first and "-0.9 … -0.1 (95 %)" in first
    assert "changed by +0.7, and the KL costs 1.2" in first
    assert "--learning-rate 0.0001" in change and "docs/tuning.md" in change
    assert "checkpoints/best/" in best and "J about 1.25 after 4,096 tokens" in best
    assert len(lines_of_a_fall(summary, 3e-4, rows[1:])) == 2, "none was better"
    assert lines_of_a_fall({**summary, "gain_interval": [-0.9, 0.1]}, 3e-4, rows) == []


@pytest.mark.slow
def test_the_last_lines_of_a_run_that_fell(tmp_path, capsys):
    out = tmp_path / "run"
    assert (
        main(["train", "--out", str(out), *FLAGS, "--learning-rate", "1", "--eval-responses", "16"])
        == 0
    )
    said = " ".join(capsys.readouterr().out.split("next: tokenrlhf")[1].split())
    assert "warning: the run ended below the untrained model: J is" in said
    assert said.endswith("docs/tuning.md")
    summary = json.loads((out / "summary.json").read_text())
    assert summary["below_untrained"] is True and summary["gain_interval"][1] < 0
    assert "Worse than the untrained model" in (out / "report.html").read_text()


@pytest.mark.slow
def test_a_run_that_learned_nothing_is_not_called_worse(tmp_path):
    run, said = made(tmp_path / "run", learning_rate=0.0, eval_responses=8)
    summary = run.train()
    assert summary["below_untrained"] is False and summary["gain_interval"][0] < 0
    assert "below" not in said.getvalue()


def test_a_page_that_advice_leads_to_has_its_symptom():
    page = Path(__file__).resolve().parents[2] / "docs" / "tuning.md"
    assert "## The run ends below the untrained model" in page.read_text(encoding="utf-8")


# Numbers that are lost ----------------------------------------------------------------------------


def saved(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "policy" / "model.safetensors")


@pytest.mark.parametrize("rate", ["1e20", "3e38"])
def test_an_absurd_learning_rate_stops_and_leaves_the_policy_of_before(tmp_path, capsys, rate):
    out = tmp_path / "run"
    assert main(["train", "--out", str(out), *FLAGS, "--learning-rate", rate]) == 2
    captured = capsys.readouterr()
    error = " ".join(captured.err.split())
    assert "nan" in error and "Lower the learning rate" in error
    said = " ".join(captured.out.split())
    assert "before the update in which numbers were lost: the untrained one." in said
    assert not list((out / "checkpoints").glob("failed*")), "its optimiser is ruined"
    assert "metrics.jsonl" in said and read_metrics(out / "metrics.jsonl")
    summary = json.loads((out / "summary.json").read_text())
    assert summary["finished"] is False and summary["ended_by"].startswith("NonFiniteStep")
    reference = Path(load_task("exact").reference)
    for name, weight in load_file(reference / "model.safetensors").items():
        assert torch.equal(saved(out)[name], weight), name


def test_what_was_learned_before_the_update_that_broke_is_kept(tmp_path, monkeypatch):
    """A step in the middle of the third update is not finite."""
    run, said = made(tmp_path / "run", checkpoint_every=1, max_skipped_updates=0)
    good: dict[str, torch.Tensor] = {}
    train, evaluate = TokenPPO.train, LMActorCriticPolicy.evaluate_actions
    calls: list[int] = []

    def update(model):
        calls.append(0)
        if len(calls) == 3:
            good.update({n: w.clone() for n, w in model.policy.state_dict().items()})
        train(model)

    def evaluate_actions(policy, obs, actions):
        if calls:  # it is called by a check of the sampling as well
            calls[-1] += 1
        values, log_probs, entropies = evaluate(policy, obs, actions)
        is_broken = len(calls) == 3 and calls[-1] > 2
        return values, log_probs * (torch.nan if is_broken else 1.0), entropies

    monkeypatch.setattr(TokenPPO, "train", update)
    monkeypatch.setattr(LMActorCriticPolicy, "evaluate_actions", evaluate_actions)
    with pytest.raises(NonFiniteStep, match="update 3, epoch"):
        run.train()
    after = run.model.policy.state_dict()
    assert all(torch.equal(after[name], weight) for name, weight in good.items())
    text = " ".join(said.getvalue().split())
    assert "numbers were lost: trained on 256 tokens." in text
    assert "Archives of before that: tokens-128.zip, tokens-256.zip." in text
    assert len(read_metrics(tmp_path / "run" / "metrics.jsonl")) >= 3


def test_a_run_goes_on_after_a_skipped_update_and_keeps_its_batch(tmp_path, monkeypatch):
    """What is kept suffices to look for the cause; nothing of it is pickled."""
    run, said = made(tmp_path / "run", eval_responses=8, total_tokens=512)
    backward = Update.backward

    def broken(update, *arguments):
        parts, log_probs = backward(update, *arguments)
        is_second = update.model.num_updates == 1 and not update.model.skipped_in_a_row
        return {**parts, "loss": parts["loss"] * (torch.inf if is_second else 1.0)}, log_probs

    monkeypatch.setattr(Update, "backward", broken)
    summary = run.train()
    assert summary["finished"] is True and summary["skipped_updates"] == 1
    assert run.model.num_updates == 3
    text = " ".join(said.getvalue().split())
    assert "warning: no update was made after 256 tokens: update 2, epoch 1, step 1: loss" in text
    path = tmp_path / "run" / "skipped" / "tokens-256.npz"
    assert f"The batch is kept in {path}." in text
    with np.load(path, allow_pickle=False) as batch:
        reason = json.loads(str(batch["said"]))
        assert reason["update"] == 2 and reason["steps_taken"] == []
        tokens = int(batch["lengths"].sum())
        assert {len(batch[name]) for name in ("actions", "rewards", "advantages")} == {tokens}
        assert int(batch["prefix_lengths"].sum()) == len(batch["prefixes"])
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [row["train/skipped_updates"] for row in rows if "train/skipped_updates" in row] == [1]


def test_the_batches_of_the_last_three_skipped_updates_are_kept(tmp_path, monkeypatch):
    run, said = made(tmp_path / "run", max_skipped_updates=4, total_tokens=640)
    monkeypatch.setattr(
        Update, "run", lambda update: (_ for _ in ()).throw(NonFiniteStep("of a test"))
    )
    with pytest.raises(NonFiniteStep, match=r"^5 updates in a row could .*of a test"):
        run.train()
    kept = sorted(path.name for path in (tmp_path / "run" / "skipped").iterdir())
    assert kept == ["tokens-384.npz", "tokens-512.npz", "tokens-640.npz"]
    assert "before the update in which numbers were lost: the untrained one" in said.getvalue()


def test_a_run_of_which_every_update_was_skipped_is_no_result(tmp_path, monkeypatch):
    run, _ = made(tmp_path / "run", max_skipped_updates=9, total_tokens=256)
    monkeypatch.setattr(
        Update, "run", lambda update: (_ for _ in ()).throw(NonFiniteStep("of a test"))
    )
    with pytest.raises(NonFiniteStep, match="of a test"):
        run.train()
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["finished"] is False


def test_weights_that_the_last_step_ruined_are_no_result(tmp_path, monkeypatch):
    """No later step or rollout would show it."""
    run, said = made(tmp_path / "run", total_tokens=128)
    train = TokenPPO.train

    def update(model):
        train(model)
        with torch.no_grad():
            next(model.policy.parameters()).fill_(torch.inf)

    monkeypatch.setattr(TokenPPO, "train", update)
    with pytest.raises(NonFiniteWeights, match="not finite after the last update"):
        run.train()
    assert all(bool(torch.isfinite(weight).all()) for weight in saved(tmp_path / "run").values())
    assert "numbers were lost: the untrained one" in " ".join(said.getvalue().split())


def test_weights_that_the_next_rollout_finds_ruined_are_no_result_either(tmp_path, monkeypatch):
    """The archive of after the update is not called one of before it."""
    run, said = made(tmp_path / "run", total_tokens=256, checkpoint_every=1)
    train = TokenPPO.train

    def update(model):
        train(model)
        with torch.no_grad():
            next(model.policy.parameters()).fill_(torch.nan)

    monkeypatch.setattr(TokenPPO, "train", update)
    with pytest.raises(NonFiniteNumbers, match="are NaN"):
        run.train()
    assert all(bool(torch.isfinite(weight).all()) for weight in saved(tmp_path / "run").values())
    text = " ".join(said.getvalue().split())
    assert "numbers were lost: the untrained one." in text and "Archives of before" not in text


@pytest.mark.parametrize("value", ["inf", "nan"])
def test_a_reward_that_is_not_finite_keeps_what_was_learned(tmp_path, monkeypatch, capsys, value):
    (tmp_path / f"{value}_reward.py").write_text(
        "calls = []\n"
        "def reward(prompts, responses):\n"
        "    calls.append(1)\n"
        f"    return [float('{value}') if len(calls) > 2 else len(r) * 0.1 for r in responses]\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    out = tmp_path / "run"
    flags = ["--reward-model", f"{value}_reward:reward"]
    assert main(["train", "--out", str(out), *FLAGS, *flags]) == 2
    captured = capsys.readouterr()
    assert f"returned {value} for response" in " ".join(captured.err.split())
    assert (out / "checkpoints" / "failed.zip").is_file(), "its weights and optimiser are good"
    assert saved(out) and read_metrics(out / "metrics.jsonl")


@pytest.mark.slow
def test_a_constant_reward_is_said_once(tmp_path, monkeypatch, caplog):
    (tmp_path / "flat_reward.py").write_text(
        "def reward(prompts, responses):\n    return [2.0] * len(responses)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    run, _ = made(tmp_path / "run", reward_model="flat_reward:reward", eval_responses=4)
    summary = run.train()
    told = [r.getMessage() for r in caplog.records if "nothing but the KL" in r.getMessage()]
    assert len(told) == 1 and "are all 2:" in told[0]
    assert summary["objective_fraction"] is None, "there is nothing to gain"
