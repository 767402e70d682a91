"""Several processes of one program on this machine, as a launcher starts them."""

from __future__ import annotations

import socket
from pathlib import Path
from textwrap import dedent, indent

from support.warm_python import Done, run_python

TESTS = Path(__file__).resolve().parents[1]

_LAUNCH = """
import os, signal, sys, traceback
sys.path.insert(0, {tests!r})
children = []
for rank in range({count}):
    child = os.fork()
    if child:
        children.append(child)
        continue
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="{count}",
                      MASTER_ADDR="127.0.0.1", MASTER_PORT="{port}", OMP_NUM_THREADS="1")
    status = 1
    signal.alarm(280)  # not to outlive the test
    try:
        def program():
{program}
        program()
        status = 0
    except SystemExit as stopped:
        status = stopped.code or 0
    except BaseException:
        sys.stderr.write(f"rank {{rank}}: {{traceback.format_exc()}}")
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
ended = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
print("statuses", *ended)
"""


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def run_ranks(program: str, count: int = 2, folder: Path | None = None) -> Done:
    """Run a program in `count` processes, with the variables that `torchrun` sets.

    Args:
        program: statements; `rank` is the process's number.
        count: of processes.
        folder: the working directory.

    Returns:
        The output of all; its last line begins with "statuses".
    """
    body = indent(dedent(program), " " * 12)
    script = _LAUNCH.format(tests=str(TESTS), count=count, port=free_port(), program=body)
    return run_python(script, folder=folder, timeout=300)
