"""`tokenrlhf compare`: run what is missing, then report."""

from __future__ import annotations

import contextlib
import os
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from agents.atomic_files import write_json
from agents.compare.config import CompareConfig
from agents.compare.environments import kind_of, make_env, require_comparable
from agents.compare.figures import draw_report
from agents.compare.jobs import Job, read_result
from agents.compare.learners import why_not
from agents.compare.page import write_page
from agents.compare.results import aggregate, scored, summarize_runs
from agents.compare.terminal import print_report
from agents.compare.workers import do_jobs
from agents.console import literal
from agents.runs.output_folder import OutputFolder
from tokenenv.stop_signals import hold_signals, stop_signals

__all__ = ["compare", "make_report", "plan"]

_FOLDERS = ("runs", "scales", "fingerprints")
_FILES = ("compare.json", "compare.png", "compare.html")

FINGERPRINT_ROWS = {
    "horizon": "horizon, steps of an episode",
    "actions": "actions",
    "branching": "branching, exp(mean entropy)",
    "reward_density": "share of rewards that are not 0",
    "influence": "share of actions whose replacement changes a reward",
    "credit_delay": "steps from an action to the reward it earns",
    "transition_randomness": "randomness of transitions (0: deterministic)",
    "return_mean": "mean return",
    "return_variance": "variance of the return",
    "return_variance_scaled": "the same in units of score²",
    "snr_without_critic": "signal-to-noise of an episode's policy gradient, no critic",
    "snr_without_critic_error": "± standard error",
    "snr_with_critic": "the same, with a critic",
    "snr_with_critic_error": "± standard error",
    "explained_variance": "explained variance of a critic fitted to the untrained policy",
    "explained_variance_reached": "explained variance reached in training (ppo, or the LM's)",
}


def compare(config: CompareConfig, console: Console) -> dict[str, Any]:
    """Do what is missing and write `compare.json`, `compare.png` and `compare.html`.

    Args:
        config: what to compare.
        console: where progress and tables are shown.

    Raises:
        ValueError: an environment or agent can't be compared, or the folder holds something else.
        KeyboardInterrupt: by Ctrl-C, after a report of what is finished.
    """
    kinds = _kinds(config)
    jobs, left_out = plan(config, kinds)
    with stop_signals(), contextlib.closing(_prepare(config)) as output:
        return _compare(config, jobs, left_out, output, console)


def _compare(
    config: CompareConfig,
    jobs: list[Job],
    left_out: list[str],
    output: OutputFolder,
    console: Console,
) -> dict[str, Any]:
    todo = [job for job in jobs if read_result(job, config.out) is None]
    known = f": {len(jobs) - len(todo)} of {len(jobs)} pieces of work are there already"
    console.print(Text.assemble("comparing in ", literal(config.out, "bold"), known))
    try:
        do_jobs(todo, config.out, config.workers, console, output.keep)
    except KeyboardInterrupt:
        with hold_signals():
            _stop(config, jobs, left_out, output, console)
        raise
    report = make_report(config, jobs, left_out)
    write_report(report, config.out)
    print_report(report, console)
    places = ", ".join(_FILES)
    console.print(Text.assemble("in ", literal(config.out, "bold"), f": {places}"))
    return report


def _stop(
    config: CompareConfig,
    jobs: list[Job],
    left_out: list[str],
    output: OutputFolder,
    console: Console,
) -> None:
    """Report what is finished; where nothing is, what was to be replaced comes back."""
    if output.is_replacing:
        output.put_back()
        message = "stopped: nothing was finished, and the comparison that was there is back."
    else:
        write_report(make_report(config, jobs, left_out), config.out)
        missing = sum(read_result(job, config.out) is None for job in jobs)
        message = (
            f"stopped: {len(jobs) - missing} of {len(jobs)} pieces of work are kept, those under "
            "way begin anew. The same command goes on."
        )
    with contextlib.suppress(OSError):  # of a terminal that is gone
        console.print(message)


def _kinds(config: CompareConfig) -> dict[str, str]:
    """Environment → kind; refuses all that can be refused before the work."""
    kinds = {}
    for env_id in config.envs:
        env = make_env(env_id)
        require_comparable(env_id, env)
        kinds[env_id] = kind_of(env)
        env.close()
    return kinds


