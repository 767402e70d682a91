"""The folder of a checkpoint: what goes in comes out, and what is not whole is refused."""

from __future__ import annotations

import json
import os
import random

import numpy as np
import pytest
import torch
from torch import nn

from agents.checkpoints import (
    BrokenCheckpoint,
    Checkpoint,
    OtherVersion,
    generators_state,
    load_generators,
    load_optimizer,
    load_weights,
    newest_checkpoint,
    optimizer_state,
    read_checkpoint,
    remove_after,
    remove_oldest,
    weights_state,
    write_checkpoint,
)
from agents.reward_quality.hacking.monitor import HackingMonitor
from agents.reward_quality.hacking.rules import RULES, Alarm, Snapshot, Watch
from agents.reward_quality.hacking.tracking import Spread
from agents.rollout import RLHFCallback

STATE = {
    "numbers": [1, -2.5, 1e-300, 0.1, True, None, 2**127, float("inf"), float("-inf")],
    "text": 'β \u2028 "x"',
    "$float": {"$$": "a key that looks like ours"},
    "arrays": {
        **{kind: np.arange(5).astype(kind) for kind in ("int32", "int64", "float32", "float64")},
        **{"uint32": np.array([2**32 - 1], dtype=np.uint32), "bool": np.array([[True], [False]])},
        **{"empty": np.zeros((0, 3)), "view": np.arange(12).reshape(3, 4)[:, ::2]},
    },
    "tensors": [torch.arange(3, dtype=torch.bfloat16), torch.ones(2, 3)[:, 1], torch.tensor(2.0)],
}


def write(folder, tokens=64, **parts):
    write_checkpoint(folder, Checkpoint({"part": STATE, **parts}, tokens, 1))


def test_what_goes_in_comes_out_to_the_bit(tmp_path):
    write(tmp_path / "checkpoint", nothing={}, number=float("nan"))
    read = read_checkpoint(tmp_path / "checkpoint")
    part = read.parts["part"]
    assert part["numbers"] == STATE["numbers"] and part["text"] == STATE["text"]
    assert part["$float"] == STATE["$float"]
    for name, array in STATE["arrays"].items():
        assert part["arrays"][name].dtype == array.dtype
        np.testing.assert_array_equal(part["arrays"][name], array)
    for tensor, stored in zip(STATE["tensors"], part["tensors"], strict=True):
        assert stored.dtype == tensor.dtype and torch.equal(stored, tensor)
    assert read.parts["nothing"] == {} and np.isnan(read.parts["number"])
    assert (read.tokens, read.updates) == (64, 1) and "torch" in read.libraries
    files = sorted(path.name for path in (tmp_path / "checkpoint").iterdir())
    assert files == ["checkpoint.json", "part.safetensors"]


@pytest.mark.parametrize("state", [{1: 2}, {"a": object()}, {"a": np.array(["x"])}, {"a": {2}}])
def test_what_no_checkpoint_holds_is_refused_and_nothing_written(tmp_path, state):
    with pytest.raises(TypeError, match=r"^other.* a checkpoint holds"):
        write(tmp_path / "checkpoint", other=state)
    assert not list(tmp_path.iterdir())


def test_two_arrays_of_one_name_are_refused(tmp_path):
    state = {"a.b": np.zeros(1), "a": {"b": np.ones(1)}}
    with pytest.raises(TypeError, match="stands for two arrays"):
        write(tmp_path / "c", part=state)
    assert not (tmp_path / "c").exists()


