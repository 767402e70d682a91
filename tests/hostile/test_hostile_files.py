"""Files that were cut, flipped, edited or replaced: read as they are, or refused by their name.

A reader may accept a changed file only where it is still one of its kind: then what it gives is
what the file says, nothing is filled in, and every number that follows is finite.
"""

from __future__ import annotations

import gzip
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.hostile import sample
from support.models import save_classifier, save_language_model, word_tokenizer
from support.mutations import Kind, Mutation, check, failures, mutations, require

from agents.compare.config import CompareConfig
from agents.compare.jobs import Job, read_result
from agents.config import SETTINGS_OF_OLDER_RUNS, TrainConfig
from agents.policy.policy import LMActorCriticPolicy
from agents.runs.curves import read_metrics
from agents.runs.folder import RunFolder
from tokenenv.data import read_examples, read_pairs, read_prompt_rows, read_prompts
from tokenenv.env import TokenEnv


def read_run(root: Path) -> None:
    """A run's configuration: what it says, and all of it."""
    config = RunFolder(root).read_config()
    said = json.loads((root / "config.json").read_text(encoding="utf-8"))
    said = {**SETTINGS_OF_OLDER_RUNS, **said}  # a run may be older than these settings
    for name in ("config", "resume", "trust_code"):  # of the call that made it
        del said[name]
    require(json.loads(json.dumps(config.as_json())) == said, "settings were filled in or changed")


def read_policy(root: Path) -> None:
    """A policy, and what it answers."""
    policy = LMActorCriticPolicy.from_pretrained(root)
    observation = np.full((1, policy.observation_space.shape[0]), -1)
    observation[0, 2:5] = [1, 4, 5]
    _, values, log_probs = policy.forward(policy.obs_to_tensor(observation)[0])
    require(bool(values.isfinite().all() and log_probs.isfinite().all()), "it is not finite")


def read_models(root: Path) -> None:
    """An environment of a reference and a reward model, for an episode."""
    env = TokenEnv(
        reference=str(root / "reference"),
        reward_model=str(root / "reward"),
        prompts=["w4 w5", "w7"],
        max_prompt_tokens=6,
        max_new_tokens=3,
        kl_coef=0.1,
        device="cpu",
    )
    env.reset(seed=0)
    for action in (5, 6, 7):
        _, reward, ended, _, info = env.step(action)
        require(math.isfinite(reward) and math.isfinite(info["ref_logprob"]), "it is not finite")
        require(info["ref_logprob"] <= 1e-6, "a probability above 1")
        if ended:
            break


def read_metrics_of(root: Path) -> None:
    """Metrics: of what curves are drawn from, numbers alone."""
    for row in read_metrics(root / "metrics.jsonl"):
        drawn = [value for name, value in row.items() if name.startswith(("rlhf/", "eval/"))]
        require(all(isinstance(value, int | float) for value in drawn), "no number")
        require(not drawn or "time/total_timesteps" in row, "it is not known when")


def read_kept(root: Path) -> None:
    """A kept run of a comparison."""
    result = read_result(JOB, root)
    require(result is None or math.isfinite(result["value"]), "no number")


JOB = Job.run(CompareConfig(), "CartPole-v1", "classic control", "ppo", 0)


def write_tables(folder: Path, pairs: list[dict[str, Any]]) -> None:
    """The same pairs in the other formats, and other rows."""
    parquet, pyarrow = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
    whole = (folder / "pairs.jsonl").read_bytes()
    (folder / "pairs.jsonl.gz").write_bytes(gzip.compress(whole))
    (folder / "pairs.json").write_text(json.dumps(pairs))
    split = {"columns": list(pairs[0]), "data": [list(pair.values()) for pair in pairs]}
    (folder / "split.json").write_text(json.dumps(split))
    table = [list(pairs[0]), *(list(pair.values()) for pair in pairs)]
    (folder / "pairs.csv").write_text("\n".join(",".join(map(str, row)) for row in table))
    parquet.write_table(pyarrow.Table.from_pylist(pairs), folder / "pairs.parquet")
    rated = {"prompt": "p", "responses": ["a", "b", "c"], "ratings": [1, 2, 3.5]}
    (folder / "rated.jsonl").write_text("\n".join([json.dumps(rated)] * 3))
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}]
    (folder / "chats.jsonl").write_text("\n".join([json.dumps({"messages": turns})] * 3))
    (folder / "prompts.tsv").write_text("prompt\tanswer\nWhat?\t4\n" + "Why?\t5\n" * 8)


