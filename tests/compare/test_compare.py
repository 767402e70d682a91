"""`tokenrlhf compare`: resumable pieces, refusals, and the report that it leaves behind."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from agents import TokenPPO
from agents.cli import main
from agents.compare import workers
from agents.compare.command import _kinds, compare, plan
from agents.compare.config import CompareConfig
from agents.compare.environments import (
    CLASSIC,
    RAW_TOKENS,
    WRAPPED_TOKENS,
    kind_of,
    make_env,
    top_k,
)
from agents.compare.evaluators import ObjectiveEvaluator, ReturnEvaluator
from agents.compare.figures import FINGERPRINT_AXES
from agents.compare.jobs import Job, read_result
from agents.compare.learners import build_learner, learner_settings
from agents.compare.rollouts import plain_returns_of, plain_returns_side_by_side
from agents.config import TrainConfig
from agents.zoo import environment_settings
from agents.zoo.train_settings import FOLDER


def config(out: Path, **changed: Any) -> CompareConfig:
    settings: dict[str, Any] = {
        "envs": ("CartPole-v1",),
        "agents": ("ppo",),
        "seeds": 2,
        "steps": 1024,
        "evaluations": 2,
        "episodes": 5,
        "fingerprint_episodes": 6,
        "workers": 1,
    }
    return CompareConfig(out=out, **{**settings, **changed})


def quiet() -> Console:
    return Console(file=io.StringIO(), width=120)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison of classic control alone: two seeds of PPO on CartPole."""
    out = tmp_path_factory.mktemp("compare") / "classic"
    compare(config(out), quiet())
    return out


def test_the_report_holds_what_was_measured(finished):
    report = json.loads((finished / "compare.json").read_text(encoding="utf-8"))
    assert report["missing"] == []
    scale, found = report["scales"]["CartPole-v1"], report["scores"]["CartPole-v1"]["ppo"]
    assert [run["seed"] for run in report["runs"]] == [0, 1]
    for run in report["runs"]:
        expected = (run["value"] - scale["baseline"]) / (475.0 - scale["baseline"])
        assert run["score"] == pytest.approx(expected)
        assert [steps for steps, _ in run["curve"]] == [0, 512, 1024]
        assert run["steps"] == 1024 and run["episodes"] == 5
        seconds = run["curve_cpu_seconds"]
        assert seconds == sorted(seconds) and seconds[-1] == run["train_cpu_seconds"]
        assert -1.0 <= run["explained_variance"] <= 1.0
    assert found["scores"] == [run["score"] for run in report["runs"]]
    assert found["train_seconds"] > 0 and found["steps_per_second"] > 0
    assert found["train_cpu_seconds"] > 0
    fingerprint = report["fingerprints"]["CartPole-v1"]
    assert {axis.name for axis in FINGERPRINT_AXES} <= set(fingerprint)
    assert fingerprint["actions"] == 2