def test_a_checkpoint_that_is_not_whole_is_refused(tmp_path):
    folder = tmp_path / "checkpoint"
    write(folder)
    index, part = folder / "checkpoint.json", folder / "part.safetensors"
    text, data = index.read_text(), part.read_bytes()
    changed = bytearray(data)
    changed[-1] ^= 1
    cases = (
        (part, data[:-1], "changed or cut off"),
        (part, bytes(changed), "changed or cut off"),
        (part, None, "part.safetensors is missing"),
        (index, text[: len(text) // 2].encode(), "not valid JSON"),
        (index, b"[]", "is a JSON object"),
        (index, b"{}", "of something else"),
        (
            index,
            text.replace('"tokens": 64', '"tokens": "x"').encode(),
            "checkpoint.json is changed",
        ),
        (index, text.replace('"parts"', '"pants"').encode(), "json is changed"),
        (index, None, "checkpoint.json is missing"),
    )
    for path, content, said in cases:
        if content is None:
            path.unlink()
        else:
            path.write_bytes(content)
        with pytest.raises(BrokenCheckpoint, match=said):
            read_checkpoint(folder)
        index.write_text(text)
        part.write_bytes(data)
    assert read_checkpoint(folder).tokens == 64
    index.write_text(text.replace('"version": 2', '"version": 3', 1))
    with pytest.raises(OtherVersion, match="has version 3 of its format"):
        read_checkpoint(folder)


def test_the_newest_whole_one_is_taken_and_the_oldest_go(tmp_path):
    for tokens in (8, 16, 128, 1024):
        write(tmp_path / f"tokens-{tokens}", tokens)
        (tmp_path / f"tokens-{tokens}.zip").write_bytes(b"")
    (tmp_path / "best").mkdir()
    (tmp_path / "tokens-1024" / "part.safetensors").write_bytes(b"half")
    os.rename(tmp_path / "tokens-128", tmp_path / ".tokens-128.old")  # killed as it was replaced
    said: list[str] = []
    newest = newest_checkpoint(tmp_path, said.append)
    assert newest is not None and newest.tokens == 128 == int(newest.folder.name[7:])
    assert len(said) == 1 and "tokens-1024" in said[0]

    def names() -> set[str]:
        return {path.name for path in tmp_path.iterdir()}

    remove_after(tmp_path, 128)
    assert "tokens-1024" not in names() and "tokens-1024.zip" not in names()
    remove_oldest(tmp_path, 2)
    kept = {f"tokens-{n}{end}" for n in (16, 128) for end in ("", ".zip")}
    assert names() == kept | {"best"}
    assert newest_checkpoint(tmp_path / "nowhere") is None


def test_the_global_generators_draw_on(tmp_path):
    random.gauss(0, 1), np.random.randn(), torch.rand(3)
    write(tmp_path / "checkpoint", generators=generators_state())

    def draws():
        return random.random(), random.gauss(0, 1), np.random.randn(3).tolist(), torch.rand(3)

    drawn = draws()
    load_generators(read_checkpoint(tmp_path / "checkpoint").parts["generators"])
    again = draws()
    assert drawn[:3] == again[:3] and torch.equal(drawn[3], again[3])


class Tied(nn.Module):
    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first, self.last = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
        self.last.weight = self.first.weight
        self.other = nn.Linear(3, 1)


def test_weights_and_optimiser_are_stored_by_name(tmp_path):
    made = [Tied(seed) for seed in (1, 2)]
    optimizers = [torch.optim.Adam(m.parameters(), lr=0.1, betas=(0.5, 0.9)) for m in made]

    def step(number: int) -> None:
        model, optimizer = made[number], optimizers[number]
        optimizer.zero_grad()
        model.other(model.last(model.first(torch.ones(1, 3)))).sum().backward()
        optimizer.step()

    step(0)
    states = {
        "weights": weights_state(made[0]),
        "optimizer": optimizer_state(optimizers[0], made[0]),
    }
    assert states["weights"]["same_as"] == {"last.weight": "first.weight"}
    write(tmp_path / "checkpoint", **states)
    parts = read_checkpoint(tmp_path / "checkpoint").parts
    load_weights(made[1], parts["weights"], "the model")
    load_optimizer(optimizers[1], made[1], parts["optimizer"])
    assert optimizers[1].param_groups[0]["betas"] == (0.5, 0.9)
    step(0), step(1)
    for name, weight in made[0].state_dict().items():
        assert torch.equal(weight, made[1].state_dict()[name])
    with pytest.raises(ValueError, match="are not those of the model"):
        load_weights(nn.Linear(3, 1), parts["weights"], "the model")
    with pytest.raises(ValueError, match="Adam over 3 weights, and the optimiser is SGD over 3"):
        load_optimizer(torch.optim.SGD(made[1].parameters(), lr=0.1), made[1], parts["optimizer"])


def test_nothing_in_a_checkpoint_is_pickled(tmp_path):
    write(tmp_path / "checkpoint")
    for path in (tmp_path / "checkpoint").iterdir():
        assert path.suffix in (".json", ".safetensors")
    json.loads((tmp_path / "checkpoint" / "checkpoint.json").read_text())


def test_a_monitor_of_reward_hacking_goes_on(tmp_path):
    spread = Spread(64, 0.5, 1.25)
    snapshot = Snapshot(
        *(128, 8, spread, 2.0, spread, spread, 1.5),
        features={"words": spread},
        disagreement=None,
    )
    monitors = [HackingMonitor(RLHFCallback()) for _ in range(2)]
    for monitor in monitors:
        monitor._watch = Watch(RULES, 8)
    first, second = monitors
    assert first._watch.look(snapshot) is None and first._watch.start is not None
    first._watch.look(snapshot)
    first.alarms = [Alarm("rule", 128, "text")]
    first.stopped_by = first.alarms[0]
    settings = {"kl_factor", "kl_raises", "verbose", "n_calls", "num_timesteps"}
    numbers = {n for n, v in vars(first).items() if isinstance(v, int | float)} - settings
    for i, name in enumerate(sorted(numbers), 3):
        setattr(first, name, i)
    write(tmp_path / "checkpoint", monitor=first.state_dict())
    second.load_state_dict(read_checkpoint(tmp_path / "checkpoint").parts["monitor"])
    assert second.state_dict() == first.state_dict()
    assert second._watch.start == first._watch.start and second.alarms == first.alarms
    for name in numbers:
        assert getattr(second, name) == getattr(first, name), name
