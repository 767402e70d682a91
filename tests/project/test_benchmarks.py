"""Every benchmark runs, and writes the rows that it promises; a loss of speed is told."""

from __future__ import annotations

import importlib
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.warm_python import Done, run_python

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def benchmark_module(monkeypatch):
    """Import a module of benchmarks/ by its name, as its scripts do."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


# Comparing with recorded ratios -----------------------------------------------------------------


@pytest.fixture
def regressions(benchmark_module):
    return benchmark_module("regressions")


class Measured:
    """A measurement that gives one number after the other, and counts."""

    def __init__(self, *ratios: float) -> None:
        self.ratios, self.calls = ratios, 0

    def __call__(self) -> float:
        self.calls += 1
        return self.ratios[self.calls - 1]


def judged(regressions: Any, recorded: dict, **ratios: tuple) -> tuple[list, list[str], dict]:
    """The comparisons, the sentences of those that failed, and the measurements."""
    measures = {what: Measured(*found) for what, found in ratios.items()}
    compared = regressions.compare(recorded, measures)
    return compared, regressions.failures(compared, dict.fromkeys(ratios, "look here")), measures


@pytest.mark.parametrize("factor", [0.1, 0.6, 1.0, 1.33])
def test_a_ratio_down_to_three_quarters_of_the_recorded_one_passes_at_once(regressions, factor):
    compared, sentences, measures = judged(regressions, {"a": 2.0 * factor}, a=(2.0,))
    assert sentences == [] and measures["a"].calls == 1
    assert compared[0].relative == pytest.approx(1 / factor) and compared[0].verdict == "ok"


def test_a_ratio_recorded_40_percent_higher_fails_after_a_second_try_and_says_what_to_do(
    regressions,
):
    """2.0 now, 2.8 recorded: 1 − 2.0/2.8 = 28.6 % short."""
    compared, sentences, measures = judged(regressions, {"a": 2.8}, a=(1.9, 2.0))
    assert measures["a"].calls == 2 and compared[0].now == 2.0
    assert "twice" in sentences[0] and "1.9 and 2" in sentences[0]
    assert "a fell 29% short of the recorded 2.8, more than the 25% allowed" in sentences[0]
    assert "look here" in sentences[0] and "--record" in sentences[0]


def test_a_ratio_that_misses_once_and_not_again_passes_and_says_so(regressions):
    compared, sentences, _ = judged(regressions, {"a": 2.8}, a=(1.9, 2.7))
    assert sentences == [] and "1.9" in compared[0].verdict


def test_only_what_falls_short_is_measured_again(regressions):
    recorded = {"a": 1.0, "b": 1.0, "c": 1.0}
    _, sentences, measures = judged(regressions, recorded, a=(0.76,), b=(0.74, 0.7), c=(5.0,))
    assert [m.calls for m in measures.values()] == [1, 2, 1]
    assert len(sentences) == 1 and sentences[0].startswith("b fell 26% short")


def test_a_ratio_that_is_no_longer_measured_fails(regressions):
    compared, sentences, _ = judged(regressions, {"a": 1.0, "gone": 3.0}, a=(1.0,))
    assert [c.what for c in compared] == ["a", "gone"]
    assert len(sentences) == 1 and sentences[0].startswith(
        "gone is recorded but no longer measured"
    )


def test_a_ratio_that_is_not_recorded_fails_since_nothing_guards_it(regressions):
    _, sentences, measures = judged(regressions, {"a": 1.0}, a=(1.0,), new=(9.0,))
    assert len(sentences) == 1 and sentences[0].startswith("new is measured but not recorded")
    assert measures["new"].calls == 1


def test_what_was_written_is_read_again_to_three_digits(regressions, tmp_path):
    path = tmp_path / "recorded.json"
    regressions.write(path, {"a": 1.23456, "b": 26.54}, {"threads": 2}, "one")
    assert regressions.load(path) == {"one": {"a": 1.23, "b": 26.5}}
    written = json.loads(path.read_text(encoding="utf-8"))
    assert written["processors"]["one"]["setting"] == {"threads": 2}


def test_a_processors_record_is_its_own_and_others_stay(regressions, tmp_path):
    path = tmp_path / "recorded.json"
    regressions.write(path, {"a": 3.0, "b": 1.0}, {}, "one")
    regressions.write(path, {"a": 2.0, "b": 1.5}, {}, "other")
    regressions.write(path, {"a": 2.1, "b": 1.4}, {}, "other")
    records = regressions.load(path)
    assert records == {"one": {"a": 3.0, "b": 1.0}, "other": {"a": 2.1, "b": 1.4}}
    assert regressions.ratios_for(records, "other") == records["other"]


def test_a_processor_without_a_record_is_compared_with_the_lowest(regressions):
    records = {"one": {"a": 3.0, "b": 1.0}, "other": {"a": 2.0, "b": 1.5, "c": 7.0}}
    assert regressions.ratios_for(records, "third") == {"a": 2.0, "b": 1.0, "c": 7.0}
    assert regressions.ratios_for(records, "one") == {"a": 3.0, "b": 1.0, "c": 7.0}


@pytest.mark.parametrize(
    "text",
    [
        *(None, "", "[]", '{"ratios": {"a": 1}}', '{"processors": {}}', '{"processors": {"p": 1}}'),
        *(f'{{"processors": {{"p": {{"ratios": {{"a": {bad}}}}}}}}}' for bad in ("-1", '"x"')),
    ],
)
def test_a_file_without_ratios_is_refused_with_the_remedy(regressions, tmp_path, text):
    path = tmp_path / "recorded.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match="--record"):
        regressions.load(path)


def test_every_ratio_of_the_quick_benchmark_is_recorded(regressions, benchmark_module):
    records = regressions.load(BENCHMARKS / "recorded.json")
    measured = list(benchmark_module("bench_quick").RATIOS)
    assert len(records) >= 2, "ratios of one processor say little of another"
    assert all(set(recorded) <= set(measured) for recorded in records.values())
    assert list(regressions.ratios_for(records, "another")) == measured


# What is counted, not measured ------------------------------------------------------------------


def test_best_is_compared_with_best(benchmark_module):
    """Ours 4 s and 3 s, the peer's 12 s and 6 s: 12/4 = 3 in float32, 6/3 = 2 at their best."""
    bench = benchmark_module("bench_ppo")
    times = {
        (bench.OURS, "float32"): 4.0,
        (bench.OURS, "auto: bfloat16"): 3.0,
        (bench.STOCK, "float32"): 100.0,
        ("peer", "float32"): 12.0,
        ("peer", "bfloat16"): 6.0,
    }
    found = {row["what"]: row["ratio"] for row in bench.ratio_rows(times, 24)}
    assert found == {
        f"float32: TokenPPO over {bench.STOCK}": 25.0,
        "float32: TokenPPO over peer": 3.0,
        "best: TokenPPO over peer": 2.0,
    }


