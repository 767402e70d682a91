"""What a training shows meanwhile: a line per update on a terminal, a line per tenth elsewhere."""

from __future__ import annotations

import io
import math
import re

import pytest
from rich.console import Console

from agents.runs.display import TrainingDisplay, fitting_columns, table_line
from agents.runs.progress import ProgressCallback
from agents.runs.sparklines import BARS, sparkline

NAN, INF = math.nan, math.inf


# Sparklines --------------------------------------------------------------------------------------


def test_eight_equal_steps_are_the_eight_bars():
    assert sparkline(range(8), 8) == BARS == "▁▂▃▄▅▆▇█"
    assert sparkline([-1.0, 1.0], 10) == "▁█" and sparkline([3, 2, 1], 9) == "█▅▁"


@pytest.mark.parametrize("value", [0.0, -7.5, 1e308, 5e-324])
def test_equal_numbers_are_bars_of_middle_height(value):
    assert sparkline([value] * 3, 10) == "▄▄▄"


def test_what_is_no_number_leaves_a_gap():
    assert sparkline([0.0, NAN, 1.0, INF, -INF], 9) == "▁ █  "
    assert sparkline([NAN, NAN], 9) == "  " and sparkline([NAN, 2.0], 9) == " ▄"


def test_more_numbers_than_characters_are_averaged():
    assert sparkline([0, 0, 7, 7], 2) == "▁█"
    # Parts (0, 1), (2, 3), (4, 5): means 0.5, 2 without the NaN, 4.5; shares 0, 0.375, 1.
    assert sparkline([0, 1, 2, NAN, 4, 5], 3) == "▁▄█"
    for count in range(1, 50):
        for width in range(1, 50):
            assert len(sparkline(range(count), width)) == min(count, width)


def test_nothing_to_show_is_an_empty_text():
    assert sparkline([], 9) == sparkline([1.0], 0) == sparkline([1.0], -3) == ""


def test_numbers_at_the_ends_of_the_range_are_told_apart():
    assert sparkline([-1.7e308, 0.0, 1.7e308], 3) == "▁▅█"


# Lines -------------------------------------------------------------------------------------------

METRICS = {
    "score": 0.314,
    "gold_reward": -0.25,
    "kl": 0.5,
    "objective": 0.189,
    "entropy": 1.234,
    "response_length": 9.0,
}


