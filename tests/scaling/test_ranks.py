"""What ranks tell each other: shares, digests, signs of life."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from support.ranks import free_port
from support.warm_python import run_python

from agents.cli import main
from agents.scaling import (
    ALONE,
    AgreedError,
    Ranks,
    digest_of_arrays,
    digest_of_texts,
    launched_ranks,
    refuse_different,
    share_of,
    watch,
)
from agents.scaling.watch import Watch


class Two(Ranks):
    """The first of two ranks, of which the other gives what it is told to."""

    count = 2

    def __init__(self, other: Any) -> None:
        self.other = other

    def gather(self, value: Any) -> list[Any]:
        return [value, self.other]


def test_alone_everything_is_ones_own(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert launched_ranks() is ALONE and ALONE.is_first
    array = np.arange(3.0)
    assert ALONE.joined(array) is array and ALONE.own_part(array, 3) is array
    assert ALONE.gather("x") == ["x"] and ALONE.of_first("x") == "x"
    assert share_of(7, ALONE, "n_envs") == 7
    with pytest.raises(OSError, match="mine"):  # and not an error of all ranks
        ALONE.agree(lambda: (_ for _ in ()).throw(OSError("mine")))


def test_numbers_of_ranks_are_joined_and_parted_again():
    ranks = Two(np.array([5.0]))
    joined = ranks.joined(np.array([1.0, 2.0]))
    assert joined.tolist() == [1, 2, 5]
    assert Two(1).own_part(joined, 2).tolist() == [1, 2]
    assert Two(np.array([2, 3])).sum(np.array([1, 1])).tolist() == [3, 4]


@pytest.mark.parametrize(
    ("total", "said"),
    [(1, "every rank needs at least one. Start at most 1"), (5, "give 4 or 6")],
)
def test_shares_that_can_not_be_even_are_refused(total, said):
    assert share_of(6, Two(None), "n_envs") == 3
    with pytest.raises(ValueError, match=said):
        share_of(total, Two(None), "n_envs")


def test_a_difference_is_named_with_both_values():
    refuse_different(Two({"a": 1}), {"a": 1})
    with pytest.raises(AgreedError, match="can't train: b is 3 on rank 1 and 2 on rank 0"):
        refuse_different(Two({"a": 1, "b": 3}), {"a": 1, "b": 2}, "can't train")
    with pytest.raises(AgreedError, match="c is 4 on rank 1 and None on rank 0"):
        refuse_different(Two({"a": 1, "c": 4}), {"a": 1})


def test_digests_see_every_bit_and_every_border():
    assert digest_of_texts(["ab", "c"]) != digest_of_texts(["a", "bc"])
    weight = torch.arange(6.0)
    known = digest_of_arrays([("w", weight)])
    assert known == digest_of_arrays([("w", weight.clone())])
    others = [weight.reshape(2, 3), weight.double(), weight + 1e-6, -weight, weight.bfloat16()]
    assert len({known, *(digest_of_arrays([("w", other)]) for other in others)}) == 6
    assert known != digest_of_arrays([("v", weight)])


@pytest.mark.parametrize("given", [("2", "2"), ("-1", "2"), ("x", "2"), ("0", "two"), ("0", "0")])
def test_variables_that_no_launcher_sets_are_refused(monkeypatch, capsys, given):
    monkeypatch.setenv("RANK", given[0])
    monkeypatch.setenv("WORLD_SIZE", given[1])
    assert main(["train", "--task", "exact"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert f"RANK={given[0]!r} and WORLD_SIZE={given[1]!r}" in said and "torchrun" in said


# Signs of life ------------------------------------------------------------------------------------


@pytest.fixture
def two_watches(monkeypatch):
    """Watches of two ranks in this process, which look often."""
    monkeypatch.setattr(watch, "PERIOD", 0.02)
    monkeypatch.setattr(watch, "NOTICE", 60.0)
    store = torch.distributed.HashStore()
    with ThreadPoolExecutor() as pool:
        both = list(pool.map(lambda rank: Watch(store, rank, 2), (0, 1)))
    yield both
    for one in both:
        one.close()


def test_a_rank_that_is_done_is_not_missed_and_one_that_fails_says_why(two_watches):
    first, second = two_watches
    second.close()
    time.sleep(0.3)
    assert first.verdict(0.1) is None
    second.fail("the disk is full")
    assert first.verdict(10) == "rank 1 of 2: the disk is full"


def test_a_rank_that_is_silent_is_gone(two_watches, monkeypatch):
    first, second = two_watches
    monkeypatch.setattr(watch, "SILENCE", 0.5)
    second.close(is_done=False)
    assert "rank 1 of 2" in (said := first.verdict(10)) and "has been silent" in said


def test_a_process_that_ended_is_gone_before_it_is_collected():
    process = subprocess.Popen([sys.executable, "-c", ""])
    until = time.monotonic() + 60
    while watch._is_running(process.pid) and time.monotonic() < until:
        time.sleep(0.05)
    assert not watch._is_running(process.pid)
    process.wait()
    assert not watch._is_running(process.pid) and watch._is_running(os.getpid())


@pytest.mark.slow
def test_a_rank_that_does_not_react_is_ended(tmp_path):
    script = """
import sys, threading, time, torch
from agents.scaling import watch
watch.PERIOD, watch.NOTICE, watch.LAST = 0.05, 0.2, 0.4
import signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
store = torch.distributed.HashStore()
store.set("where/1", "999999999 " + __import__("socket").gethostname())
store.set("beat/1", "0")
watch.Watch(store, 0, 2)
time.sleep(100)
"""
    start = time.monotonic()
    done = run_python(script, folder=tmp_path, timeout=90)
    assert done.returncode == 75 and time.monotonic() - start < 90
    assert "rank 1 of 2 (process 999999999 on" in done.stderr and "is gone" in done.stderr


@pytest.mark.slow
def test_a_port_in_use_is_refused_with_the_remedy(tmp_path):
    script = f"""
import os, socket
listener = socket.socket()
listener.bind(("127.0.0.1", {(port := free_port())}))
listener.listen()
os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="2", MASTER_ADDR="127.0.0.1",
                  MASTER_PORT="{port}")
from agents.cli import main
raise SystemExit(main(["train", "--task", "exact", "--device", "cpu"]))
"""
    done = run_python(script, folder=tmp_path)
    said = " ".join(done.stderr.split())
    assert done.returncode == 2 and f"can't meet at 127.0.0.1:{port}" in said, done.stderr
    assert "--master-port" in said and "Traceback" not in said
