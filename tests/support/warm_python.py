"""Scripts in a process of their own that has the large libraries already.

Importing torch, transformers and what they bring takes longer than most scripts do. A server
process (`multiprocessing`'s fork server) imports them once, and every script runs in a fork of it,
with memory, working directory, environment and signals of its own. The project is imported by each
script anew: a script that forgets to import it fails as it would for a user.

Where the import itself, its order or the command `python` is what a test is about, `subprocess`
belongs there instead.
"""

from __future__ import annotations

import atexit
import functools
import multiprocessing
import os
import runpy
import sys
import threading
import traceback
import types
from dataclasses import dataclass
from multiprocessing.context import ForkServerContext
from pathlib import Path
from tempfile import TemporaryDirectory

TESTS = Path(__file__).resolve().parents[1]

LIBRARIES = (
    *("torch", "torch._dynamo", "torch.utils.tensorboard", "scipy.stats", "scipy.optimize"),
    *("matplotlib.backends.backend_agg", "matplotlib.pyplot", "gymnasium", "stable_baselines3"),
    *("PIL.ImageDraw", "PIL.ImageFont", "tyro", "rich.table", "jinja2", "yaml", "tokenizers"),
    *("transformers.modeling_utils", "transformers.generation", "transformers.models.auto"),
    *("transformers.models.auto.tokenization_auto", "transformers.tokenization_utils_tokenizers"),
    *("transformers.models.gpt2.modeling_gpt2", "transformers.models.llama.modeling_llama"),
)
"""What nearly every script of the project imports. The threads that OpenBLAS starts at its import
do not outlive the fork; with one thread, as the server has it, there is none to miss."""


@dataclass(frozen=True)
class Done:
    """What a script left, as of `subprocess.run`."""

    returncode: int
    stdout: str
    stderr: str


@functools.cache
def _context() -> ForkServerContext:
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(LIBRARIES))
    return context


def run_python(
    script: Path | str,
    *arguments: str,
    folder: Path | None = None,
    environment: dict[str, str] | None = None,
    timeout: float = 900.0,
) -> Done:
    """Run a script as `python SCRIPT ARGUMENTS` does, or as `python -c`, where it is a text.

    Args:
        script: the path of a script, or a program.
        arguments: of the command line.
        folder: the working directory; None: this process's.
        environment: variables besides this process's own. What libraries read when they are
            imported (`HF_HUB_OFFLINE`, `OPENBLAS_NUM_THREADS`) is that of the server.
        timeout: seconds, after which the process is killed.

    Raises:
        TimeoutError: it took longer.
    """
    with TemporaryDirectory() as name:
        streams = [Path(name) / "stdout", Path(name) / "stderr"]
        process = _context().Process(
            target=_run,
            args=(
                *(script, arguments, os.fspath(folder or Path.cwd())),
                *({**os.environ, **(environment or {})}, [str(stream) for stream in streams]),
            ),
        )
        main = sys.modules["__main__"]
        sys.modules["__main__"] = types.ModuleType("__main__")  # or the process imports pytest too
        try:
            process.start()
        finally:
            sys.modules["__main__"] = main
        try:
            process.join(timeout)
            if process.exitcode is None:
                raise TimeoutError(f"no end after {timeout:.0f} s: {streams[1].read_text()}")
        finally:
            process.kill()
            process.join()
        said = [stream.read_text(encoding="utf-8") for stream in streams]
        return Done(process.exitcode, *said)


def _run(
    script: Path | str,
    arguments: tuple[str, ...],
    folder: str,
    environment: dict[str, str],
    streams: list[str],
) -> None:
    """The life of the forked process; ends it with the script's exit status."""
    for number, stream in enumerate(streams, start=1):
        file = os.open(stream, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, number)
        os.close(file)
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = open(2, "w", encoding="utf-8", closefd=False, buffering=1)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.path[:] = [path for path in sys.path if path and not _is_of_tests(Path(path).resolve())]
    if "OMP_NUM_THREADS" in environment:  # torch has read the server's
        import torch  # there already, unless somebody else had started the server before

        torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))
    status = _status_of(script, arguments)
    threading._shutdown()  # type: ignore[attr-defined]  # waits for what is no daemon
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _is_of_tests(path: Path) -> bool:
    return TESTS in (path, *path.parents)


def _status_of(script: Path | str, arguments: tuple[str, ...]) -> int:
    try:
        if isinstance(script, Path):
            sys.argv = [str(script), *arguments]
            sys.path.insert(0, str(script.parent))
            runpy.run_path(str(script), run_name="__main__")
        else:
            sys.argv = ["-c", *arguments]
            sys.path.insert(0, "")
            sys.modules["__main__"] = types.ModuleType("__main__")
            exec(compile(script, "<string>", "exec"), vars(sys.modules["__main__"]))
    except SystemExit as stopped:
        if stopped.code is None or isinstance(stopped.code, int):
            return stopped.code or 0
        sys.stderr.write(f"{stopped.code}\n")
        return 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0
