"""`tokenrlhf sample`: responses of a run's policy and of its reference to one prompt."""

from __future__ import annotations

from rich.console import Console

from agents.evaluation import respond
from agents.policy import LMActorCriticPolicy
from agents.runs.config import SampleConfig
from agents.runs.folder import RunFolder
from agents.runs.prompts import prompt_of
from agents.runs.tables import print_responses
from tokenenv.mdp import TokenMDP
from tokenenv.settings import EnvSettings

__all__ = ["sample_from_run"]


def sample_from_run(config: SampleConfig, console: Console) -> None:
    """Sample, score and print.

    Raises:
        ValueError: there is no such run, or the prompt can't be used.
    """
    run = RunFolder.open(config.run)
    trained = run.read_config(config.trust_code)
    mdp = TokenMDP(EnvSettings(**run.environment(trained, "eval")), num_envs=1)
    origin = mdp.origin_of(prompt_of(config.prompt, config.prompt_json))
    text, prompt = mdp.book.text_of(origin), mdp.encode_prompt(origin)
    policy = LMActorCriticPolicy.from_pretrained(run.policy, mdp.settings.device)
    reference = mdp.language_model.model
    for title, actor in (("policy", policy.actor), ("reference", reference)):
        count = 1 if config.greedy else config.n
        reports = respond(
            actor,
            mdp.scorer,
            [text] * count,
            [prompt] * count,
            mdp.max_new_tokens,
            config.seed,
            config.greedy,
            [origin] * count,
        )
        print_responses(console, title, reports)
