"""`tokenrlhf plan`: its numbers by closed forms, its peaks by measurement, its refusals."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest
from transformers import GPT2Config, LlamaConfig

from agents.cli import main
from agents.plan.config import PlanConfig
from agents.plan.memory import GIB, Planned

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
SMALL = {"max_prompt_tokens": 8, "max_new_tokens": 8, "n_envs": 4, "n_steps": 8, "batch_size": 32}


@pytest.fixture
def llama(tmp_path):
    """The folder of a Llama's config, without weights."""
    sizes = {"hidden_size": 32, "intermediate_size": 80, "num_hidden_layers": 3, "vocab_size": 100}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    LlamaConfig(**sizes, **heads, max_position_embeddings=64).save_pretrained(tmp_path / "llama")
    return tmp_path / "llama"


def planned(folder, **settings):
    return Planned(PlanConfig(model=str(folder), gpu_memory=1.0, **{**SMALL, **settings}))


def test_parameters_caches_and_states_are_those_of_the_closed_forms(llama):
    # h = 32, V = 100, 3 layers: q and o h·h, k and v h·16, three of h·80, two norms; one at the end
    layer = 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 80 + 2 * 32
    trunk = 100 * 32 + 3 * layer + 32
    plan = planned(llama, value_head="separate")
    assert plan.parameters == trunk + 32 * 100
    assert plan.resident["actor"] == 4 * plan.parameters
    assert plan.resident["critic"] == 4 * trunk  # without the output layer
    assert plan.resident["reward model"] == 4 * (trunk + 32)
    assert plan.resident["optimiser state"] == 2 * 4 * (plan.parameters + trunk)
    # 4 slots of 17 columns on a CPU, 64 on a GPU; 2 heads of 8 numbers, twice, in 3 layers
    assert plan.resident["cache of keys and values"] == 4 * 64 * 3 * 2 * 2 * 8 * 4
    on_cpu = planned(llama, device="cpu", scoring="step").resident
    assert on_cpu["cache of keys and values"] == 2 * 4 * 17 * 3 * 2 * 2 * 8 * 4


def test_adapters_share_one_copy_and_have_gradients_alone(llama):
    plan = planned(llama, lora_rank=2, dtype="bfloat16", optimizer="sgd")
    adapted = 4 * 3 * (2 * (32 + 32) + 2 * (32 + 16))  # q_proj and v_proj, in float32
    assert "actor" not in plan.resident and plan.resident["optimiser state"] == 0
    assert plan.resident["adapters"] == plan.gradients == adapted
    assert plan.resident["reference"] == 2 * plan.parameters


def test_what_is_sharded_is_divided_and_the_rest_is_replicated(llama):
    one, many = (planned(llama, gpus=g, n_envs=8, sharding="fully_shard").resident for g in (1, 4))
    assert many["actor"] == one["actor"], "a whole copy samples"
    assert many["sharded weights"] == one["actor"] // 4
    assert many["optimiser state"] == one["optimiser state"] // 4
    assert many["reference"] == one["reference"] and "gathered layers" in many
    assert many["cache of keys and values"] * 4 == one["cache of keys and values"]
    replicated = planned(llama, gpus=4, n_envs=8).resident
    assert replicated["actor"] == replicated["gradient buckets"] == one["actor"]


def test_the_micro_batch_is_the_largest_that_fits(llama, tmp_path, capsys):
    sizes = {**SMALL, "n_envs": 64, "batch_size": 512, "eval_responses": 0, "device": "cpu"}
    whole = planned(llama, **sizes)
    limit = (whole.memory(1).peak + whole.memory(64).peak) / 2 / GIB
    words = ["plan", "--model", str(llama), "--reserve", "0", "--json", str(tmp_path / "x.json")]
    for name, value in sizes.items():
        words += [f"--{name.replace('_', '-')}", str(value)]
    assert main([*words, "--gpu-memory", str(limit)]) == 0
    found = json.loads((tmp_path / "x.json").read_text())
    count = found["sequences_of_a_micro_batch"]
    assert found["micro_batch_tokens"] == 15 * count and 1 < count < 64
    assert found["peak"] == whole.memory(count).peak <= limit * GIB < whole.memory(count + 5).peak
    assert f"--micro-batch-tokens {15 * count}" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stopped:
        main([*words, "--gpu-memory", str(whole.memory(1).peak * 0.9 / GIB)])
    assert stopped.value.code == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "does not fit" in said and "--lora-rank 16" in said
    found = json.loads((tmp_path / "x.json").read_text())
    assert not found["fits"] and any(change["fits"] for change in found["changes"])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"model_type": "llama", "hidden_size": 32, "vocab_size": 9}, "'num_hidden_layers'"),
        ({"hidden_size": 32}, "no 'model_type'"),
        ({"model_type": "nothing"}, "knows no model_type='nothing'"),
        ({"model_type": "gpt2", "vocab_size": -1}, "vocab_size=-1"),
        ([1], "object"),
    ],
)
def test_configs_that_say_too_little_are_refused(tmp_path, capsys, content, said):
    (tmp_path / "config.json").write_text(json.dumps(content))
    assert main(["plan", "--model", str(tmp_path), "--gpu-memory", "1"]) == 2
    assert said in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"gpus": 8, "n_envs": 4}, "environments of its own"),
        ({"gpus": 0}, "gpus=0"),
        ({"gpu_memory": -1.0}, "gpu_memory=-1.0"),
        ({"dtype": "bfloat16"}, "frozen weights"),
        ({"lora_rank": 2, "sharding": "fully_shard"}, "reference's too"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        PlanConfig(**{"model": "exact", "gpu_memory": 1.0, **settings})


def test_a_bundled_task_is_planned_with_its_own_lengths(capsys):
    assert (PlanConfig("reviews", 1.0).prompt_tokens, PlanConfig("x", 1.0).tokens) == (16, 256)
    assert main(["plan", "--model", "exact", "--gpu-memory", "1", "--gpus", "2"]) == 0
    assert "fits" in capsys.readouterr().out


def test_a_model_with_too_few_positions_is_refused(tmp_path):
    GPT2Config(n_positions=8, n_embd=32, n_layer=2, n_head=2).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="exceeds the 8 positions"):
        planned(tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peaks are read from /proc")
@pytest.mark.parametrize("option", [{}, {"lora_rank": 8, "gradient_checkpointing": True}])
def test_predicted_peaks_are_within_15_percent_of_measured_ones(tmp_path, monkeypatch, option):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    bench = importlib.import_module("bench_plan")
    shape = bench.ModelShape(vocabulary=2048, width=256, layers=4)
    bench.write_models(tmp_path, shape)
    sizes = {"max_prompt_tokens": 16, "max_new_tokens": 64, "n_envs": 16, "n_steps": 64}
    config = bench.settings(tmp_path, {**sizes, "batch_size": 1024, **option})
    measured = bench.measure(tmp_path, config, bench.GIVES_BACK)["training"]
    assert bench.planned_bytes(config)["training"] == pytest.approx(measured, rel=0.15)