def test_the_page_stands_alone_and_shows_the_numbers(finished):
    page = (finished / "compare.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 4
    assert 'src="http' not in page and "<script" not in page
    report = json.loads((finished / "compare.json").read_text(encoding="utf-8"))
    score = report["scores"]["CartPole-v1"]["ppo"]["score"]
    assert f"{score:.3g}" in page and "Unfinished" not in page
    assert (finished / "compare.png").read_bytes().startswith(b"\x89PNG")


def test_a_second_call_does_nothing_again(finished, monkeypatch):
    monkeypatch.setattr(workers, "run_job", lambda *_: pytest.fail("this was done already"))
    before = json.loads((finished / "compare.json").read_text(encoding="utf-8"))
    assert compare(config(finished), quiet())["runs"] == before["runs"]


def test_other_settings_are_refused_with_the_reason(finished):
    with pytest.raises(ValueError, match=r"steps was 1024, now 2048.*--overwrite"):
        compare(config(finished, steps=2048), quiet())
    with pytest.raises(ValueError, match=r"fingerprint of CartPole-v1 .*episodes was 6, now 8"):
        compare(config(finished, fingerprint_episodes=8), quiet())


def test_results_with_other_settings_of_the_agent_are_refused(finished, tmp_path):
    """They are named one by one, whether the zoo's file has changed or another goes before it."""
    text = (FOLDER / "CartPole-v1.yaml").read_text(encoding="utf-8")
    changed = text.replace("batch_size: 256", "batch_size: 128").replace("gamma: 0.98", "gamma: 1")
    (tmp_path / "CartPole-v1.yaml").write_text(changed, encoding="utf-8")
    message = (
        r"seed 0 with other settings \(the learner's batch_size was 256, now 128; the learner's"
    )
    with pytest.raises(ValueError, match=message + r" gamma was 0\.98, now 1\).*--overwrite"):
        compare(config(finished, zoo=tmp_path), quiet())


def test_the_budget_is_that_of_the_environments_file(tmp_path):
    jobs, _ = plan(config(tmp_path, steps=None), {"CartPole-v1": CLASSIC, "Acrobot-v1": CLASSIC})
    steps = {job.env: job.settings["steps"] for job in jobs if job.what == "run"}
    assert steps == {env: environment_settings(env).steps for env in steps} and len(steps) == 2
    jobs, _ = plan(config(tmp_path, steps=77), {"CartPole-v1": CLASSIC})
    assert {job.work for job in jobs if job.what == "run"} == {77}


@pytest.mark.slow
def test_more_seeds_are_added_and_overwrite_begins_anew(tmp_path):
    out, console = tmp_path / "out", quiet()
    compare(config(out, seeds=1, steps=512), console)
    first = (out / "runs" / "CartPole-v1--ppo--0.json").read_bytes()
    report = compare(config(out, seeds=2, steps=512), console)
    assert len(report["runs"]) == 2
    assert (out / "runs" / "CartPole-v1--ppo--0.json").read_bytes() == first
    report = compare(config(out, seeds=1, steps=256, overwrite=True), console)
    assert [run["steps"] for run in report["runs"]] == [256]
    assert len(list((out / "runs").iterdir())) == 1


@pytest.mark.slow
def test_the_same_run_gives_the_same_numbers(finished, tmp_path):
    report = compare(config(tmp_path / "again", seeds=1), quiet())
    known = json.loads((finished / "compare.json").read_text(encoding="utf-8"))["runs"][0]
    assert report["runs"][0]["curve"] == known["curve"]
    assert report["fingerprints"]["CartPole-v1"]["return_mean"] > 0


@pytest.mark.slow
def test_ctrl_c_keeps_what_is_finished_and_reports_it(tmp_path, monkeypatch):
    out, count, real = tmp_path / "out", [0], workers.run_job

    def interrupted(*arguments: Any) -> None:
        count[0] += 1
        if count[0] == 4:
            raise KeyboardInterrupt
        real(*arguments)

    monkeypatch.setattr(workers, "run_job", interrupted)
    said = quiet()
    with pytest.raises(KeyboardInterrupt):
        compare(config(out, steps=512), said)
    assert "3 of 4 pieces of work are kept" in said.file.getvalue()
    report = json.loads((out / "compare.json").read_text(encoding="utf-8"))
    assert report["missing"] == ["ppo on CartPole-v1, seed 1"]
    assert len(report["runs"]) == 1
    assert "Unfinished" in (out / "compare.html").read_text(encoding="utf-8")
    monkeypatch.setattr(workers, "run_job", real)
    report = compare(config(out, steps=512), said)
    assert report["missing"] == [] and len(report["runs"]) == 2


def test_broken_and_foreign_files_are_refused(tmp_path):
    job = Job.scale(config(tmp_path), "CartPole-v1", CLASSIC)
    job.path(tmp_path).parent.mkdir(parents=True)
    job.path(tmp_path).write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match=r"CartPole-v1\.json' is no result of a comparison"):
        read_result(job, tmp_path)
    (tmp_path / "thesis.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(ValueError, match=r"'thesis\.txt', which is no part"):
        compare(config(tmp_path, overwrite=True), quiet())
    assert (tmp_path / "thesis.txt").is_file() and job.path(tmp_path).is_file()


def test_agents_that_fit_nowhere_are_left_out_and_said(tmp_path):
    settings = config(tmp_path, agents=("ppo", "token-ppo"), seeds=1)
    kinds = {"CartPole-v1": CLASSIC, "TokenRLHF-Features-TopK-v0": WRAPPED_TOKENS}
    jobs, left_out = plan(settings, kinds)
    runs = [(job.env, job.settings["agent"]) for job in jobs if job.what == "run"]
    assert ("CartPole-v1", "token-ppo") in runs
    assert ("TokenRLHF-Features-TopK-v0", "token-ppo") not in runs
    assert len(left_out) == 1 and "reads token ids" in left_out[0]


def test_kinds_of_environments():
    assert kind_of(make_env("CartPole-v1")) == CLASSIC
    assert kind_of(make_env("TokenRLHF-Exact-v0")) == RAW_TOKENS
    wrapped = make_env("TokenRLHF-Features-TopK-v0")
    assert kind_of(wrapped) == WRAPPED_TOKENS
    assert top_k(wrapped) == wrapped.action_space.n
    assert top_k(make_env("TokenRLHF-v0")) is None


def test_episodes_side_by_side_are_those_one_after_another():
    """Whichever ends first: seven episodes in three environments, and text in one."""

    def lean(observations: np.ndarray) -> np.ndarray:
        return (observations[:, 2] > 0).astype(np.int64)

    envs = [make_env("CartPole-v1") for _ in range(3)]
    found = plain_returns_side_by_side(envs, lean, 7, seed=5)
    one = plain_returns_of(envs[0], lambda o: lean(o[None])[0], 7, seed=5)
    assert found.tolist() == one.tolist() and len(set(found)) > 1
    text = make_env("TokenRLHF-Features-TopK-v0", "eval", task="exact", k=3)
    found = plain_returns_side_by_side([text], lambda o: np.zeros(len(o), dtype=np.int64), 99)
    assert found.tolist() == plain_returns_of(text, lambda _: np.int64(0), 99).tolist()


def test_published_settings_reach_the_agent():
    """RL Zoo's for MountainCar, Stable-Baselines3's defaults for the rest, for `TokenPPO` too."""
    for agent in ("ppo", "token-ppo"):
        model: Any = build_learner(agent, "MountainCar-v0", CLASSIC, seed=0)
        assert (model.n_steps, model.n_epochs, model.batch_size, model.n_envs) == (16, 4, 64, 16)
        assert (model.gamma, model.gae_lambda, model.vf_coef, model.ent_coef) == (
            0.99,
            0.98,
            0.5,
            0,
        )
        assert model.lr_schedule(1.0) == model.lr_schedule(0.1) == 3e-4
        assert model.clip_range(0.5) == 0.2 and model.clip_range_vf is None
        assert model.normalize_advantage and model.max_grad_norm == 0.5
        statistics = model.get_vec_normalize_env()
        assert statistics.gamma == 0.99 and statistics.norm_obs and statistics.norm_reward
    model = build_learner("ppo", "CartPole-v1", CLASSIC, seed=0)
    assert model.get_vec_normalize_env() is None
    assert model.lr_schedule(0.5) == pytest.approx(5e-4) and model.clip_range(0.5) == 0.1
    model = build_learner("dqn", "MountainCar-v0", CLASSIC, seed=0)
    assert model.policy.net_arch == [256, 256] and model.train_freq.frequency == 16


def test_normalised_agents_are_judged_with_statistics_that_stay():
    """The agent sees (observation − mean)/deviation of its training; judging adds nothing to it."""
    model: Any = build_learner("ppo", "MountainCar-v0", CLASSIC, seed=0)
    statistics = model.get_vec_normalize_env()
    statistics.obs_rms.mean, statistics.obs_rms.var = np.array([-0.5, 0.0]), np.array([4.0, 0.25])
    count, seen = statistics.obs_rms.count, []

    class Spy:
        def get_vec_normalize_env(self) -> Any:
            return statistics

        def predict(self, observations: np.ndarray, deterministic: bool) -> tuple[Any, None]:
            seen.append(observations)
            return model.predict(observations, deterministic=deterministic)

    evaluator = ReturnEvaluator("MountainCar-v0", count=2, few=2)
    assert evaluator.now(Spy()) <= -100.0
    first = np.stack([env.reset(seed=20_000 + i)[0] for i, env in enumerate(evaluator.envs)])
    expected = (first - [-0.5, 0.0]) / np.sqrt(np.array([4.0, 0.25]) + statistics.epsilon)
    np.testing.assert_allclose(seen[0], expected, atol=1e-6)
    assert statistics.obs_rms.count == count
    np.testing.assert_array_equal(statistics.obs_rms.mean, [-0.5, 0.0])


def test_another_view_of_the_exact_task_is_judged_as_it_is_seen():
    settings = learner_settings("dqn", "TokenRLHF-Exact-v0", RAW_TOKENS)
    model: Any = build_learner("dqn", "TokenRLHF-Exact-v0", RAW_TOKENS, seed=0)
    evaluator = ReturnEvaluator(
        settings["env_id"], 64, 64, settings["env_kwargs"], settings["frame_stack"]
    )
    (env,) = evaluator.envs
    assert env.observation_space.shape == model.observation_space.shape
    assert env.action_space == model.action_space and env.action_space.n == 3
    stacked, _ = env.reset(seed=1)
    width = len(stacked) // settings["frame_stack"]
    assert not stacked[:-width].any() and stacked[-width:].any()
    assert evaluator.final(model)["episodes"] == 5  # the prompts of the exact task


@pytest.mark.parametrize(
    ("env", "agent", "text", "message"),
    [
        (
            "TokenRLHF-Exact-v0",
            "token-ppo",
            "train: reviews",
            "task 'reviews', and TokenRLHF-Exact",
        ),
        ("TokenRLHF-Exact-v0", "token-ppo", "train: nope", "no settings called 'nope'"),
        ("TokenRLHF-Exact-v0", "token-ppo", "n_steps: 8", r"`train: exact`"),
        ("TokenRLHF-Exact-v0", "ppo", "env_id: TokenRLHF-Features-v0", "task 'reviews', and"),
        ("TokenRLHF-v0", "ppo", "env_kwargs: {task: exact}", "task 'exact', and"),
        ("CartPole-v1", "ppo", "env_id: Acrobot-v1", "can't stand for 'CartPole-v1'"),
        ("CartPole-v1", "token-ppo", "train: exact", "on raw token ids"),
    ],
)
def test_settings_for_another_task_are_refused(env, agent, text, message, tmp_path):
    content = f"env: {env}\nsteps: 64\nagents:\n  {agent}:\n    {text}\n"
    (tmp_path / f"{env}.yaml").write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        learner_settings(agent, env, kind_of(make_env(env)), tmp_path)


def test_what_watches_a_training_is_no_setting_of_an_agent(monkeypatch):
    def with_(**settings: Any) -> dict[str, Any]:
        config = TrainConfig(task="exact", **settings)
        monkeypatch.setattr("agents.compare.learners.train_settings", lambda name: config)
        return learner_settings("token-ppo", "TokenRLHF-Exact-v0", RAW_TOKENS)

    watched = with_(on_hacking_alarm="warn", shift_every=2)
    assert watched == with_(on_hacking_alarm="ignore")  # results of both can be compared
    with pytest.raises(ValueError, match="on_hacking_alarm='stop': the agents of a comparison"):
        with_(on_hacking_alarm="stop")


@pytest.mark.slow
@pytest.mark.parametrize("agent", ["ppo", "a2c", "dqn"])
@pytest.mark.parametrize("env_id", ["TokenRLHF-Exact-v0", "TokenRLHF-Features-TopK-v0"])
def test_standard_agents_learn_on_text_unmodified(agent, env_id):
    env = make_env(env_id)
    model = build_learner(agent, env_id, kind_of(env), seed=0)
    before = model.get_parameters()["policy"]
    before = {name: value.clone() for name, value in before.items()}
    model.learn(2048)
    after = model.get_parameters()["policy"]
    assert any(not value.equal(before[name]) for name, value in after.items())
    settings = learner_settings(agent, env_id, kind_of(env))
    view = settings.get("env_id", env_id)
    kwargs, stack = settings.get("env_kwargs"), settings.get("frame_stack", 1)
    found = ReturnEvaluator(view, 2, 2, kwargs, stack).final(model)
    assert found["episodes"] == 2 and np.isfinite(found["value"])


@pytest.mark.slow
def test_token_ppo_is_judged_by_j_between_reference_and_optimum(exact_solution):
    evaluator = ObjectiveEvaluator("TokenRLHF-Exact-v0", prompts=64)
    model = build_learner("token-ppo", "TokenRLHF-Exact-v0", RAW_TOKENS, seed=0)
    found = evaluator.final(model)
    # Untrained it is the reference: J = J_ref, and the optimum is the enumerated one.
    assert found["measure"] == "J" and not found["is_lower_bound"]
    assert found["value"] == pytest.approx(found["baseline"], abs=1e-6)
    assert found["top"] == pytest.approx(exact_solution.optimum, abs=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "0"], "steps=0"),
        (["--envs", "NoSuch-v0"], "NoSuch-v0"),
        (["--envs", "MountainCarContinuous-v0"], "Discrete"),
        (["--envs", "CartPole-v1", "CartPole-v1"], "each of them once"),
        (["--reach", "2"], "reach=2"),
    ],
)
def test_mistakes_are_refused_before_the_work(arguments, message, tmp_path, capsys):
    out = tmp_path / "out"
    try:
        status = main(["compare", "--out", str(out), *arguments])
    except SystemExit as stopped:  # what the settings refuse by themselves
        status = stopped.code
    assert status == 2
    assert message in capsys.readouterr().err.replace("\n", " ")
    assert not out.exists()


