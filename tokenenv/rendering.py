"""An episode as text: the prompt, the response so far, and the reward of every token."""

from __future__ import annotations

from tokenenv.token_mdp import TokenMDP

__all__ = ["render_episode"]


def render_episode(mdp: TokenMDP, row: int) -> str:
    """Prompt, response so far and per-token reward of the episode in `row`, as lines of text."""
    language_model = mdp.language_model
    response = mdp.episodes.response(row)
    rewards = mdp.token_rewards[row, : len(response)]
    lines = [
        f"prompt    {language_model.decode(mdp.episodes.prompt(row))}",
        f"response  {language_model.decode(response)}",
    ]
    if len(response):
        lines.append("reward    token")
    for token, reward in zip(response, rewards, strict=True):
        lines.append(f"{reward:+8.4f}  {language_model.tokenizer.decode([int(token)])!r}")
    if len(response):
        reason = "" if mdp.episodes.running[row] else f"  ({mdp.episodes.finish_reason(row)})"
        lines.append(f"{rewards.sum():+8.4f}  sum of {len(response)} tokens{reason}")
    return "\n".join(lines) + "\n"