def test_attention_grows_linearly_from_its_share(benchmark_module):
    """Of d = 2, L = 3, V = 5: matrices 12·4·3 + 2·5 = 154; attention at P+T = 10 is 2·10·3 = 60."""
    growth = benchmark_module("bench_memory").attention_growth
    shape = benchmark_module("random_models").ModelShape(vocabulary=5, width=2, layers=3)
    assert growth(shape, 4, 6, 6) == 1.0
    assert growth(shape, 4, 6, 16) == pytest.approx(1 + 60 / 214)  # twice as much attention
    assert growth(shape, 4, 6, 26) == pytest.approx(1 + 2 * 60 / 214)


def test_a_decode_step_moves_weights_once_and_the_cache(benchmark_module):
    """A GPT-2 of width 8, 2 layers, one head, V = 11, with its output layer tied to its embedding.

    Per layer 12·8² weights of matrices, 9·8 + 4·8 of their biases and two layer norms
    (4·8) are 768 + 72 + 32 = 872 parameters; the last norm has 16. float32: 4 bytes each.
    """
    from transformers import GPT2Config, GPT2LMHeadModel

    bench = benchmark_module("bench_gpu")
    config = GPT2Config(vocab_size=11, n_positions=16, n_embd=8, n_layer=2, n_head=1)
    model = GPT2LMHeadModel(config)
    assert bench.weight_bytes(model, has_output_layer=False) == 4 * (2 * (768 + 72 + 32) + 16)
    assert bench.weight_bytes(model, True) - bench.weight_bytes(model, False) == 4 * 11 * 8
    # 3 sequences of 5 tokens: keys and values of 2 layers, 8 numbers each, 4 bytes per number
    assert bench.cache_bytes(model, 3, 5) == 3 * 5 * 2 * 2 * 8 * 4