@pytest.fixture(scope="module")
def kinds(tmp_path_factory) -> list[Kind]:
    """All kinds of files that are read."""
    from gymnasium import spaces

    root = tmp_path_factory.mktemp("whole")
    run, lines, kept = root / "run", root / "lines", root / "kept"
    for folder in (run, lines, kept / "runs"):
        folder.mkdir(parents=True)
    config = TrainConfig(out=Path("runs/first"), task="exact", device="cpu").as_json()
    (run / "config.json").write_text(json.dumps(config))
    models = root / "models"
    save_language_model(models / "reference")
    save_classifier(models / "reward", reward_mean=0.3, reward_std=2.0)
    policy = LMActorCriticPolicy(
        spaces.Box(-1, 39, (9,), np.int64),
        spaces.Discrete(40),
        lambda _: 1e-3,
        actor=str(models / "reference"),
    )
    policy.save_pretrained(root / "policy", word_tokenizer())
    prompts = [{"prompt": f"w{i} w5", "split": "train" if i < 9 else "eval"} for i in range(4, 12)]
    (lines / "prompts.jsonl").write_text("\n".join(map(json.dumps, prompts)))
    pairs = [{"prompt": "p", "chosen": f" c{i}", "rejected": " r", "margin": 0.5} for i in range(6)]
    (lines / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    write_tables(lines, pairs)
    rows = [{"time/total_timesteps": i, "rlhf/score": 0.1, "rlhf/kl": 0.2} for i in range(4)]
    (lines / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    result = {
        **{"measure": "plain return", "value": 1.0, "curve": [[0, 1.0], [10, 2.0]], "steps": 10},
        **{"train_seconds": 1.0, "steps_per_second": 10.0, "explained_variance": None},
        **{"train_cpu_seconds": 1.0, "curve_cpu_seconds": [0.0, 1.0]},
        **{"standard_deviation": 0.0, "episodes": 3},
    }
    kept_file = JOB.path(kept)
    kept_file.write_text(json.dumps({"settings": JOB.settings, "result": result}))
    return [
        Kind(run, "config.json", read_run, (40, 160)),
        Kind(root / "policy", "policy.json", read_policy, (30, 90)),
        Kind(root / "policy", "config.json", read_policy, (20, 70)),
        Kind(root / "policy", "critic.pt", read_policy, (50, 0)),
        Kind(root / "policy", "model.safetensors", read_policy, (50, 0)),
        Kind(models, "reference/config.json", read_models, (20, 70)),
        Kind(models, "reference/tokenizer.json", read_models, (20, 60)),
        Kind(models, "reference/tokenizer_config.json", read_models, (15, 35)),
        Kind(models, "reference/generation_config.json", read_models, (15, 25)),
        Kind(models, "reference/model.safetensors", read_models, (40, 0)),
        Kind(models, "reward/config.json", read_models, (20, 70)),
        Kind(models, "reward/model.safetensors", read_models, (30, 0)),
        Kind(lines, "prompts.jsonl", lambda r: read_prompts(r / "prompts.jsonl", "train"), (90, 0)),
        Kind(lines, "pairs.jsonl", lambda r: read_pairs(r / "pairs.jsonl"), (90, 0)),
        Kind(lines, "pairs.jsonl.gz", lambda r: read_pairs(r / "pairs.jsonl.gz"), (40, 0)),
        Kind(lines, "pairs.json", lambda r: read_pairs(r / "pairs.json"), (60, 60)),
        Kind(lines, "split.json", lambda r: read_pairs(r / "split.json"), (20, 40)),
        Kind(lines, "pairs.csv", lambda r: read_pairs(r / "pairs.csv"), (60, 0)),
        Kind(lines, "pairs.parquet", lambda r: read_pairs(r / "pairs.parquet"), (80, 0)),
        Kind(lines, "rated.jsonl", lambda r: read_pairs(r / "rated.jsonl"), (60, 0)),
        Kind(lines, "chats.jsonl", lambda r: list(read_examples(r / "chats.jsonl")), (60, 0)),
        Kind(lines, "prompts.tsv", lambda r: read_prompt_rows(r / "prompts.tsv", "train"), (60, 0)),
        Kind(lines, "metrics.jsonl", read_metrics_of, (60, 0)),
        Kind(kept, str(kept_file.relative_to(kept)), read_kept, (30, 70)),
    ]


def test_there_are_as_many_changed_files_as_promised_and_some_are_refused(kinds, tmp_path):
    assert sum(len(mutations(kind)) for kind in kinds) >= 2000
    for kind in kinds:  # the whole file is read, so that what is refused is refused for its change
        assert check(kind, lambda file: None, tmp_path / "copy") is None
        kind.read(tmp_path / "copy")


def test_changed_files_are_read_as_they_are_or_refused_by_name(kinds, tmp_path):
    cases = [(kind, case) for kind in kinds for case in sample(mutations(kind), 4)]
    found = failures(cases, tmp_path / "copy")
    assert not found, "\n".join(found)


def read_all(cases: list[tuple[Kind, Mutation]], folder: Path) -> None:
    """Read all of them, and fail with those whose answer is wrong."""
    found = failures(cases, folder)
    assert not found, f"{len(found)} of {len(cases)}:\n" + "\n".join(found)


@pytest.mark.slow
def test_half_of_the_changed_files_are_read_as_they_are_or_refused_by_name(kinds, tmp_path):
    """Every second change of each kind of file; `make test-long` makes all."""
    read_all([(kind, case) for kind in kinds for case in mutations(kind)[::2]], tmp_path / "copy")


@pytest.mark.long
def test_all_changed_files_are_read_as_they_are_or_refused_by_name(kinds, tmp_path):
    read_all([(kind, case) for kind in kinds for case in mutations(kind)], tmp_path / "copy")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{}", "missing settings, which are not guessed: 'out', 'overwrite', 'seed'"),
        ("[1]", "the configuration of a run is a JSON object"),
        ('{"a": ' * 50_000, "nested too deeply"),
        ('{"task": "\\ud800"}', "half of a surrogate pair"),
        ('{"seed": 1, "seed": 2}', "the key 'seed' stands twice"),
        ('{"seed": 100000000000000000000}', None),
        ('{"kl_coef": NaN}', "NaN is no number in JSON"),
        ('{"kl_coef": 1e999}', "beyond what a float holds"),
        ('{"seed": true}', "seed=True must be a whole number"),
        ('{"gamma": "1"}', "gamma='1' must be a number"),
        ('{"kl_estimator": "k9"}', "kl_estimator='k9' must be one of 'k1', 'k2'"),
        ('{"overwrite": 0}', "overwrite=0 must be true or false"),
        ('\n\n{"seed": }', "not valid JSON (Expecting value: line 3, column 10)"),
    ],
)
def test_a_broken_configuration_is_refused_by_file_and_reason(text, reason, tmp_path):
    if reason is None:  # whole, but for a number out of its range
        whole = TrainConfig(task="exact").as_json()
        text, reason = json.dumps({**whole, "seed": 10**20}), "at most 4,294,967,295"
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError) as refused:
        RunFolder(tmp_path).read_config()
    assert reason in str(refused.value) and str(tmp_path / "config.json") in str(refused.value)


