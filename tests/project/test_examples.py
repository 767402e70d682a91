"""Every numbered example is short, runs as it is, and shows what its first line says.

The quick ones run in this process, which has the libraries already, the others as a user runs them.
"""

from __future__ import annotations

import json
import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.warm_python import run_python

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
NUMBER = r"(-?\d+\.\d+)"


def numbers(pattern: str, output: str) -> list[float]:
    """What NUMBER found in every match of a pattern with one group."""
    found = [float(text) for text in re.findall(pattern, output)]
    assert found, output
    return found


# What each of them has to show --------------------------------------------------------------------


def random_agent(output: str, folder: Path) -> None:
    episodes = output.split("prompt  ")[1:]
    assert len(episodes) == 3
    for episode in episodes:
        rewards = numbers(rf"(?m)^ *{NUMBER}  '", episode)
        (total,) = numbers(rf"(?m)^ *{NUMBER}  sum of {len(rewards)} tokens", episode)
        assert total == pytest.approx(sum(rewards), abs=1e-3)
        (score,) = numbers(rf"score {NUMBER}, gold reward -?\d", episode)
        assert score < 0.0, "noise is no good review"


def standard_agent(output: str, folder: Path) -> None:
    (greedy,) = numbers(rf"greedy decoding .action 0. {NUMBER}", output)
    (untrained,) = numbers(rf"untrained {NUMBER}", output)
    (trained,) = numbers(rf"tokens {NUMBER}", output)
    assert untrained < greedy + 0.5 and greedy + 2.0 < trained <= 2.9


def custom_reward(output: str, folder: Path) -> None:
    shares = numbers(r"(\d+)% of the responses mention", output)
    kls = numbers(rf"reference +{NUMBER} nats", output)
    assert len(shares) == 8 and sum(shares[-3:]) / 3 >= shares[0] + 25
    assert abs(kls[0]) < 0.05 and 0.3 < kls[-1] < 4.0


def own_prompts(output: str, folder: Path) -> None:
    of_list, of_file, of_each = output.splitlines()
    assert of_list.endswith("episodes start from ['The music', 'Today we saw a thriller.']")
    assert of_file.endswith("['I saw this film today.', 'We watched the new comedy at home.']")
    assert of_each.endswith("['I saw this film today.', 'The music']")
    assert (folder / "prompts.txt").is_file()


def reward_model(output: str, folder: Path) -> None:
    assert numbers(rf"held-out accuracy {NUMBER}", output)[0] >= 0.95
    (good,), (bad,) = (
        numbers(rf"' was {word}\.': \+?{NUMBER}", output) for word in ("great", "awful")
    )
    assert good > bad + 1.0


def ppo(output: str, folder: Path) -> None:
    for name in ("before", "after"):
        assert len(re.findall(rf"(?m)^{name}: +I saw this film today\. The plot", output)) == 4
    (reference,) = numbers(rf"of the reference {NUMBER}", output)
    (trained,) = numbers(rf"trained model {NUMBER}", output)
    assert abs(reference) < 0.2 and trained > reference + 0.8
    assert (folder / "my-policy" / "model.safetensors").is_file()


def own_task(output: str, folder: Path) -> None:
    assert numbers(r"on (\d+)% of held-out pairs", output)[0] >= 85
    (of_reference,) = numbers(rf"gold reward of the reference {NUMBER}", output)
    gold = numbers(rf"'gold_reward': {NUMBER}", output)
    scores = numbers(rf"'score': {NUMBER}", output)
    assert len(gold) == 4 and gold[-1] > of_reference + 0.25 and scores[-1] > scores[0] > 0.0
    assert (folder / "brevity-reward-model" / "config.json").is_file()


def compare(output: str, folder: Path) -> None:
    (pole,) = numbers(rf"on CartPole-v1: score {NUMBER}", output)
    (text,) = numbers(rf"on TokenRLHF-Exact-v0: score {NUMBER}", output)
    assert pole >= 0.5 and 0.1 <= text <= 1.0
    assert "6 actions" in output and "2 actions" in output
    for ending in ("json", "png", "html"):
        assert (folder / "compare" / f"compare.{ending}").stat().st_size > 1000


