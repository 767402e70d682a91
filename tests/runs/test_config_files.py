"""Settings from a file, options over them, and names of other tools' options."""

from __future__ import annotations

import dataclasses
import json

import pytest

from agents.cli import _CONFIGS, _parse
from agents.command_line.option_hints import _OTHER_NAMES, refuse_other_names
from agents.config import TrainConfig
from agents.settings import run_name
from agents.zoo.settings_files import read_settings


def test_a_file_gives_the_settings_and_options_go_before_it(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(
        "# numbers as people write them\n"
        "learning_rate: 1e-4\nkl-coef: 0.1\nlora_rank: 8\nlora-target-modules: [q_proj, v_proj]\n"
        "whiten_advantages: false\nclip_range_vf: null\nout: runs/mine\ntask: exact\n"
    )
    settings = read_settings(file)
    assert settings.learning_rate == 1e-4 and settings.kl_coef == 0.1
    assert settings.lora_target_modules == ("q_proj", "v_proj") and settings.lora_rank == 8
    assert settings.clip_range_vf is None and not settings.whiten_advantages
    assert str(settings.out) == "runs/mine" and settings.n_envs == TrainConfig().n_envs
    config = _parse(["train", "--config", str(file), "--kl-coef", "0.2", "--n-envs", "4"])
    assert (config.kl_coef, config.n_envs, config.learning_rate) == (0.2, 4, 1e-4)
    assert config.task == "exact" and "config" not in config.as_json()
    assert _parse(["train", f"--config={file}"]).learning_rate == 1e-4
    assert _parse(["train"]).learning_rate == TrainConfig().learning_rate


def test_the_config_of_a_run_makes_the_same_run_in_another_folder(tmp_path):
    run = TrainConfig(task="exact", seed=3, out=tmp_path / "run", overwrite=True, n_envs=7)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(run.as_json()))
    assert read_settings(file) == dataclasses.replace(run, out=None, overwrite=False)
    file.write_text(json.dumps({**run.as_json(), "reward_model": "json:dumps"}))
    with pytest.raises(ValueError, match=r"reward_model='json:dumps', which names code"):
        read_settings(file)
    file.write_text(json.dumps({**run.as_json(), "tracker": "some_module"}))
    with pytest.raises(ValueError, match="tracker='some_module', which names code"):
        read_settings(file)
    file.write_text(json.dumps({**run.as_json(), "tracker": "wandb"}))
    assert read_settings(file).tracker == "wandb"
    file.write_text(json.dumps({**run.as_json(), "reward_model": "json:dumps"}))
    file.rename(tmp_path / "mine.json")
    assert read_settings(tmp_path / "mine.json").reward_model == "json:dumps"


def test_the_config_of_a_run_from_before_these_settings_is_read():
    content = TrainConfig().as_json()
    for name in ("seeds", "tracker", "tracker_project", "reward_weights", "optimizer"):
        del content[name]
    for name in ("lora_rank", "lora_alpha", "lora_target_modules", "gradient_checkpointing"):
        del content[name]
    for name in ("prompt_truncation", "combine", "uncertainty_coef", "shift_every", "shift_pairs"):
        del content[name]
    for name in [name for name in content if name.startswith("refresh_")]:
        del content[name]
    assert TrainConfig.from_json(content) == TrainConfig()


def test_combinations_and_shifts_are_read_back_and_reach_the_environment():
    config = TrainConfig(
        reward_model=("a", "b"),
        combine="uncertainty",
        uncertainty_coef=0.5,
        shift_every=4,
        shift_pairs="pairs.jsonl",
    )
    assert TrainConfig.from_json(json.loads(json.dumps(config.as_json()))) == config
    settings = config.environment()
    assert (settings["reward_combine"], settings["uncertainty_coef"]) == ("uncertainty", 0.5)
    with pytest.raises(ValueError, match=r"reward_combine='min' .*'os:sep' is a function"):
        TrainConfig(reward_model=("a", "os:sep"), combine="min")
    # The folder of an ensemble may be gone when its run is read.
    assert TrainConfig(reward_model="gone", combine="min").combine == "min"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lerning_rate: 3", r"no setting 'lerning_rate'; did you mean learning_rate or .*\?"),
        ("xyzzy: 3", r"no setting 'xyzzy'\.$"),
        ("config: other.yaml", "no setting 'config'"),
        ("kl_coef: 1\nkl_coef: 2", "line 2: not valid YAML .*'kl_coef' stands there twice"),
        ("kl_coef: [1", "not valid YAML"),
        ("kl_coef: 1\nkl-coef: 2", "the setting 'kl_coef' stands there twice"),
        ("kl_coef: !!python/object:os.system 1", "not valid YAML"),
        ("- 1\n- 2", "holds no settings: .* list"),
        ("", "holds no settings: .* NoneType"),
        ("n_envs: many", "n_envs='many' must be a whole number"),
        ("n_envs: 0", "n_envs=0"),
        ("cut: maybe", "cut='maybe' must be one of"),
        ("lora_target_modules: [1]", "lora_target_modules"),
        ("{" * 1500, "nested too deeply|not valid YAML"),
    ],
)
def test_files_that_hold_no_settings_are_refused_by_name(tmp_path, text, message):
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=message) as refused:
        read_settings(file)
    assert "mine.yaml" in str(refused.value)
    with pytest.raises(ValueError, match="is no file"):
        read_settings(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize(
    ("option", "here"),
    [
        ("--lr", "--learning-rate"),
        ("--beta=0.1", "--kl-coef"),
        ("--max-prompt-length", "--max-prompt-tokens"),
        ("--max_prompt_length", "--max-prompt-tokens"),
        ("--num-envs", "--n-envs"),
        ("--model", "--actor"),
        ("--report-to", "--tracker"),
    ],
)
def test_an_option_by_another_tools_name_gets_the_name_here(option, here):
    with pytest.raises(ValueError, match=f"it is {here} here"):
        refuse_other_names("train", TrainConfig, ["--n-steps", "4", option, "3"])


def test_hints_name_options_that_exist_and_hide_none():
    everywhere = {field.name for kind in _CONFIGS.values() for field in dataclasses.fields(kind)}
    assert set(_OTHER_NAMES) <= everywhere
    for command, kind in _CONFIGS.items():
        for field in dataclasses.fields(kind):
            refuse_other_names(command, kind, [f"--{field.name.replace('_', '-')}", "1"])
    # Values are no options, nor is what stands behind `--`.
    refuse_other_names("train", TrainConfig, ["--task", "lr", "--", "--lr"])


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({}, "reviews"),
        ({"task": "exact"}, "exact"),
        ({"task": "my.module:TASK"}, "task"),
        ({"reference": "/models/TinyStories-656K"}, "tinystories-656k"),
        ({"reference": "org/model", "prompts": "data/begin nings.jsonl.gz"}, "model-begin-nings"),
        ({"actor": "a/sft", "reference": "a/base"}, "sft"),
        ({"reward_model": "my.module:no_repeats"}, "reviews-no_repeats"),
        ({"reward_model": "rules/short.py:fn", "task": "exact"}, "exact-fn"),
        ({"reference": "reviews", "reward_model": "reviews"}, "reviews"),
        ({"reference": "x" * 200}, "x" * 60),
    ],
)
def test_runs_are_named_after_what_was_brought(settings, name):
    assert run_name(settings) == name
    if not {"actor"} & set(settings):
        assert TrainConfig(**settings).name == name
