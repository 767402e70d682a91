"""`tokenrlhf explain`: the token table of one response, in the terminal or as JSON."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from agents.atomic_files import json_text
from agents.config import TrainConfig
from agents.console import literal
from agents.credit import (
    TokenTable,
    Truth,
    UpdateSettings,
    given_response,
    has_truth,
    read_tokens,
    sampled_responses,
    token_files,
    token_table,
)
from agents.evaluation import exact_solution
from agents.policy import LMActorCriticPolicy
from agents.runs.config import ExplainConfig
from agents.runs.folder import RunFolder
from agents.runs.prompts import prompt_of
from agents.settings import value_loss_weight
from tokenenv.maths import GROUPED
from tokenenv.mdp import TokenMDP
from tokenenv.settings import EnvSettings

__all__ = ["explain", "explain_response"]

BAR = 16
"""Characters of the longest bar."""

WIDE = 120
"""Columns of a terminal from which on everything is shown."""


def explain(config: ExplainConfig, console: Console) -> None:
    """Print the token table of a response of a run's policy.

    Raises:
        ValueError: the run, the prompt or the response can't be used.
    """
    table = explain_response(config)
    if config.json:
        line = json_text({"header": table.header, "response": table.responses[0]})
        console.print(line.rstrip(), markup=False, highlight=False, soft_wrap=True)
        return
    response = table.responses[0]
    console.print(Text.assemble(literal(response["prompt"], "dim"), literal(response["response"])))
    console.print(_rows(table, console.width))
    for line in _notes(table):
        console.print(line, highlight=False)


def explain_response(config: ExplainConfig) -> TokenTable:
    """The token table of one response of a run's policy.

    Raises:
        ValueError: the run, the prompt or the response can't be used.
    """
    run = RunFolder.open(config.run)
    trained = run.read_config(config.trust_code)
    mdp = TokenMDP(EnvSettings(**{**run.environment(trained, "eval"), "group_size": 1}), num_envs=1)
    policy = LMActorCriticPolicy.from_pretrained(run.policy, mdp.settings.device)
    settings = _settings(run, trained, mdp)
    origin = mdp.origin_of(prompt_of(config.prompt, config.prompt_json))
    prompt = mdp.encode_prompt(origin)
    episodes = []
    if config.response is not None:
        episodes.append(given_response(config.response, prompt, mdp, origin))
    group = max(2, settings.group_size) if settings.advantage_estimator in GROUPED else 1
    count = group - len(episodes)
    episodes += sampled_responses(policy, mdp, [prompt] * count, config.seed, [origin] * count)
    solution = exact_solution(mdp, [origin])
    truth = None
    if solution is not None and settings.kl_coef is not None and has_truth(settings):
        truth = Truth.of(policy, solution, settings.kl_coef)
    table = token_table(policy, mdp.scorer, episodes, settings, exact=config.exact, truth=truth)
    return TokenTable(table.header, table.responses[:1])


def _settings(run: RunFolder, trained: TrainConfig, mdp: TokenMDP) -> UpdateSettings:
    """Those of the run's last token table, with its whitening; else those of its configuration."""
    if token_files(run.root):
        return UpdateSettings.from_header(read_tokens(run.root).header)
    buffer, agent = trained.rollout_buffer(), trained.agent()
    names = (
        *("gamma", "gae_lambda", "kl_estimator", "use_kl_loss", "clip_range", "clip_range_vf"),
        *("clip_range_high", "loss_aggregation", "loss_divisor"),
    )
    of_buffer = ("gae_lambda_value", "gae_lambda_alpha", "vine_samples")
    estimator = buffer["advantage_estimator"]
    return UpdateSettings(
        advantage_estimator=estimator,
        group_size=buffer["group_size"],
        kl_coef=mdp.kl_coef,
        ent_coef=trained.ent_coef,
        vf_coef=value_loss_weight(trained.vf_coef, estimator),
        whiten_advantages=trained.whiten_advantages,
        max_new_tokens=mdp.max_new_tokens,
        **{name: agent[name] for name in names},
        **{name: buffer[name] for name in of_buffer if name in buffer},
    )


# What is printed ---------------------------------------------------------------------------------

_SHOWN: dict[str, tuple[str, str, bool]] = {
    "log_prob": ("log π", ".2f", True),
    "ref_log_prob": ("log π_ref", ".2f", False),
    "kl": ("KL", "+.2f", True),
    "entropy": ("entropy", ".2f", False),
    "reward": ("reward", "+.3f", True),
    "value": ("V", "+.2f", True),
    "delta": ("δ", "+.2f", False),
    "advantage": ("A", "+.2f", True),
    "true_advantage": ("true A", "+.2f", True),
    "whitened": ("whitened", "+.2f", False),
    "exact_strength": ("exact", ".2f", True),
    "strength": ("strength", ".2f", True),
}
"""Column → its title, its format, and whether a narrow terminal shows it."""


def _rows(table: TokenTable, width: int) -> Table:
    """The tokens with their numbers; columns of which nothing is known are left out."""
    columns = table.responses[0]["columns"]
    names = [
        name
        for name, (_, _, always) in _SHOWN.items()
        if (always or width >= WIDE) and any(value is not None for value in columns[name])
    ]
    rows = Table(box=None, pad_edge=False)
    rows.add_column("token", no_wrap=True, max_width=24)
    for name in names:
        rows.add_column(_SHOWN[name][0], justify="right", no_wrap=True)
    rows.add_column("", no_wrap=True)
    longest = max(columns["strength"], default=0.0) or 1.0
    for i, text in enumerate(columns["text"]):
        cells = [_cell(columns[name][i], _SHOWN[name][1]) for name in names]
        share = columns["strength"][i] / longest
        style = "blue" if columns["weight"][i] >= 0 else "dark_orange"
        rows.add_row(literal(repr(text)), *cells, Text("█" * max(1, round(BAR * share)), style))
    return rows


def _cell(value: float | None, form: str) -> str:
    return "" if value is None else format(round(value, 3) + 0.0, form)


def _lambda_note(header: dict[str, Any]) -> str:
    """λ of the advantages, where the estimator leaves one to choose."""
    if header["estimator"] != "gae":
        return ""
    alpha = header.get("gae_lambda_alpha")
    return f", λ = {header['gae_lambda']:g}" if alpha is None else f", λ = 1 − 1/({alpha:g}·length)"


def _notes(table: TokenTable) -> list[str]:
    header, response = table.header, table.responses[0]
    gold = response["gold_reward"]
    lines = [
        f"score {response['score']:+.2f}"
        + ("" if gold is None else f", gold reward {gold:+.2f}")
        + f", ended by {response['finish_reason']}; β = {header['kl_coef']:g}",
        f"A by {header['estimator']}, γ = {header['gamma']:g}" + _lambda_note(header),
    ]
    whitening = header["whitening"]
    if whitening is not None:
        lines.append(
            f"whitened with mean {whitening['mean']:+.3f} and deviation "
            f"{whitening['deviation']:.3f} of {whitening['of']}"
        )
    lines.append(
        "strength: |whitened A|·‖∇ log π‖ in the output layer; blue makes the token more likely, "
        "orange less"
    )
    return lines