def read_a_run(output: str, folder: Path) -> None:
    (names,) = re.findall(r"files in run/: (.*)", output)
    assert set(names.split()) == {path.name for path in (folder / "run").iterdir()}
    values = dict(re.findall(rf"(?m)^(\w+) +{NUMBER}$", output))
    low, high = float(values["objective_reference"]), float(values["optimum"])
    fraction = (float(values["objective"]) - low) / (high - low)
    assert float(values["objective_fraction"]) == pytest.approx(fraction, abs=1e-3) and fraction > 0
    scores = [float(text) for text in re.findall(r"training: (.*)", output)[0].split()]
    assert scores[-1] > scores[0] + 0.2
    said = re.findall(r"plain transformers: (.*)", output)[0].split()
    assert said[0] == "do" and set(said) <= {"do", "re", "mi", "fa", "sol"}


def exact_optimum(output: str, folder: Path) -> None:
    assert output.startswith("97,655 responses, J* = 3.6147 at β = 1.1")
    objectives = numbers(rf"J = {NUMBER}", output)
    fractions = numbers(rf"objective_fraction = {NUMBER}", output)
    to_optimum = numbers(rf"π\*\) = {NUMBER}", output)
    assert fractions == sorted(fractions) and fractions[-1] == 1.0 and to_optimum[-1] == 0.0
    for objective, distance in zip(objectives, to_optimum, strict=True):
        assert objective + 1.1 * distance == pytest.approx(3.6147, abs=2e-3)  # J* − J = β·KL(π‖π*)


def bias_variance(output: str, folder: Path) -> None:
    rows = json.loads((folder / "bias_variance.json").read_text(encoding="utf-8"))
    assert output.count("←") == len({(row["critic_error"], row["gamma"]) for row in rows})
    for row in rows:
        total = row["gradient_bias"] + row["variance"]
        if row["gamma"] == 1.0 and row["gae_lambda"] == 1.0:
            assert row["gradient_bias"] == pytest.approx(0.0, abs=1e-6)
            assert row["total_error"] == pytest.approx(total, rel=1e-6)
    assert (folder / "bias_variance.png").stat().st_size > 10_000


def one_file_ppo(output: str, folder: Path) -> None:
    (fraction,) = numbers(rf"(?m)^{NUMBER} of the way from the reference to the optimum", output)
    assert 0.99 <= fraction <= 1.0, "TokenPPO reaches 0.998 with twice the tokens"


def baker(output: str, folder: Path) -> None:
    """By hand, with β = 0.1, λ = ½, γ = 1.

    First loaf. KL of `wait`: ln(0.8/0.2) = ln 4 = 1.386, so that r = (0, 0, 0, −0.139, 1), and with
    V = (0.5, 0.5, 0.6, 0.6, 0.9), δ = (0, 0.1, 0, −0.139 + 0.9 − 0.6, 1 − 0.9). From the end:
    A = 0.1; 0.161 + 0.05; 0 + 0.106; 0.1 + 0.053; 0 + 0.076.
    Second loaf, with V = 0.1 after `rush`: δ = (0, 0.1, 0, 0.139 + 0.1 − 0.6, −0.1).
    Uniform credit: (1 − 0.139) − (0 + 0.139) = 0.723, and the negative.
    ‖e − π‖ of two words with probabilities p and 1 − p is √2·(1 − p).
    """
    tables = json.loads((folder / "baker.json").read_text(encoding="utf-8"))
    cost = 0.1 * np.log(4)
    deltas = [[0, 0.1, 0, -cost + 0.3, 0.1], [0, 0.1, 0, cost - 0.5, -0.1]]
    advantages = np.zeros((2, 5))
    for loaf, row in enumerate(deltas):
        for t in reversed(range(5)):
            advantages[loaf, t] = row[t] + (0.5 * advantages[loaf, t + 1] if t < 4 else 0.0)
    np.testing.assert_allclose(advantages[0], [0.076, 0.153, 0.106, 0.211, 0.1], atol=6e-4)
    whitened = (advantages - advantages.mean()) / advantages.std(ddof=1)
    norms = np.sqrt(2) * np.array([[0.5, 0.5, 0.5, 0.2, 0.0], [0.5, 0.5, 0.5, 0.8, 0.0]])
    for loaf, response in enumerate(tables["gae"]):
        columns = response["columns"]
        np.testing.assert_allclose(columns["delta"], deltas[loaf], atol=1e-6)
        np.testing.assert_allclose(columns["advantage"], advantages[loaf], atol=1e-6)
        np.testing.assert_allclose(columns["whitened"], whitened[loaf], atol=1e-5)
        strengths = np.abs(whitened[loaf]) * norms[loaf]
        np.testing.assert_allclose(columns["strength"], strengths, atol=1e-5)
        uniform = (1 - 2 * cost) * (1 - 2 * loaf)
        of_rloo = tables["rloo"][loaf]["columns"]["advantage"]
        np.testing.assert_allclose(of_rloo, [uniform] * 5, atol=1e-6)
    assert re.search(r"wait │ -0\.139 │ 0\.600 │ 0\.161 │ 0\.211", output)
    assert (folder / "baker.png").stat().st_size > 10_000


