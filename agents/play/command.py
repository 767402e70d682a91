"""`tokenrlhf play`: a person in the place of the policy, line by line."""

from __future__ import annotations

import contextlib
from typing import Any

from rich.console import Console

from agents.console import typed_lines
from agents.play.comparisons import Comparisons
from agents.play.config import PlayConfig
from agents.play.game import Candidate, Game
from agents.play.moves import AFTER_THE_END, Move, read_move
from agents.play.view import View
from agents.policy import LMActorCriticPolicy
from agents.runs.folder import RunFolder
from agents.runs.prompts import prompt_of
from tokenenv.env import TokenEnv

__all__ = ["play"]


def play(config: PlayConfig, console: Console) -> None:
    """Play until the end of the input, 'q' or Ctrl-C.

    Raises:
        ValueError: the settings, the run or the prompt can't be used; or a reward function fails.
        KeyboardInterrupt: by Ctrl-C or another signal, after a last line.
    """
    env, policy = _environment(config)
    player = _Player(env, policy, config, console)
    try:
        player.run()
    finally:
        with contextlib.suppress(OSError):  # of a terminal that is gone
            player.view.goodbye(player.objectives)


def _environment(config: PlayConfig) -> tuple[TokenEnv, Any]:
    """The environment, and the policy of a run or None."""
    if config.run is None:
        return TokenEnv(**config.environment()), None
    run = RunFolder.open(config.run)
    settings = run.environment(run.read_config(config.trust_code), "eval")
    # Whoever plays is paid at every token, whatever the training did.
    settings.update(scoring="step", kl_shaping="k1", group_size=1)
    if config.device is not None:
        settings["device"] = config.device
    env = TokenEnv(**settings)
    policy = LMActorCriticPolicy.from_pretrained(run.policy, env.settings.device)
    return env, policy.actor


class _Player:
    """The loop of one command."""

    def __init__(self, env: TokenEnv, policy: Any, config: PlayConfig, console: Console) -> None:
        self.config, self.console = config, console
        self.game, self.view = Game(env, policy), View(console)
        self.others = Comparisons(env.mdp, policy, config.seed)
        self.objectives: list[float] = []
        prompt = config.prompt and prompt_of(config.prompt, config.prompt_json)
        self.game.reset(prompt, config.seed)
        self.view.welcome(self.game, env.mdp.task.name)

    def run(self) -> None:
        """Show the state and take a line, until there is none."""
        self._show()
        for line in typed_lines():
            try:
                move = self._move(line)
            except ValueError as error:
                self.view.explain(error)
                continue
            if move.command == "q":
                return
            self._do(move)

    def _move(self, line: str) -> Move:
        """The move that a line asks for; ValueError where it is none that can be made now."""
        game = self.game
        if game.ending:
            with contextlib.suppress(ValueError):
                move = read_move(line, [], game.text, game.language_model)
                if move.command in AFTER_THE_END:
                    return move
            raise ValueError(
                f"the response has ended: type one of {', '.join(AFTER_THE_END)} ('u' takes its "
                "last token back)."
            )
        listed = [candidate.token for candidate in game.candidates(self.config.top)]
        move = read_move(line, listed, game.text, game.language_model)
        if move.command == "u" and not game.tokens:
            raise ValueError("there is no token to take back: the response is empty.")
        return move

    def _do(self, move: Move) -> None:
        game = self.game
        if move.command == "?":
            self.view.help(game)
            return
        if move.command == "u":
            game.undo(move.count)
        elif move.command == "r":
            game.undo(len(game.tokens))
        elif move.command == "n":
            game.reset()
        else:
            eos = self._likeliest_eos().token
            self._take((eos,) if move.command == "e" else move.tokens)
        self._show()

    def _take(self, tokens: tuple[int, ...]) -> None:
        game = self.game
        before = len(game.tokens)
        for token in tokens:
            game.take(token)
            if game.ending:
                self.objectives.append(sum(game.rewards))
                break
        taken = game.token_texts[before:]
        self.view.took(taken, len(tokens) - len(taken))

    def _show(self) -> None:
        game, view = self.game, self.view
        view.state(game)
        if game.ending:
            with self.console.status("what others get"):
                others = self.others.of(game.prompt, game.origin)
            view.result(game, others)
        else:
            view.candidates(game.candidates(self.config.top), self._likeliest_eos())

    def _likeliest_eos(self) -> Candidate:
        """Of the tokens that end a response, the likeliest."""
        ends = map(self.game.candidate, self.game.language_model.eos_token_ids)
        return max(ends, key=lambda candidate: candidate.probability)
