"""An episode as text: the prompt, the response so far, and the reward of every token."""

from __future__ import annotations

from tokenenv.mdp import TokenMDP
from tokenenv.printable import printable

__all__ = ["render_episode"]


def render_episode(mdp: TokenMDP, row: int) -> str:
    """Prompt, response so far and per-token reward of the episode in `row`, as lines of text."""
    language_model = mdp.language_model
    response = mdp.episodes.response(row)
    rewards = mdp.token_rewards[row, : len(response)]
    lines = [
        f"prompt    {printable(language_model.decode(mdp.episodes.prompt(row)))}",
        f"response  {printable(language_model.decode(response))}",
    ]
    if len(response):
        lines.append("reward    token")
    for token, reward in zip(response, rewards, strict=True):
        text = language_model.tokenizer.decode([int(token)])
        lines.append(f"{reward:+8.4f}  {text!r}")  # repr: spaces show, controls are escapes
    if len(response):
        reason = "" if mdp.episodes.running[row] else f"  ({mdp.episodes.finish_reason(row)})"
        lines.append(f"{rewards.sum():+8.4f}  sum of {len(response)} tokens{reason}")
    return "\n".join(lines) + "\n"