def test_a_config_of_endless_layers_is_refused_before_they_are_built(kinds, tmp_path):
    models = next(kind.root for kind in kinds if kind.root.name == "models")
    for role in ("reference", "reward"):
        folder = tmp_path / role
        shutil.copytree(models, folder)
        file = folder / role / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "num_hidden_layers": 10**20}))
        with pytest.raises(ValueError, match=r"num_hidden_layers=1000+, more than the 10,000"):
            read_models(folder)


@pytest.mark.parametrize("wrong", [1.5, True, -1, 10**20, [2, 1.5], "2", {"a": 1}])
def test_an_end_of_the_response_that_is_no_token_id_is_refused(wrong, kinds, tmp_path):
    """A float was cut to a whole number, and another token ended responses."""
    models = next(kind.root for kind in kinds if kind.root.name == "models")
    shutil.copytree(models, tmp_path / "models")
    file = tmp_path / "models" / "reference" / "generation_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "eos_token_id": wrong}))
    with pytest.raises(ValueError, match=r"reference='.*can't be loaded"):
        read_models(tmp_path / "models")


def test_a_config_that_is_not_of_the_saved_model_is_refused(kinds, tmp_path):
    """Half as many heads fit the same weights, and compute something else."""
    policy = next(kind.root for kind in kinds if kind.root.name == "policy")
    shutil.copytree(policy, tmp_path / "policy")
    file = tmp_path / "policy" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "rms_norm_eps": 0.1}))
    with pytest.raises(ValueError, match=r"rms_norm_eps=0\.1, the model that was saved had 1e-06"):
        LMActorCriticPolicy.from_pretrained(tmp_path / "policy")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "line 2: not valid JSON"),
        ("[]", "line 2: needs a JSON object"),
        ('{"rlhf/kl": "x", "time/total_timesteps": 1}', "line 2: 'rlhf/kl' is 'x'"),
        ('{"rlhf/kl": 1}', "line 2: 'time/total_timesteps' is missing"),
        ("[" * 100_000, "line 2: the JSON is nested too deeply"),
    ],
)
def test_metrics_name_file_and_line(line, reason, tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"rlhf/kl": NaN, "time/total_timesteps": 1}\n' + line)
    with pytest.raises(ValueError) as refused:
        read_metrics(file)
    assert f"{file}, {reason}" in str(refused.value)
    file.write_text('{"rlhf/kl": NaN, "time/total_timesteps": 1}\n\n')
    assert math.isnan(read_metrics(file)[0]["rlhf/kl"])
