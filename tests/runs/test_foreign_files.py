"""Files from somebody else run no code: not by name, not by pickle, not by where they lie."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from agents.cli import main
from agents.config import TrainConfig
from agents.runs.folder import RunFolder

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = [ROOT / "agents", ROOT / "tokenenv"]
SOURCES = sorted(file for package in PACKAGES for file in package.rglob("*.py"))

CODE = """
from pathlib import Path
Path({marker!r}).write_text("imported")
import tokenenv.tasks.reviews
TASK = tokenenv.tasks.reviews.TASK
def score(prompts, responses):
    return [0.0] * len(responses)
"""


@pytest.fixture
def marker(tmp_path, monkeypatch) -> Path:
    """A file that a module `foreign_code` in the working directory writes where it is imported."""
    path = tmp_path / "imported"
    (tmp_path / "foreign_code.py").write_text(CODE.format(marker=str(path)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "foreign_code", raising=False)
    return path


def foreign_run(folder: Path, **changes: str) -> Path:
    """A run folder whose configuration names code."""
    from tokenenv.tasks import load_task

    folder.mkdir()
    settings = {**TrainConfig(out=folder, device="cpu").as_json(), **changes}
    (folder / "config.json").write_text(json.dumps(settings))
    shutil.copytree(load_task("reviews").reference, folder / "policy")
    return folder


@pytest.mark.parametrize("command", ["sample", "evaluate"])
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("reward_model", "foreign_code:score"),
        ("task", "foreign_code:TASK"),
        ("prompts", "foreign_code:TASK"),
    ],
)
def test_code_that_a_run_names_is_not_imported_unasked(
    command, key, value, marker, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("COLUMNS", "1000")
    run = foreign_run(tmp_path / "run", **{key: value})
    more = ["--prompt", "The plot"] if command == "sample" else []
    assert main([command, str(run), *more]) == 2
    said = capsys.readouterr().err
    for part in (str(run / "config.json"), f"{key}={value!r}", "--trust-code", "trust_code=True"):
        assert part in said
    assert not marker.exists() and "foreign_code" not in sys.modules


def test_a_file_called_like_the_code_does_not_open_the_door(marker, tmp_path, capsys):
    (tmp_path / "foreign_code:TASK").write_text("")
    run = foreign_run(tmp_path / "run", task="foreign_code:TASK")
    assert main(["evaluate", str(run)]) == 2
    assert not marker.exists()


def test_code_of_a_run_is_imported_where_it_is_trusted(marker, tmp_path, capsys):
    run = foreign_run(tmp_path / "run", reward_model="foreign_code:score")
    assert RunFolder.open(run).read_config(trust_code=True).reward_model == "foreign_code:score"
    # The policy's own file is missing, which is found only after the reward function was imported.
    main(["sample", str(run), "--prompt", "I saw this film today. The plot", "--trust-code"])
    assert marker.exists()


def test_names_that_the_user_types_need_no_flag(marker, tmp_path, capsys):
    arguments = ["train", "--reward-model", "foreign_code:score", "--reference", "/nowhere"]
    assert main([*arguments, "--out", str(tmp_path / "run")]) == 2  # for want of a reference
    assert main([*arguments[:3], "--max-prompt-tokens", "1", "--out", str(tmp_path / "run")]) == 2
    assert marker.exists()


def test_a_run_of_another_folder_may_be_replaced_without_running_it(marker, tmp_path, capsys):
    run = foreign_run(tmp_path / "run", reward_model="foreign_code:score", task="foreign_code:TASK")
    arguments = ["train", "--out", str(run), "--overwrite", "--actor", str(run / "policy")]
    assert main([*arguments, "--device", "cpu"]) == 2  # it lies in the folder to be replaced
    assert not marker.exists()


def calls(source: Path) -> list[tuple[str, ast.Call]]:
    """All calls in a file, with what is called as text."""
    tree = ast.parse(source.read_text(encoding="utf-8"))
    return [(ast.unparse(n.func), n) for n in ast.walk(tree) if isinstance(n, ast.Call)]


def constants(call: ast.Call) -> dict[str, object]:
    """The keyword arguments of a call that are constants."""
    return {k.arg: k.value.value for k in call.keywords if isinstance(k.value, ast.Constant)}


LOADERS = ("from_pretrained", "from_config")


def test_no_loader_of_transformers_runs_the_code_of_a_model():
    seen = 0
    for source in SOURCES:
        for name, call in calls(source):
            kind, _, method = name.rpartition(".")
            if kind.startswith("Auto") and method in LOADERS:
                seen += 1
                assert constants(call).get("trust_remote_code", 0) is False, (source, name)
                if method == "from_pretrained" and "Model" in kind:
                    assert constants(call).get("weights_only") is True, (source, name)
    assert seen >= 8


def test_nothing_unpickles():
    """But SB3's archives, which `TokenPPO.load` reads and documents."""
    seen = 0
    for source in SOURCES:
        for name, call in calls(source):
            root = name.partition(".")[0]
            assert root not in ("cloudpickle", "dill", "joblib", "shelve", "marshal"), (
                source,
                name,
            )
            assert not (root == "pickle" and name.endswith(("load", "loads", "Unpickler"))), source
            if name == "torch.load":
                seen += 1
                assert constants(call).get("weights_only") is True, source
            if name in ("np.load", "numpy.load"):
                assert constants(call).get("allow_pickle", False) is False, source
            assert name not in ("eval", "exec", "os.system"), source
    assert seen >= 1


