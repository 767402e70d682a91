"""`table_of_texts`: a token table from prompts and responses as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from agents.credit.episodes import given_response, sampled_responses
from agents.credit.settings import UpdateSettings
from agents.credit.table import TokenTable, token_table
from agents.policy import LMActorCriticPolicy
from tokenenv.mdp import TokenMDP
from tokenenv.settings import EnvSettings

__all__ = ["table_of_texts"]


def table_of_texts(
    policy: LMActorCriticPolicy,
    environment: Mapping[str, Any],
    prompts: Sequence[Any],
    responses: Sequence[str] | None = None,
    settings: UpdateSettings | None = None,
    *,
    seed: int = 0,
    exact: bool = False,
) -> TokenTable:
    """The token table of responses that are given as text, or of one sampled for each prompt.

    Args:
        policy: whose actor and critic are looked at.
        environment: keyword arguments of `gym.make("TokenRLHF-v0")`.
        prompts: B texts, or prompts as `tokenenv.data.as_prompt` takes them; one may be there
            several times.
        responses: B texts, with their spaces as the policy writes them; None: sampled.
        settings: of the agent; its defaults otherwise. β is the environment's where it has none.
        seed: of the sampling.
        exact: compute exact strengths as well, over all trainable parameters.

    Raises:
        ValueError: prompts and responses are not equally many, one of them can't be used, or as
            `token_table`.
    """
    if responses is not None and len(responses) != len(prompts):
        raise ValueError(
            f"{len(prompts)} prompts and {len(responses)} responses: give one response for each "
            "prompt, or leave responses out to have them sampled."
        )
    mdp = TokenMDP(EnvSettings(**environment), num_envs=1)
    origins = [mdp.origin_of(prompt) for prompt in prompts]
    encoded = [mdp.encode_prompt(origin) for origin in origins]
    if responses is None:
        episodes = sampled_responses(policy, mdp, encoded, seed, origins)
    else:
        rows = zip(responses, encoded, origins, strict=True)
        episodes = [given_response(text, prompt, mdp, origin) for text, prompt, origin in rows]
    settings = settings or UpdateSettings()
    if settings.kl_coef is None:
        settings = replace(settings, kl_coef=mdp.kl_coef)
    if settings.max_new_tokens is None:
        settings = replace(settings, max_new_tokens=mdp.max_new_tokens)
    return token_table(policy, mdp.scorer, episodes, settings, exact=exact)