def rule_reward(output: str, folder: Path) -> None:
    right = numbers(rf"'is_right': {NUMBER}", output)
    near = numbers(rf"'is_near': {NUMBER}", output)
    assert len(right) == len(near) == 5
    assert right[0] < 0.3 and right[-1] >= right[0] + 0.15 and near[-1] > near[0] + 0.2
    assert (folder / "sums" / "config.json").is_file()


def distance(output: str, folder: Path) -> None:
    """Without a critic that knows anything, E[Â|s, a] is λ^(tokens after it)·Q.

    So the gain is that power, and the ratio that of Monte Carlo, which no critic changes at λ = 1.
    """
    content = json.loads((folder / "distance.json").read_text(encoding="utf-8"))
    both = content["correlation_both_ways"]
    np.testing.assert_allclose(both["sampled"], both["exact"], atol=0.015)  # 3 of 1/√50,000
    rows = {(r["critic"], r["estimate"], r["length"]): r for r in content["rows"]}
    for (critic, estimate, length), row in rows.items():
        uniform = rows[critic, "uniform", length]["signal_to_noise"]
        if critic == "untrained" and estimate != "uniform":
            power = float(estimate.removeprefix("λ = ")) ** np.arange(length - 1, -1, -1)
            np.testing.assert_allclose(row["gain"], power, atol=1e-9)
            np.testing.assert_allclose(row["signal_to_noise"], uniform, rtol=1e-6)
        if estimate in ("λ = 1", "uniform"):
            np.testing.assert_allclose(row["gain"], 1.0, atol=1e-9)
        if critic == "trained" and estimate == "λ = 0.9":
            assert row["explained"] > 0.9 and row["gain"][0] > 0.9
            assert row["signal_to_noise"][0] > 3 * uniform[0]
    assert (folder / "distance.png").stat().st_size > 10_000


def token_strength(output: str, folder: Path) -> None:
    """No two factors of the strength are equal for all tokens, whatever the credit."""
    rows = json.loads((folder / "token_strength.json").read_text(encoding="utf-8"))
    keys = {(row["task"], row["stage"], row["estimator"]) for row in rows}
    assert len(keys) == len(rows) == 8
    for row in rows:
        curve = np.array(row["lorenz"])
        assert (np.diff(curve) >= -1e-12).all() and (curve <= np.linspace(0, 1, 101) + 1e-9).all()
        area = np.mean((curve[1:] + curve[:-1]) / 2)
        assert row["gini"] == pytest.approx(1 - 2 * area, abs=0.02)
        assert row["gini"] > 0.2 and row["gini_norm"] > 0.05 and row["top_tenth"] > 0.15
        assert np.mean(row["by_advantage"]) == pytest.approx(1.0, abs=0.15)
        assert np.diff(row["mean_advantage"]).min() >= 0
        assert ("correlation_with_truth" in row) == (row["task"] == "exact")
        # The same tokens: what the credit changes is the weight alone.
        other = next(r for r in rows if r != row and r["task"] == row["task"]
                     and r["stage"] == row["stage"])  # fmt: skip
        assert other["gini_norm"] == row["gini_norm"] and other["gini"] != row["gini"]
    assert (folder / "token_strength.png").stat().st_size > 10_000