class Clock:
    """Seconds that pass when they are told to."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def terminal(width: int) -> Console:
    """A terminal of some width without colours."""
    return Console(
        file=io.StringIO(), force_terminal=True, color_system=None, width=width, height=30
    )


def shown(console: Console) -> list[str]:
    """Everything that was written, line by line, without codes that move the cursor."""
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", console.file.getvalue())
    return [line.rstrip() for line in re.split(r"[\r\n]+", text) if line.strip()]


def display(width: int, total: int = 8192, updates: int = 0) -> TrainingDisplay:
    """A display with its clock at 100 s, 30 s after every update of 2,048 tokens."""
    clock = Clock()
    made = TrainingDisplay(terminal(width), total, clock)
    for update in range(1, updates + 1):
        clock.now += 30
        made.update(2048 * update, {**METRICS, "score": float(update), "kl": update / 2})
    return made


def test_every_update_is_a_line_with_its_numbers():
    made = display(80, updates=2)
    header, first, second = shown(made.console)
    assert header.split() == "update tokens score gold KL J entropy ETA".split()
    # 30 s for a quarter: 90 s to go; 60 s for a half: 60 s to go.
    assert first.split() == "1 2,048 1.00 -0.25 0.50 0.19 1.23 0:01:30".split()
    assert second.split() == "2 4,096 2.00 -0.25 1.00 0.19 1.23 0:01:00".split()
    assert len({len(line) for line in (header, first, second)}) == 1  # columns stand on the right


def footer(made: TrainingDisplay, width: int) -> list[str]:
    """The lines below the last update."""
    console = terminal(width)
    console.print(made)
    return shown(console)


def test_sparklines_and_the_time_stand_below():
    made = display(80, updates=3)
    score, kl, bar = footer(made, 80)
    assert score == "score ▁▅█  1.00 … 3.00" and kl == "KL    ▁▅█  0.50 … 1.50"
    assert bar == "━" * 18 + "╌" * 6 + "  75%  0:01:30  ETA 0:00:30"
    made._clock.now += 12  # the time runs down between two updates
    assert footer(made, 80)[2].endswith("0:01:42  ETA 0:00:18")
    made._clock.now += 1000
    assert footer(made, 80)[2].endswith("ETA 0:00:00")


def test_before_the_first_update_nothing_is_claimed():
    assert footer(display(80), 80) == ["╌" * 24 + "   0%  0:00:00  ETA -:--:--"]


def test_a_rollout_without_finished_responses_has_no_numbers():
    made = display(80)
    made.update(2048, {})
    made.update(4096, METRICS)
    _, first, second = shown(made.console)
    assert first.split()[2:7] == ["–"] * 5 and second.split()[2] == "0.31"
    assert footer(made, 80)[0] == "score  ▄  0.31 … 0.31"


def test_a_task_without_a_gold_reward_has_no_column_for_it():
    made = display(80)
    made.update(2048, {name: value for name, value in METRICS.items() if name != "gold_reward"})
    assert shown(made.console)[0].split() == "update tokens score KL J entropy ETA".split()


def test_numbers_that_are_too_long_are_rounded():
    made = display(80)
    made.update(2048, {**METRICS, "score": -123456789.0, "kl": NAN, "objective": INF})
    cells = shown(made.console)[1].split()
    assert cells[2] == "-1.2e+08" and cells[4:6] == ["nan", "inf"]


@pytest.mark.parametrize("width", [20, 40, 60, 80, 200])
def test_no_line_reaches_the_edge_of_the_terminal(width):
    made = display(width, total=10**9, updates=0)
    for update in range(1, 300):
        made._clock.now += 1000
        made.update(2048 * update, {**METRICS, "score": -1e9 * update, "kl": 1e5})
    lines = [*shown(made.console), *footer(made, width)]
    assert max(map(len, lines)) < width
    assert len(shown(made.console)) == 300  # none was wrapped


def test_after_a_resize_the_lines_fit_the_new_width():
    made = display(80, updates=2)
    made.console.width = 40
    made.update(6144, {**METRICS, "kl": -0.001})
    header, line = shown(made.console)[-2:]
    assert header.split() == "update score KL J".split() and len(line) == len(header) < 40
    assert line.split()[2] == "0.00"  # no -0.00


def test_a_narrow_terminal_loses_the_least_important_columns_first():
    widths = {"update": 6, "tokens": 6, "score": 8, "gold": 8, "KL": 8, "J": 8, "entropy": 8}
    widths["ETA"] = 8
    assert sum(widths.values()) + 7 == 67
    assert list(fitting_columns(widths, 67)) == list(widths)
    assert "entropy" not in fitting_columns(widths, 66)
    # 67 − 9 for entropy − 7 for tokens = 51
    assert list(fitting_columns(widths, 51)) == ["update", "score", "gold", "KL", "J", "ETA"]
    assert list(fitting_columns(widths, 8)) == ["score"]
    assert table_line({"a": 3, "b": 2}, {"a": "x", "b": "12345", "c": "-"}) == "  x 45"


# The callback ------------------------------------------------------------------------------------


class Rollouts:
    """What the callback sees of a training of ten rollouts."""

    def __init__(self, console: Console) -> None:
        self.metrics = METRICS
        self.callback = ProgressCallback(console, self, total=1000)
        self.callback.model = self

    def run(self) -> None:
        self.callback._on_training_start()
        for done in range(50, 1050, 50):
            self.callback.num_timesteps = done
            self.callback._on_rollout_end()
        self.callback._on_training_end()
        self.callback.close()  # a second time


def test_without_a_terminal_there_is_a_line_per_tenth():
    console = Console(file=io.StringIO(), width=80)
    Rollouts(console).run()
    lines = console.file.getvalue().splitlines()
    assert len(lines) == 10
    assert lines[0] == "      100 of 1,000 tokens  score 0.31  gold -0.25  KL 0.50  J 0.19"


def test_on_a_terminal_there_is_a_line_per_update_and_the_end_stays():
    console = terminal(80)
    Rollouts(console).run()
    lines = shown(console)
    assert [line for line in lines if re.match(r" +20 +1,000 ", line)]
    assert lines[-1].startswith("━" * 24 + " 100%") and lines[-3].startswith("score ▄▄▄")
    console.print("after")
    assert shown(console)[-1] == "after"


def test_a_dumb_terminal_gets_plain_lines(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    console = Console(file=io.StringIO(), force_terminal=True, width=80)
    Rollouts(console).run()
    assert len(console.file.getvalue().splitlines()) == 10