def test_a_model_with_code_of_its_own_is_refused_and_not_asked_about(
    marker, tmp_path, reference_folder, monkeypatch
):
    """Transformers would ask on the terminal whether to run it."""
    from tokenenv.models.language_model import load_frozen
    from tokenenv.rewards.reward_model import load_reward_model

    folder = tmp_path / "model"
    shutil.copytree(reference_folder, folder)
    config = json.loads((folder / "config.json").read_text())
    classes = ("AutoConfig", "AutoModelForCausalLM", "AutoModelForSequenceClassification")
    config["model_type"] = "of-its-own"
    config["auto_map"] = {name: f"foreign_code.{name}" for name in classes}
    (folder / "config.json").write_text(json.dumps(config))
    shutil.copy(tmp_path / "foreign_code.py", folder)
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("it asked"))
    for load in (load_frozen, load_reward_model):
        with pytest.raises(ValueError, match="can't be loaded"):
            load(str(folder))
    assert not marker.exists()


def in_folder(folder: Path, code: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Run Python as a console script runs, in a folder that holds a `torch.py`."""
    (folder / "torch.py").write_text("raise SystemExit('the torch of the working directory')")
    script = folder / "bin" / "tokenrlhf"
    script.parent.mkdir(exist_ok=True)
    script.write_text(code)
    return subprocess.run(
        [sys.executable, *options, str(script), "evaluate", "/nowhere"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


@pytest.mark.slow
def test_the_working_directory_comes_after_the_libraries(tmp_path):
    done = in_folder(tmp_path, "import sys\nfrom agents.cli import main\nsys.exit(main())")
    assert done.returncode == 2 and "holds no run" in " ".join(done.stderr.split()), done.stderr
    # A module of the user's own is found there all the same.
    (tmp_path / "my_rewards.py").write_text("def score(prompts, responses):\n    return []")
    code = (
        "import sys\nfrom agents.cli import main\nmain()\n"
        "from tokenenv.tasks import load_object\nload_object('my_rewards:score')\n"
        "import torch\nsys.exit(7)"
    )
    assert in_folder(tmp_path, code).returncode == 7


@pytest.mark.slow
def test_workers_of_a_comparison_import_nothing_of_the_working_directory_first(tmp_path):
    (tmp_path / "multiprocessing.py").write_text("raise SystemExit('that of the folder')")
    code = (
        "import multiprocessing, sys\n"
        "if __name__ == '__main__':\n"
        "    from concurrent.futures import ProcessPoolExecutor\n"
        "    from agents.compare.workers import libraries_first\n"
        "    sys.path.append('.')\n"
        "    context = multiprocessing.get_context('spawn')\n"
        "    with libraries_first(), ProcessPoolExecutor(1, context) as pool:\n"
        "        sys.exit(pool.submit(abs, -7).result(timeout=60))\n"
    )
    done = in_folder(tmp_path, code)
    assert done.returncode == 7 or sys.version_info < (3, 11), done.stderr


def test_where_a_checkpoint_is_named_it_says_that_loading_it_runs_code():
    training = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    assert "unpickles" in training and "`policy/`" in training and "--trust-code" in training
    from agents import TokenPPO

    assert "unpickles" in (TokenPPO.__doc__ or "")


def test_the_help_and_the_end_of_a_run_say_so_too(capsys):
    from rich.console import Console

    from agents.runs.tables import print_places

    with pytest.raises(SystemExit):
        main(["train", "--help"])
    assert "unpickles" in capsys.readouterr().out
    print_places(Console(width=200), Path("run"), "it's [red]", needs_trust=True)
    shown = capsys.readouterr().out
    assert "unpickles" in shown and "policy/" in shown
    assert "--trust-code" in shown and "[red]" in shown