def critic_quality(output: str, folder: Path) -> None:
    """A zero critic of the reference: all Q̂ are equal, and it explains less than the mean.

    The mean of K continuations is unbiased, with 1/K of the variance.
    """
    content = json.loads((folder / "critic.json").read_text(encoding="utf-8"))
    for run in content["runs"]:
        first, last = run["points"][0], run["points"][-1]
        assert first["tokens"] == 0 and first["rank_accuracy"] == pytest.approx(0.5)
        assert first["explained_variance"] <= 0 and first["objective_fraction"] < 1e-6
        assert last["objective_fraction"] > 0.02
    of_counts = {r["count"]: r for r in content["values"] if r["kind"] == "continuations"}
    unexplained = {k: 1 - row["explained_variance"] for k, row in of_counts.items()}
    assert unexplained[27] == pytest.approx(unexplained[1] / 27, rel=0.6)
    for name in ("rank_accuracy", "correlation_td"):
        assert of_counts[1][name] < of_counts[9][name] < of_counts[27][name] < 1
    assert of_counts[27]["tokens"] == pytest.approx(27 * of_counts[1]["tokens"], rel=0.2)
    (truth,) = (row for row in content["values"] if row["kind"] == "true V")
    for name in ("explained_variance", "rank_accuracy", "correlation_td"):
        assert truth[name] == pytest.approx(1.0)
    kinds = {row["kind"] for row in content["values"]}
    assert kinds == {"true V", "continuations", "shared critic", "separate critic"}
    assert (folder / "critic.png").stat().st_size > 10_000


def kl_brake(output: str, folder: Path) -> None:
    free, held = json.loads((folder / "kl_brake.json").read_text(encoding="utf-8"))
    assert (free["kl_coef"], held["kl_coef"]) == (0.0, 0.5)
    assert free["kl"] > 1.3 * held["kl"] > 0, "after so few tokens the score can't tell them apart"
    for row in (free, held):
        assert 0 < row["distinct"] <= 1 and row["top_tenth"] > 0.2
        shares = [share for _, share in row["words"]]
        assert shares == sorted(shares, reverse=True) and 0 < sum(shares) <= 1 + 1e-9
    assert (folder / "kl_brake.png").stat().st_size > 10_000


def uniform_credit(output: str, folder: Path) -> None:
    rows = json.loads((folder / "uniform.json").read_text(encoding="utf-8"))
    assert {(r["task"], r["estimator"]) for r in rows} == {
        (task, estimator) for task in ("exact", "reviews") for estimator in ("gae", "rloo")
    }
    for row in rows:
        values = [value for _, value in row["points"]]
        assert row["best"] == max(values) and row["last"] == values[-1] > values[0]
        assert row["tokens_to_goal"] is None, "so few tokens"
    assert (folder / "uniform.png").stat().st_size > 10_000


def demonstrations(said: str, folder: Path) -> None:
    from tokenenv.data import read_examples
    from tokenenv.tasks.reviews import TASK, gold_rewards

    examples = list(read_examples(folder / "demonstrations.jsonl"))
    gold = gold_rewards([e.prompt for e in examples], [e.response for e in examples])
    assert said == (
        f"{len(examples)} demonstrations in demonstrations.jsonl, gold reward "
        f"{sum(gold) / len(gold):.3f} on average\n"
    )
    held_out = {prompt[: prompt.index(".") + 1] for prompt in TASK.prompts("eval")}
    assert not held_out & {example.prompt for example in examples}


def real_model(output: str, folder: Path) -> None:
    """Numbers of the last point and of the samples are those that are printed."""
    content = json.loads((folder / "real_model.json").read_text(encoding="utf-8"))
    points = content["curve"]
    assert [point["tokens"] for point in points] == [0, 2048, 4096]
    assert abs(points[0]["kl"]) < 1e-4 < points[2]["kl"]
    for point in points:
        value = point["score"] - 0.05 * point["kl"]
        assert point["objective"] == pytest.approx(value, abs=1e-9)
    shown = numbers(rf"tokens: J +{NUMBER}", output)
    np.testing.assert_allclose(shown, [point["objective"] for point in points], atol=6e-4)
    assert len(content["samples"]) == output.count("  before, score") == 6
    for part in ("lm", "rm", "policy"):
        assert (folder / part / "model.safetensors").is_file()
    assert (folder / "real_model.png").stat().st_size > 10_000


