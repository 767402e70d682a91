"""The logs of a run."""

from __future__ import annotations

import json
import os
import signal
from types import SimpleNamespace

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from agents.runs.log import run_logger
from tokenenv.stop_signals import StopSignal, stop_signals

pytestmark = pytest.mark.usefixtures("usual_signals")


@pytest.fixture
def model() -> SimpleNamespace:
    """What `run_logger` needs of an SB3 algorithm."""
    model = SimpleNamespace(num_timesteps=16)
    model.set_logger = lambda logger: setattr(model, "logger", logger)
    return model


def test_a_signal_while_a_row_is_written_waits_until_every_output_has_it(
    tmp_path, model, monkeypatch
):
    """TensorBoard's queue, interrupted at the wrong place, would be waited for without end."""
    write = SummaryWriter.add_scalar

    def interrupted(*arguments, **named):
        os.kill(os.getpid(), signal.SIGINT)
        return write(*arguments, **named)

    monkeypatch.setattr(SummaryWriter, "add_scalar", interrupted)
    run = SimpleNamespace(
        root=tmp_path, metrics=tmp_path / "metrics.jsonl", tensorboard=tmp_path / "events"
    )
    with pytest.raises(StopSignal), stop_signals(), run_logger(run, model):
        model.logger.record("rlhf/kl", 0.5)
        model.logger.record("rlhf/score", 1.5)
        model.logger.dump(16)
        pytest.fail("not reached")
    rows = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    assert rows == [{"rlhf/kl": 0.5, "rlhf/score": 1.5}]
    events = EventAccumulator(str(run.tensorboard)).Reload()
    assert {name: events.Scalars(name)[0].value for name in ("rlhf/kl", "rlhf/score")} == {
        "rlhf/kl": 0.5,
        "rlhf/score": 1.5,
    }
