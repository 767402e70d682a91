"""Figures for papers: what they show against arithmetic by hand, and that they are drawn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.token_files import make_header, make_response

from agents.credit import read_tokens, write_tokens
from agents.report.curves import Curve
from agents.report.figures import draw_figures, mean_and_interval, value_calibration
from agents.report.run_files import RunFiles


def test_the_interval_over_seeds_is_students():
    """Of 1, 2, 3: the mean 2, the standard error 1/√3, and t(0.975, 2) = 4.3027."""
    curves = [Curve(np.array([0.0, 10.0]), np.array([v, v])) for v in (1.0, 2.0, 3.0)]
    mean, half = mean_and_interval(curves)
    np.testing.assert_allclose(mean.values, [2, 2])
    np.testing.assert_allclose(half, 4.302653 / np.sqrt(3), rtol=1e-6)


def test_one_seed_has_no_interval_and_curves_are_read_between_their_points():
    one = Curve(np.array([0.0, 10.0]), np.array([0.0, 1.0]))
    assert np.isnan(mean_and_interval([one])[1]).all()
    other = Curve(np.array([5.0, 20.0]), np.array([1.5, 3.0]))
    mean, _ = mean_and_interval([one, other])
    np.testing.assert_allclose(mean.tokens, [5, 10])  # where both have points
    np.testing.assert_allclose(mean.values, [(0.5 + 1.5) / 2, (1.0 + 2.0) / 2])


@pytest.fixture
def table(tmp_path):
    """Three fresh responses: V and rewards to come are (1, 2), (3, 1), (2, 2) and 1 more each."""
    header, rng, responses = make_header(), np.random.default_rng(0), []
    for index, (value, reward) in enumerate([(1.0, 2.0), (3.0, 1.0), (2.0, 2.0)]):
        response = make_response(rng, header, "fresh", index, 2)
        response["columns"]["value"] = [value, value]
        response["columns"]["reward"] = [1.0, reward]
        responses.append(response)
    path = tmp_path / "0.jsonl"
    write_tokens(path, {**header, "gamma": 1.0}, responses)
    return read_tokens(path)


def test_the_calibration_is_of_v_against_what_followed(table):
    values, returns, _ = value_calibration(table)
    assert sorted(zip(values, returns, strict=True)) == sorted(
        [(1.0, 3.0), (1.0, 2.0), (3.0, 2.0), (3.0, 1.0), (2.0, 3.0), (2.0, 2.0)]
    )


@pytest.mark.slow
def test_figures_are_drawn_of_what_there_is(tmp_path, table):
    rows = [{"time/total_timesteps": t, "rlhf/score": 0.1 * t, "rlhf/kl": 0.2} for t in (1, 2)]
    run = RunFiles(tmp_path, {"task": "reviews", "seed": 0, "kl_coef": 0.1}, rows)
    other = RunFiles(tmp_path, {"task": "reviews", "seed": 1, "kl_coef": 0.1}, rows)
    names = [p.name for p in draw_figures([run, other], tmp_path / "figures")]
    assert names == ["learning_curves.pdf", "learning_curves.png"]
    whole = RunFiles(tmp_path, run.config, rows, tables=[table])
    stems = {Path(p).stem for p in draw_figures([whole], tmp_path / "figures")}
    assert {"strength_entropy", "value_calibration", "learning_curves"} == stems
    assert (tmp_path / "figures" / "strength_entropy.png").read_bytes()[:4] == b"\x89PNG"