def test_a_reward_model_is_built_on_the_trunk_of_a_given_language_model(benchmark_module, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    models = benchmark_module("random_models")
    shape = models.ModelShape(vocabulary=16, width=64, layers=1, positions=8)
    given = models.write_models(tmp_path, shape) / "lm"
    with models.model_folder(None, lm=given) as folder:
        actor = AutoModelForCausalLM.from_pretrained(folder / "lm")
        reward_model = AutoModelForSequenceClassification.from_pretrained(folder / "rm")
    assert reward_model.config.num_labels == 1
    trunk = reward_model.base_model.state_dict()
    for name, weight in actor.base_model.state_dict().items():
        assert torch.equal(trunk[name], weight), name


# The scripts ------------------------------------------------------------------------------------


def run(name: str, *arguments: str) -> Done:
    environment = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return run_python(BENCHMARKS / f"{name}.py", *arguments, environment=environment)


def rows_of(name: str, folder: Path, *arguments: str) -> list[dict]:
    """The rows of `name --quick`; all their ratios are positive."""
    path = folder / "found.json"
    done = run(name, "--quick", "--json", str(path), *arguments)
    assert done.returncode == 0, done.stderr
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    assert all(row["ratio"] > 0 and math.isfinite(row["ratio"]) for row in rows), rows
    return rows


def names(rows: list[dict], table: str) -> list[str]:
    """What stands in the tables whose title begins with `table`."""
    return [row["what"] for row in rows if row["table"].startswith(table)]


@pytest.mark.slow
@pytest.mark.parametrize("value_head", ["shared", "separate"])
def test_ppo_compares_whole_updates_and_divides_ours_into_stages(tmp_path, value_head):
    options = ("--value-head", value_head, "--micro-batch-tokens", "50")
    rows = rows_of("bench_ppo", tmp_path, *options)
    compared = [(r["what"], r["precision"]) for r in rows if r["table"].startswith("whole")]
    assert compared[0] == ("TokenPPO", "float32")
    assert compared[1] in [("TokenPPO", f"auto: {name}") for name in ("float32", "bfloat16")]
    assert compared[2:6] == [
        ("the sum of parts", "float32"),
        ("the sum of parts", "bfloat16"),
        ("the sum of parts, fused as ours", "float32"),
        ("the sum of parts, fused as ours", "bfloat16"),
    ]
    assert len(compared) == 7 and "stock PPO" in compared[6][0]
    whole = ("sampling", "scoring", "advantages and packing", "optimisation")
    for precision in ("float32", "auto"):
        stages = [r for r in rows if r["table"].startswith("where") and precision in r["table"]]
        assert {"sampling", "scoring", "optimisation"} <= {row["what"] for row in stages}
        assert sum(r["ratio"] for r in stages if r["what"] in whole) == pytest.approx(1.0)


@pytest.mark.slow
def test_ppo_takes_turns_with_a_peer_in_both_precisions(tmp_path):
    """The peer is whatever prints tokens per second: here 10,000, and 30,000 with --bf16."""
    script = tmp_path / "peer.py"
    script.write_text(
        "import json, sys\n"
        'print("log")\n'
        'print(json.dumps({"tokens_per_second": 3e4 if "--bf16" in sys.argv else 1e4}))\n'
    )
    peer = ("--peer", sys.executable, "--peer-script", str(script), "--without-stock")
    rows = rows_of("bench_ppo", tmp_path, *peer)
    whole = [row for row in rows if row["table"].startswith("whole updates")]
    speed = {(row["what"], row["precision"]): row["tokens/s"] for row in whole}
    assert speed["peer, peer", "float32"] == pytest.approx(1e4)
    assert speed["peer, peer", "bfloat16"] == pytest.approx(3e4)
    ratios = {row["what"]: row["ratio"] for row in rows if row["table"].startswith("how many")}
    ours = [found for (who, _), found in speed.items() if who == "TokenPPO"]
    assert ratios["float32: TokenPPO over peer, peer"] == pytest.approx(ours[0] / 1e4)
    assert ratios["best: TokenPPO over peer, peer"] == pytest.approx(max(ours) / 3e4)


@pytest.mark.slow
def test_rollout_compares_with_generate_for_either_kind_of_lengths(tmp_path):
    rows = rows_of("bench_rollout", tmp_path)
    assert [(r["what"], r["lengths"]) for r in rows] == [
        (what, lengths)
        for lengths in ("all T", "vary")
        for what in ("generate", "policy and env.step")
    ]
    fixed, varied = rows[0], rows[2]
    assert fixed["useful"] == 1.0 and fixed["mean length"] == 12
    assert varied["useful"] < 1.0 and varied["mean length"] < 12


@pytest.mark.slow
def test_env_stands_beside_cart_pole(tmp_path):
    rows = rows_of("bench_env", tmp_path)
    assert {(r["what"], r["envs"]) for r in rows if r["table"].startswith("env steps")} == {
        (what, envs)
        for what in ("CartPole-v1, SyncVectorEnv", "TokenVectorEnv", "TokenVecEnv (SB3)")
        for envs in (1, 16)
    }


@pytest.mark.slow
def test_wrappers_stand_beside_the_bare_environment(tmp_path):
    rows = rows_of("bench_wrappers", tmp_path)
    gymnasiums = {"RecordEpisodeStatistics", "TransformReward (nothing)"}
    for around, expected in {
        "Gymnasium's wrappers of the vector environment": gymnasiums,
        "Gymnasium's wrappers in SyncVectorEnv": gymnasiums,
        "our wrappers": {"HiddenStateObservation", "ActionMask, top-p 0.95", "LogProbShaping"},
    }.items():
        wrapped = [r for r in rows if around in r["table"]]
        assert wrapped[0]["what"] == "bare" and wrapped[0]["ratio"] == 1.0
        assert expected <= {row["what"] for row in wrapped}
        assert all(row["ratio"] > 0 for row in wrapped)


@pytest.mark.slow
def test_memory_measures_buffer_peak_and_time(tmp_path):
    picture = tmp_path / "time.png"
    rows = rows_of("bench_memory", tmp_path, "--plot", str(picture))
    assert names(rows, "rollout buffer") == ["T = 8"]
    assert len(names(rows, "peak memory")) == 2  # with micro-batches and without
    assert names(rows, "the limit") == ["models", "… and the rollout", "… and the update"]
    peaks = [row["peak, MiB"] for row in rows if row["table"].startswith("the limit")]
    assert peaks == sorted(peaks) and peaks[0] > 0
    # ours, plain transformers', SB3's and attention's share, at two T
    assert len(names(rows, "time per token")) == 8
    assert picture.stat().st_size > 0


@pytest.mark.slow
def test_options_share_the_weights_where_adapters_are_trained(tmp_path):
    rows = rows_of("bench_options", tmp_path, *"--batch 4 --prompt 4 --response 8".split())
    assert len(rows) == 7 and rows[0]["ratio"] == rows[0]["time"] == 1.0
    for row in rows:
        assert row["copies"] == pytest.approx(1.0 if "LoRA" in row["what"] else 2.0, abs=1e-3)
        assert (row["adapters, MiB"] > 0) == ("LoRA" in row["what"])
    assert rows[-1]["one copy, MiB"] == pytest.approx(rows[0]["one copy, MiB"] / 2)


@pytest.mark.slow
def test_ranks_are_measured_against_one_process(tmp_path):
    rows = {row["what"]: row for row in rows_of("bench_ranks", tmp_path)}
    for name in ("throughput", "per CPU-second"):
        assert rows[name]["ratio"] == pytest.approx(rows[name]["two"] / rows[name]["one"])
    assert rows["talking, of a step"]["ratio"] > 0
    assert rows["gradient, MiB"]["one"] == rows["gradient, MiB"]["two"]


@pytest.mark.slow
def test_gpu_runs_on_a_cpu(tmp_path):
    rows = rows_of("bench_gpu", tmp_path, "--device", "cpu")
    assert [(r["what"], r["batch"]) for r in rows if r["table"].startswith("time per")] == [
        (what, batch)
        for batch in (2, 4)
        for what in ("generate", "policy and env.step, eager", "policy and env.step, CUDA graph")
    ]
    assert len(names(rows, "decode step")) == 8  # trunk or whole, graph or not, two batches
    assert len(names(rows, "peak memory")) == 1
    assert "best: TokenPPO over the sum of parts" in names(rows, "how many")
    assert "optimisation" in names(rows, "where the time")


@pytest.mark.slow
def test_gpu_says_in_one_sentence_that_there_is_none():
    done = run("bench_gpu", "--device", "cpu")
    assert done.returncode == 1 and done.stdout == ""
    assert "--device cpu --quick" in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.slow
def test_quick_records_and_fails_where_more_was_recorded(tmp_path):
    path = tmp_path / "recorded.json"
    options = ("--quick", "--recorded", str(path))
    absent = run("bench_quick", *options)
    assert absent.returncode == 1 and "--record" in absent.stderr
    assert run("bench_quick", *options, "--record").returncode == 0
    found = json.loads(path.read_text(encoding="utf-8"))
    (record,) = found["processors"].values()
    # One is raised beyond any noise, the others are lowered beyond it.
    raised, *others = record["ratios"]
    record["ratios"] = {raised: 1000.0, **{name: 0.001 for name in others}}
    path.write_text(json.dumps(found), encoding="utf-8")
    done = run("bench_quick", *options)
    assert done.returncode == 1
    assert done.stderr.strip().startswith(f"{raised} fell ") and "bench_ppo.py" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_reward_models_are_compared_split_by_split(benchmark_module):
    """Differences −0.02, 0.02 and 0.03; times 4/2, 9/3 and 2/2."""
    bench = benchmark_module("bench_reward_model")
    results = [
        {
            "ours": {"accuracy": 0.6, "seconds": ours, "cpu_seconds": ours},
            "peer": {"accuracy": 0.6 - gap, "seconds": theirs, "cpu_seconds": 2 * theirs},
            "shorter wins": 0.5,
        }
        for gap, ours, theirs in ((-0.02, 2.0, 4.0), (0.02, 3.0, 9.0), (0.03, 2.0, 2.0))
    ]
    rows = {row["what"]: row for row in bench.rows_of(results)}
    assert rows["ours − the peer"]["mean"] == "0.010"
    assert rows["ours − the peer"]["splits"] == "-0.020 0.020 0.030"
    # deviation .02646, error .01528, t of two degrees of freedom 4.303: 0.010 ± 0.066
    assert rows["ours − the peer"]["95 % interval"] == "-0.056 to 0.076"
    assert rows["wall time"]["ratio"] == 2.0 and rows["CPU time"]["ratio"] == 4.0
    assert bench.accuracy(np.array([[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]])) == 0.5


@pytest.mark.slow
def test_a_reward_model_takes_turns_with_a_peer_on_the_same_pairs(tmp_path, reference_folder):
    """The peer is whatever prints rewards: here those of the truth, in a tenth of a second."""
    pairs = tmp_path / "pairs.jsonl"
    rows = [
        {"prompt": f"w{4 + i}", "chosen": f"w{10 + i} w9", "rejected": f"w{10 + i}"}
        for i in range(20)
    ]
    pairs.write_text("\n".join(map(json.dumps, rows)))
    script = tmp_path / "peer.py"
    script.write_text(
        "import json, sys\n"
        "pairs = json.load(open(sys.argv[2]))\n"
        "rewards = [[1, 0] for _ in pairs['held_out']]\n"
        'print(json.dumps({"seconds": 0.1, "cpu_seconds": 0.1, "rewards": rewards}))\n'
    )
    keep = tmp_path / "keep.json"
    options = (str(pairs), "--lm", reference_folder, "--max-tokens", "64", "--keep", str(keep))
    path = tmp_path / "found.json"
    peer = ("--peer", sys.executable, "--peer-script", str(script))
    done = run("bench_reward_model", "--quick", "--json", str(path), *options, *peer)
    assert done.returncode == 0, done.stderr
    found = {row["what"]: row for row in json.loads(path.read_text(encoding="utf-8"))["rows"]}
    assert found["the peer"]["splits"] == "1.000 1.000"
    assert found["the shorter wins"]["splits"] == "0.000 0.000"
    assert found["CPU time"]["ratio"] > 0
    assert [kept["held out"] for kept in json.loads(keep.read_text(encoding="utf-8"))] == [4, 4]
    done = run("bench_reward_model", *options, "--peer", "nowhere", "--peer-script", str(script))
    assert done.returncode == 2 and "make bench-trl" in done.stderr


def test_gold_is_lost_where_the_benchmark_of_hacking_says(benchmark_module):
    """Means of three. From 0 up to 0.8: lost from 0.6 on, ¼ of the gain; without a gain, 0.1."""
    bench = benchmark_module("bench_hacking")
    np.testing.assert_allclose(bench.smoothed([0.0, 3.0, 6.0, 0.0]), [1.5, 3.0, 3.0, 3.0])
    rising = [0.2, 0.8, 0.8, 0.8, 0.7, 0.6, 0.5]  # means 0.5, 0.6, 0.8, 0.767, 0.7, 0.6, 0.55
    assert bench.loss_at(rising, 0.0) == 5
    assert bench.loss_at([0.0, -0.05, -0.09], 0.0) is None
    assert bench.loss_at([0.0, -0.1, -0.2, -0.3], 0.0) == 1  # means −0.05, −0.1, −0.2, −0.25


def run_of_hacking(gold: list[float], alarm: int | None, **changes: Any) -> dict[str, Any]:
    """A run of `bench_hacking` with these gold rewards, and an alarm in one of the rollouts."""
    rollouts = [
        {"tokens": 100 * n, "rlhf/gold_reward": g, "rlhf/kl": float(n), "rlhf/score": float(n)}
        for n, g in enumerate(gold)
    ]
    for rollout in rollouts[len(gold) if alarm is None else alarm :]:
        rollout["rlhf/hacking_alarm"] = 1.0
    alarms = [] if alarm is None else [{"rule": "score", "tokens": 100 * alarm, "text": ""}]
    ends = {"score": 1.0, "kl": 5.0, "gold_reward": gold[-1]}
    plain = {"model": "weak", "remedy": "none", "seed": 0, "accuracy": [0.5], "alarms": alarms}
    start = {**ends, "gold_reward": gold[0]}
    return {**plain, "rollouts": rollouts, "start": start, "end": ends, **changes}


def test_alarms_are_in_time_late_or_missed_and_a_stop_keeps_the_gold_of_the_next_rollout(
    benchmark_module,
):
    bench = benchmark_module("bench_hacking")
    falling = [0.0, 0.0, 0.0, -0.6, -0.6, -0.9]  # means 0, 0, −0.2, −0.4, −0.7, −0.75: lost at 2
    found = {
        alarm: bench.alarm_rows([run_of_hacking(falling, alarm)])[0]["verdict"]
        for alarm in (1, 2, 3, None)
    }
    assert found == {1: "in time", 2: "in time", 3: "late", None: "missed"}
    assert bench.alarm_rows([run_of_hacking([0.0] * 5, 2)])[0]["verdict"] == "alarm, nothing lost"
    assert bench.stopped_gold(run_of_hacking(falling, 1)) == pytest.approx(-0.4)  # of rollout 3
    assert bench.stopped_gold(run_of_hacking(falling, None)) == -0.9
    runs = [run_of_hacking(falling, 1, seed=seed) for seed in (0, 1)]
    runs += [run_of_hacking(falling[:3], None, seed=s, remedy="score clipped") for s in (0, 1)]
    rows = {row["what"]: row for row in bench.remedy_rows(runs)}
    assert rows["weak: none"]["final gold"] == "-0.90 ± 0.00"
    assert rows["weak: score clipped"]["final − none"] == "+0.90 ± 0.00"
    assert rows[f"weak: {bench.STOPPED}"]["final − none"] == "+0.50 ± 0.00"


@pytest.mark.slow
def test_hacking_is_measured_once_and_drawn(tmp_path):
    """Two tiny runs with reward models of 150 pairs; a second call makes none again."""
    results, found = tmp_path / "hacking.jsonl", tmp_path / "found.json"
    picture = tmp_path / "curve.png"
    options = (str(results), "--quick", "--models", "weak", "--json", str(found))
    some = ("--remedies", "none", "length penalty", "--figure", str(picture))
    done = run("bench_hacking", *options, *some)
    assert done.returncode == 0, done.stderr
    rows = json.loads(found.read_text(encoding="utf-8"))["rows"]
    assert [row["what"] for row in rows][:2] == ["weak", "weak: none"]
    assert picture.stat().st_size > 0
    made = results.read_text()
    assert len(made.splitlines()) == 2
    again = run("bench_hacking", *options, *some)
    assert again.returncode == 0 and results.read_text() == made
    first = json.loads(made.splitlines()[0])["rollouts"][0]
    assert {"rlhf/gold_reward", "rlhf/features/tokens", "rlhf/hacking_alarm"} <= set(first)


# What PPO makes of reward models ------------------------------------------------------------------


def test_the_models_are_of_every_data_and_size_before_a_second(benchmark_module):
    bench = benchmark_module("bench_labels")
    models = bench.models(50)
    kinds = [(m["pairs"], m["layers"], m["sharpness"]) for m in models]
    assert len(set(kinds)) == 48 and len(set(kinds[:48])) == 48 and kinds[48] == kinds[0]
    assert [m["model"] for m in models] == list(range(50))


def test_correlations_are_of_ranks_and_groups_of_accuracy(benchmark_module):
    bench = benchmark_module("bench_labels")
    result = {"loss": 0.5, "pairs": 50, "layers": 1, "kl": 1.0, "untrained": {"gold": -0.1}}
    results = [
        {**result, "accuracy": 0.5 + i / 20, "gold": i**3, "gold_objective": -i, "objective": i % 2}
        for i in range(6)
    ]
    rows = {row["what"]: row for row in bench.rows_of(results)}
    assert rows["accuracy and gold reward"]["Spearman"] == "+1.00"
    assert rows["accuracy and J by gold"]["Spearman"] == "-1.00"
    assert rows["the best 2"]["accuracy"] == "0.700 to 0.750"
    assert rows["the worst 2"]["gold reward"] == "+0.500"


@pytest.mark.slow
def test_labels_makes_models_once_and_goes_on(tmp_path):
    results = tmp_path / "results.jsonl"
    done = run("bench_labels", str(results), "--quick")
    assert done.returncode == 0 and "rank correlation over the models" in done.stdout, done.stderr
    lines = results.read_text().splitlines()
    results.write_text("\n".join(lines[:2]) + "\n")
    figure = tmp_path / "models.png"
    again = run("bench_labels", str(results), "--quick", "--figure", str(figure))
    assert "3 of 3" in again.stdout and "1 of 3" not in again.stdout
    assert results.read_text().splitlines()[:2] == lines[:2] and figure.stat().st_size > 10_000
    other = run("bench_labels", str(results), "--quick", "--kl-coef", "1")
    assert other.returncode and "other settings" in other.stderr
