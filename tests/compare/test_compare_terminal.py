"""What `tokenrlhf compare` prints fits a terminal of 80 columns and says what it must."""

from __future__ import annotations

import io

from rich.console import Console

from agents.compare.terminal import print_report

FOUND = {"score": 0.93, "interval": (0.92, 1.0), "is_at_most": True, "measure": "J"}
LOW = {**FOUND, "score": -23.73, "interval": (-23.89, -23.44)}
ENVS = ["CartPole-v1", "TokenRLHF-Features-TopK-v0"]
AGENTS = ["ppo", "a2c", "dqn", "token-ppo"]
FINGERPRINT = {
    "horizon": 500.0,
    "branching": 15.98,
    "credit_delay": None,
    "snr_with_critic": -0.000929,
    "explained_variance_reached": 0.987,
}


def test_scores_and_fingerprints_fit_80_columns():
    report = {
        "settings": {"agents": AGENTS},
        "scores": {ENVS[0]: {"ppo": FOUND}, ENVS[1]: {**dict.fromkeys(AGENTS, FOUND), "dqn": LOW}},
        "fingerprints": dict.fromkeys(ENVS, FINGERPRINT),
        "left_out": ["dqn [sic] is left out."],
    }
    written = io.StringIO()
    print_report(report, Console(file=written, width=80))
    lines = [line.split() for line in written.getvalue().splitlines()]
    assert max(map(len, written.getvalue().splitlines())) <= 80
    score, interval = ["≤", "0.93", "(J)"], ["0.92", "…", "1.00"]
    assert [ENVS[0], *score, "—", "—", "—"] in lines
    assert ["TokenRLHF-Features-", *score * 2, "≤", "-23.73", "(J)", *score] in lines
    assert ["TopK-v0", *interval * 2, "-23.89", "…", "-23.44", *interval] in lines
    assert [ENVS[0], "500", "16", "—", "-0.000929", "0.987"] in lines
    assert ["dqn", "[sic]", "is", "left", "out."] in lines
