"""What a player sees: the state, the likeliest tokens, the result."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from agents.console import literal
from agents.play.comparisons import Result
from agents.play.game import Candidate, Game
from agents.play.moves import AFTER_THE_END, COMMANDS
from tokenenv.printable import printable
from tokenenv.rendering import reward_colour, terminal_colours

__all__ = ["View"]

_BAR = 10
"""Characters of a bar that stands for certainty."""


class View:
    """Prints a game; on a terminal in the colours of `tokenenv.rendering`.

    Args:
        console: where to.
    """

    def __init__(self, console: Console) -> None:
        self.console = console

    def welcome(self, game: Game, task: str) -> None:
        """What this is, once."""
        text = Text.assemble(
            literal(task, "bold"),
            ": you are the policy and choose every token. Each pays β·log π_ref (β = ",
            f"{game.kl_coef:g}), what it costs to leave the reference; the last one pays the score "
            "as well. Who always takes the same token has KL = −log π_ref, so the sum is "
            "score − β·KL. '?' says what you can type.",
        )
        self.console.print(text)

    def help(self, game: Game) -> None:
        """What a line may be."""
        lines = {
            "1": "the first token of the list",
            "some words": "their tokens; in quotes exactly as typed: \" The\", '3'",
            "#17": f"the token with that id, #0 to #{game.language_model.vocabulary_size - 1}",
            **COMMANDS,
        }
        table = Table.grid(padding=(0, 2))
        for typed, meaning in lines.items():
            table.add_row(Text(f"  {typed}"), Text(meaning))
        self.console.print(table)

    def explain(self, message: object) -> None:
        """Why a line was no move."""
        self.console.print(literal(message))

    def state(self, game: Game) -> None:
        """Prompt, response, reward and KL so far."""
        self.console.print()
        self.console.print(Text.assemble("prompt    ", literal(game.prompt)))
        response = Text("response  ")
        for piece, reward in zip(game.token_texts, game.rewards, strict=True):
            response.append(printable(piece), _style(reward))
        self.console.print(response)
        count = len(game.rewards)
        is_last = count == game.max_new_tokens - 1 and not game.ending
        parts = [
            f"{count} of at most {game.max_new_tokens} tokens{', the next is the last' * is_last}",
            f"reward {sum(game.rewards):+.2f}",
            f"KL {game.kl:.2f}",
        ]
        if game.policy_kl is not None:
            parts.append(f"KL of the policy {game.policy_kl:.2f}")
        self.console.print(f"so far    {'   '.join(parts)}", highlight=False)

    def candidates(self, candidates: Sequence[Candidate], eos: Candidate) -> None:
        """The tokens that may come next, and what ending here would pay without the score."""
        has_policy = eos.policy_probability is not None
        table = Table(box=SIMPLE, padding=(0, 1, 0, 0), show_edge=False)
        table.add_column("", justify="right")
        table.add_column("token")
        table.add_column("reference", justify="right")
        if has_policy:
            table.add_column("policy", justify="right")
        table.add_column("pays", justify="right")
        table.add_column("")
        listed = [(str(number), one) for number, one in enumerate(candidates, 1)]
        if eos.token not in [one.token for one in candidates]:
            listed.append(("e", eos))
        for name, one in listed:
            row = [literal(name), literal(repr(one.text)), _percent(one.probability)]
            if one.policy_probability is not None:
                row.append(_percent(one.policy_probability))
            bar = "█" * round(_BAR * one.probability)
            note = f"{' ' * bool(bar)}the end: + score" * one.ends
            table.add_row(*row, Text(f"{one.reward:+.2f}"), Text.assemble((bar, "blue"), note))
        self.console.print(table)

    def took(self, texts: Sequence[str], unused: int) -> None:
        """The tokens of words that became several."""
        if len(texts) > 1 or unused:
            said = f"took {' '.join(map(repr, texts))}"
            if unused:
                said += f"; the response has ended, {unused} more of these tokens were not used"
            self.console.print(literal(said))

    def result(self, game: Game, others: Sequence[Result]) -> None:
        """The end: what was paid, what others get, and how that compares."""
        assert game.ending is not None
        you = player_result(game)
        table = Table(box=SIMPLE, padding=(0, 1, 0, 0), show_edge=False)
        headers = ("score", "KL", f"score − {game.kl_coef:g}·KL", "gold")
        table.add_column("")
        for header in headers:
            table.add_column(header, justify="right")
        table.add_column("")
        for one in (you, *others):
            gold = "" if one.gold_reward is None else f"{one.gold_reward:+.2f}"
            numbers = (f"{one.score:+.2f}", f"{one.kl:.2f}", f"{one.objective:+.2f}", gold)
            table.add_row(literal(one.who), *map(Text, numbers), literal(one.note))
        self.console.print()
        self.console.print(table)
        self.console.print(Text(verdict(you, others)))
        for command in AFTER_THE_END:
            self.console.print(Text(f"  {command}  {COMMANDS[command]}"))

    def goodbye(self, objectives: Sequence[float]) -> None:
        """The last line."""
        if objectives:
            count = "1 response" if len(objectives) == 1 else f"{len(objectives)} responses"
            said = f"{count} finished, the best at {max(objectives):+.2f}. Good-bye."
        else:
            said = "no response was finished. Good-bye."
        self.console.print(said, highlight=False)


def player_result(game: Game) -> Result:
    """What the player got."""
    ending = game.ending
    assert ending is not None
    reason = "by EOS" if ending["finish_reason"] == "stop" else "by its length"
    return Result(
        "you",
        ending["score"],
        game.kl,
        sum(game.rewards),
        ending.get("gold_reward"),
        f"ended {reason}",
    )


def verdict(you: Result, others: Sequence[Result]) -> str:
    """One or two sentences on how the player's result compares."""
    known = {other.who: other for other in others}
    reference, best = known["reference"], known.get("best response")
    if best is None:
        than = {True: "more", False: "no more"}
        return (
            f"The score is {than[you.score > reference.score]} than the reference's mean, score − "
            f"β·KL {than[you.objective > reference.objective]}. The optimum is not known here."
        )
    if you.objective > best.objective - 1e-4:  # float32 against float64
        return "No single answer gets more."
    if best.objective <= reference.objective:
        return (
            f"The best single answer gets {best.objective:+.2f}; the reference gets more, as it "
            "varies its answers and so pays no KL."
        )
    if you.objective <= reference.objective:
        return (
            "That is no more than the reference gets on average; the best single answer gets "
            f"{best.objective:+.2f}."
        )
    share = (you.objective - reference.objective) / (best.objective - reference.objective)
    return f"From the reference (0 %) to the best response (100 %) you came {share:.0%} of the way."


def _style(reward: float) -> str:
    """Rich's style of a token that was paid so."""
    ink, ground = terminal_colours(reward_colour(reward))
    return f"color({ink}) on color({ground})"


def _percent(probability: float) -> Text:
    percent = 100 * probability
    return Text("<0.01 %" if 0 < percent < 0.005 else f"{percent:.2f} %")