def plan(config: CompareConfig, kinds: dict[str, str]) -> tuple[list[Job], list[str]]:
    """All jobs, and a sentence for each agent that is left out in some environment."""
    jobs, left_out = [], []
    for env, kind in kinds.items():
        jobs += [Job.scale(config, env, kind), Job.fingerprint(config, env, kind)]
    for seed in range(config.seeds):  # all of one seed first: a stopped comparison is even
        for env, kind in kinds.items():
            for agent in config.agents:
                reason = why_not(agent, kind)
                if reason is None:
                    jobs.append(Job.run(config, env, kind, agent, seed))
                elif not seed:
                    left_out.append(f"{agent} is left out on {env}: {reason}.")
    return jobs, left_out


def _prepare(config: CompareConfig) -> OutputFolder:
    """Make the folder; with `overwrite` what another comparison left in it is set aside."""
    output = OutputFolder(config.out, (*_FOLDERS, *_FILES))
    try:
        held = output.entries()
        foreign = sorted(set(held) - {*_FOLDERS, *_FILES})
        if foreign:
            raise ValueError(
                f"out={str(config.out)!r} holds {foreign[0]!r}, which is no part of a comparison: "
                "nothing was changed. Choose another folder."
            )
        if config.overwrite and held:
            if config.out.is_symlink():
                raise ValueError(
                    f"out={str(config.out)!r} is a link to {os.path.realpath(config.out)!r}: "
                    "nothing is removed behind a link. Give that folder itself, or remove the link."
                )
            output.set_aside(held)
    except BaseException:
        output.close()
        raise
    return output


def make_report(config: CompareConfig, jobs: list[Job], left_out: list[str]) -> dict[str, Any]:
    """Everything that is known so far, as `compare.json` holds it.

    Args:
        config: of the comparison.
        jobs: all of it, done or not.
        left_out: sentences about agents that did not run.
    """
    results = [(job, read_result(job, config.out)) for job in jobs]
    done: dict[str, list[tuple[Job, dict[str, Any]]]] = {}
    for job, result in results:
        if result is not None:
            done.setdefault(job.what, []).append((job, result))
    scales = {job.env: result for job, result in done.get("scale", [])}
    runs = [
        scored(
            {
                "env": job.env,
                "kind": job.kind,
                "agent": job.settings["agent"],
                "seed": job.settings["seed"],
                **result,
            },
            scales.get(job.env, {}),
        )
        for job, result in done.get("run", [])
        if result["measure"] == "J" or job.env in scales
    ]
    scores = _scores(config, runs)
    settings: dict[str, Any] = asdict(config)
    for name in ("out", "overwrite", "workers", "zoo"):
        del settings[name]
    return {
        "settings": settings,
        "steps": {job.env: job.settings["steps"] for job in jobs if job.what == "run"},
        "versions": {name: version(name) for name in ("gymnasium", "stable-baselines3", "torch")},
        "scores": scores,
        "aggregate": aggregate(runs),
        "scales": scales,
        "fingerprints": {
            job.env: _fingerprint(job, result, scales.get(job.env), scores.get(job.env, {}))
            for job, result in done.get("fingerprint", [])
        },
        "fingerprint_rows": FINGERPRINT_ROWS,
        "left_out": left_out,
        "missing": [job.name for job, result in results if result is None],
        "runs": runs,
    }


def _scores(config: CompareConfig, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Environment → agent → what its seeds show."""
    scores: dict[str, dict[str, Any]] = {}
    for env in config.envs:
        for agent in config.agents:
            agent_runs = [run for run in runs if (run["env"], run["agent"]) == (env, agent)]
            if agent_runs:
                scores.setdefault(env, {})[agent] = summarize_runs(agent_runs, config.reach)
    return scores


def _fingerprint(
    job: Job, result: dict[str, Any], scale: dict[str, Any] | None, scores: dict[str, Any]
) -> dict[str, Any]:
    """A fingerprint, flat, with what the scale and the runs add to it."""
    flat = {**result, **result["gradient"], "kind": job.kind}
    del flat["gradient"]
    span = None if scale is None else scale["top"] - scale["baseline"]
    variance = result["return_variance"]
    flat["return_variance_scaled"] = None if span is None else variance / span**2
    learned = (scores.get(agent, {}).get("explained_variance") for agent in ("token-ppo", "ppo"))
    flat["explained_variance_reached"] = next((v for v in learned if v is not None), None)
    return flat


def write_report(report: dict[str, Any], root: Path) -> None:
    """Write `compare.json`, `compare.png` and `compare.html`."""
    write_json(root / "compare.json", report)
    if report["scores"] or report["fingerprints"]:
        draw_report(report, root / "compare.png")
    write_page(report, root / "compare.html")