# The same PPO on another world -------------------------------------------------------------------


def test_token_ppo_on_other_environments_says_what_it_needs():
    from stable_baselines3.common.buffers import RolloutBuffer

    with pytest.raises(ValueError, match="rollout_buffer_class=RolloutBuffer"):
        TokenPPO("MlpPolicy", "CartPole-v1", device="cpu")
    with pytest.raises(ValueError, match="kl_controller='adaptive' is about the KL"):
        TokenPPO(
            "MlpPolicy",
            "CartPole-v1",
            rollout_buffer_class=RolloutBuffer,
            kl_controller="adaptive",
            kl_target=1.0,
            device="cpu",
        )


def test_token_ppo_with_extras_off_is_stock_ppo_on_cartpole():
    """Nothing is special-cased to text: the same weights after the same steps."""
    from stable_baselines3 import PPO
    from stable_baselines3.common.buffers import RolloutBuffer

    common: dict[str, Any] = {
        "learning_rate": lambda _: 1e-3,
        "n_steps": 128,
        "batch_size": 64,
        "n_epochs": 3,
        "gamma": 0.99,
        "vf_coef": 0.5,
        "max_grad_norm": 0.5,
        "seed": 0,
        "device": "cpu",
    }
    stock = PPO("MlpPolicy", "CartPole-v1", **common).learn(384)
    ours = TokenPPO(
        "MlpPolicy",
        "CartPole-v1",
        rollout_buffer_class=RolloutBuffer,
        whiten_advantages=False,
        normalize_advantage=True,
        clip_range_vf=None,
        **common,
    ).learn(384)
    expected = stock.policy.state_dict()
    for name, value in ours.policy.state_dict().items():
        np.testing.assert_allclose(value, expected[name], atol=1e-6, err_msg=name)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("agent", ["token-ppo", "ppo"])