Check = Callable[[str, Path], None]
QUICK: dict[str, Check] = {
    "01_random_agent": random_agent,
    "04_own_prompts": own_prompts,
    "10_exact_optimum": exact_optimum,
    "13_the_baker": baker,
    "20_demonstrations": demonstrations,
}
SLOW: dict[str, Check] = {
    "02_standard_agent": standard_agent,
    "03_custom_reward": custom_reward,
    "05_reward_model": reward_model,
    "06_ppo": ppo,
    "07_own_task": own_task,
    "08_compare": compare,
    "09_read_a_run": read_a_run,
    "11_bias_variance": bias_variance,
    "12_one_file_ppo": one_file_ppo,
    "19_rule_reward": rule_reward,
}
EXPERIMENTS: dict[str, Check] = {
    "14_distance_from_the_reward": distance,
    "15_do_all_tokens_get_the_same": token_strength,
    "16_quality_of_the_critic": critic_quality,
    "17_kl_as_a_brake": kl_brake,
    "18_uniform_or_per_token": uniform_credit,
    "21_real_model": real_model,
}
"""Those that have a small version, `--quick`, which is what the test runs."""
LONGEST = {"12_one_file_ppo": 150, "13_the_baker": 180}
"""Lines of an example that is a whole algorithm; the others have at most 60."""
EXPERIMENT = 300
"""Lines of one of `EXPERIMENTS`, at most."""


def test_every_example_is_run_by_a_test_and_is_short():
    files = sorted(EXAMPLES.glob("[0-9]*.py"))
    assert [path.stem for path in files] == sorted([*QUICK, *SLOW, *EXPERIMENTS])
    assert [path.stem[:2] for path in files] == [f"{n:02}" for n in range(1, len(files) + 1)]
    for path in files:
        lines = path.read_text(encoding="utf-8").splitlines()
        longest = EXPERIMENT if path.stem in EXPERIMENTS else LONGEST.get(path.stem, 60)
        assert len(lines) <= longest, path.name


def test_no_folder_beside_the_examples_hides_a_package(tmp_path):
    """`examples/agents` is beside the scripts, and Python looks for `agents` there first."""
    code = (
        f"import sys; sys.path[0] = {str(EXAMPLES)!r}; from importlib.util import find_spec; "
        "print(find_spec('agents').origin, find_spec('tokenenv').origin)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert [Path(text).name for text in done.stdout.split()] == ["__init__.py"] * 2


@pytest.mark.parametrize("name", QUICK)
def test_example_shows_what_it_says(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(EXAMPLES)  # where Python looks first when it runs a script
    monkeypatch.setattr(sys, "argv", [name])
    monkeypatch.setenv("NO_COLOR", "1")
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    QUICK[name](capsys.readouterr().out, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*SLOW, *EXPERIMENTS])
def test_longer_example_shows_what_it_says(name, tmp_path):
    done = run_python(
        EXAMPLES / f"{name}.py",
        *(["--quick"] if name in EXPERIMENTS else []),
        folder=tmp_path,
        environment={"HF_HUB_OFFLINE": "1"},
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    {**SLOW, **EXPERIMENTS}[name](done.stdout, tmp_path)


# Agents of other libraries (tests/ecosystem trains them) ------------------------------------------

LIBRARIES = ("ray", "sb3_contrib", "tensordict", "tianshou")
NEED_A_LIBRARY = sorted(
    path
    for path in (EXAMPLES / "agents").glob("*.py")
    if re.search(
        rf"^from ({'|'.join(LIBRARIES)})\b", path.read_text(encoding="utf-8"), re.MULTILINE
    )
)


@pytest.mark.parametrize("script", NEED_A_LIBRARY, ids=lambda path: path.stem)
def test_a_missing_library_is_answered_with_the_extra(script, monkeypatch, capsys):
    for name in LIBRARIES:
        monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed
    monkeypatch.delitem(sys.modules, "judging", raising=False)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.syspath_prepend(str(script.parent))
    with pytest.raises(ModuleNotFoundError) as caught:
        runpy.run_path(str(script))
    sys.modules.pop("judging", None)
    sys.excepthook(caught.type, caught.value, caught.tb)
    said = capsys.readouterr().err
    assert f"'{caught.value.name}' is not installed" in said
    assert "make test-ecosystem" in said and "Traceback" not in said