def test_the_same_ppo_solves_cartpole(agent, seed):
    model = build_learner(agent, "CartPole-v1", CLASSIC, seed)
    model.learn(100_000)

    def choose(observation: np.ndarray) -> Any:
        return model.predict(observation, deterministic=True)[0]

    returns = plain_returns_of(make_env("CartPole-v1"), choose, 100, seed=20_000)
    assert len(returns) == 100
    assert returns.mean() >= 475.0


@pytest.mark.slow
def test_parallel_processes_give_the_same_numbers(finished, tmp_path):
    out = tmp_path / "parallel"
    compare(config(out, workers=2), quiet())
    for path in sorted(finished.rglob("*.json")):
        if path.name != "compare.json":
            one, other = (
                json.loads((root / path.relative_to(finished)).read_text(encoding="utf-8"))
                for root in (finished, out)
            )
            for timed in (name for name in one["result"] if "second" in name):
                one["result"][timed] = other["result"][timed]
            assert one == other, path.name


def test_a_kept_result_is_known_again_for_every_agent_and_environment(tmp_path):
    """JSON has lists where settings have tuples."""
    config = CompareConfig(out=tmp_path, seeds=1)
    jobs, _ = plan(config, _kinds(config))
    for job in jobs:
        path = job.path(tmp_path)
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({"settings": job.settings, "result": {}}))
        with pytest.raises(ValueError) as refused:  # for its empty result alone
            read_result(job, tmp_path)
        assert "other settings" not in str(refused.value), job.name
