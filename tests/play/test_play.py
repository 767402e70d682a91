"""`tokenrlhf play`: what may be typed, what it does, and what is said about it."""

from __future__ import annotations

import io
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from support.hostile import ESCAPES, acting

from agents import LMActorCriticPolicy, make_vec_env
from agents.atomic_files import write_json
from agents.cli import main
from agents.config import TrainConfig
from agents.play.command import play
from agents.play.comparisons import Comparisons, Result
from agents.play.config import PlayConfig
from agents.play.game import Game
from agents.play.moves import Move, read_move
from agents.play.view import View, player_result, verdict
from tokenenv.env import TokenEnv
from tokenenv.models import load_frozen
from tokenenv.optimum import enumerate_task, solve
from tokenenv.tasks import load_task

DO, RE, MI, FA, SOL, EOS = range(6)


def typed(monkeypatch, *lines: str) -> None:
    """Let these lines be the standard input, as a pipe gives them."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))


def played(monkeypatch, *lines: str, **settings: Any) -> str:
    """What a game says in 80 columns of no terminal."""
    typed(monkeypatch, *lines)
    out = io.StringIO()
    play(PlayConfig(device="cpu", **settings), Console(file=out, width=80, emoji=False))
    assert "\x1b" not in out.getvalue() and not acting(out.getvalue())
    return out.getvalue()


def command(monkeypatch, capsys, *arguments: str, lines: tuple[str, ...] = ()) -> tuple[int, str]:
    """Exit status and output of the whole command."""
    typed(monkeypatch, *lines)
    status = main(["play", "--device", "cpu", *arguments])
    captured = capsys.readouterr()
    assert not acting(captured.out + captured.err)
    return status, captured.out + captured.err


EXACT = {"task": "exact", "prompt": "sol"}
SHORT = {**EXACT, "max_new_tokens": 4}
"""All of its responses are listed at once."""
OPTIONS = ("--task", "exact", "--prompt", "sol")


@pytest.fixture
def game():
    one = Game(TokenEnv(task="exact", split="eval", device="cpu"))
    one.reset("sol")
    return one


# Lines -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "move"),
    [
        ("1", Move(tokens=(FA,))),
        (" 3 \n", Move(tokens=(SOL,))),
        ("mi re do", Move(tokens=(MI, RE, DO))),
        ('"mi"', Move(tokens=(MI,))),
        ("#4", Move(tokens=(SOL,))),
        ("<eos>", Move(tokens=(EOS,))),
        ("do <eos>", Move(tokens=(DO, EOS))),
        ("e", Move("e")),
        ("u", Move("u")),
        ("u 3", Move("u", count=3)),
        ("undo 2", Move("u", count=2)),
        ("r", Move("r")),
        ("n", Move("n")),
        ("h", Move("?")),
        ("q", Move("q")),
    ],
)
def test_a_line_is_a_number_words_an_id_or_a_command(line, move):
    language_model = load_frozen(load_task("exact").reference)
    assert read_move(line, [FA, MI, SOL], "sol", language_model) == move


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("", r"an empty line is no move: type a number from 1 to 3, words .*#ID.* or e, u, r, n"),
        ("4", r"^4 is not in the list: type a number from 1 to 3.* in quotes"),
        ("0", r"^0 is not in the list"),
        ("9" * 5000, r"^9{40} is not in the list"),
        ("la", r"^'la' can't be spelt in the reference's tokens \('do', 're'.*type words"),
        ("mi la", "can't be spelt"),
        ("-1", "can't be spelt"),
        ('""', "can't be spelt"),
        ("#6", r"^#6 is no token id: allowed are #0 to #5"),
        ("#" + "1" * 999, "is no token id"),
        ("u 0", r"^'u 0' is no undo: 'u' takes the last token back"),
        ("u x", "is no undo"),
        ("u 1 2", "is no undo"),
    ],
)
def test_what_is_no_move_says_what_is(line, said):
    language_model = load_frozen(load_task("exact").reference)
    with pytest.raises(ValueError, match=said):
        read_move(line, [FA, MI, SOL], "sol", language_model)


def test_words_get_the_space_before_them_that_the_tokenizer_needs():
    language_model = load_frozen(load_task("reviews").reference)

    def texts(line, text="I saw this film today."):
        tokens = read_move(line, [], text, language_model).tokens
        return [language_model.tokenizer.decode([token]) for token in tokens]

    assert texts("The plot was great.") == [" The", " plot", " was", " great", "."]
    assert texts(".") == ["."] and texts('"The"') == ["The"] and texts('" The"') == [" The"]
    assert texts("The", text="today. ") == ["The"]  # the space is there already
    assert texts("I") == [" I"] and texts('"e"') == ["e"]  # a command, unless it is quoted


# The game ----------------------------------------------------------------------------------------


def test_rewards_and_kl_are_those_of_the_environment(game):
    env = TokenEnv(task="exact", split="eval", device="cpu")
    env.reset(options={"prompt": "sol"})
    total = ref_log_probs = 0.0
    for token in (FA, SOL, EOS):
        likeliest = game.candidates(6)
        listed = {candidate.token: candidate for candidate in likeliest}
        assert sum(candidate.probability for candidate in likeliest) == pytest.approx(1, abs=1e-6)
        assert [c.probability for c in likeliest] == sorted(
            (c.probability for c in likeliest), reverse=True
        )
        _, reward, _, _, info = env.step(token)
        assert listed[token].probability == pytest.approx(np.exp(info["ref_logprob"]), abs=1e-6)
        score = info.get("score", 0.0)
        assert listed[token].reward == pytest.approx(reward - score, abs=1e-5)
        assert listed[token].ends is (token == EOS)
        game.take(token)
        total, ref_log_probs = total + reward, ref_log_probs + info["ref_logprob"]
    assert sum(game.rewards) == pytest.approx(total) and game.kl == pytest.approx(-ref_log_probs)
    assert game.ending is not None and game.tokens == [FA, SOL, EOS]
    you = player_result(game)
    assert you.objective == pytest.approx(you.score - game.kl_coef * you.kl, abs=1e-5)


def test_undo_leads_back_to_the_same_state_even_from_the_end(game):
    states = []
    for token in (FA, MI, EOS):
        states.append((game.tokens, game.text, game.rewards.copy(), game.candidates(6)))
        game.take(token)
    assert game.ending is not None and game.undo(1) == 1 and game.ending is None
    for expected in reversed(states):
        assert (game.tokens, game.text, game.rewards, game.candidates(6)) == expected
        game.undo(1)
    assert game.undo(5) == 0
    game.take(SOL)
    game.take(SOL)
    assert game.undo(99) == 2 and game.tokens == [] and game.kl == 0.0


def test_another_prompt_comes_after_an_undo_as_without_it():
    prompts = []
    for goes_back in (False, True):
        game = Game(TokenEnv(task="exact", split="eval", device="cpu"))
        game.reset(seed=3)
        game.take(FA)
        if goes_back:
            game.undo(1)
        game.reset()
        game.reset()
        prompts.append(game.prompt)
    assert prompts[0] == prompts[1]


def test_the_best_response_is_the_greatest_of_all_responses():
    game = Game(TokenEnv(task="exact", max_new_tokens=4, device="cpu"))
    game.reset("sol")
    solved = solve(enumerate_task("exact", max_new_tokens=4, device="cpu"))
    tree = solved.tree
    prompt = tree.prompts.index("sol")
    objectives = (
        tree.finished(tree.scores)[prompt]
        + solved.kl_coef * (tree.response_log_probs(tree.ref_log_probs)[prompt])
    )
    comparisons = Comparisons(game._env.mdp, None, seed=0)
    results = {result.who: result for result in comparisons.of("sol")}
    best = results["best response"]
    assert best.objective == pytest.approx(objectives.max(), abs=1e-9)
    response = tree.responses()[int(objectives.argmax())]
    assert best.note == repr(tree.language_model.decode(response))
    assert results["optimum π*"].objective == pytest.approx(
        solved.optimum_by_prompt[prompt], abs=1e-9
    )
    reference = results["reference"]
    assert reference.kl == pytest.approx(0.0, abs=1e-9)
    assert reference.objective == pytest.approx(
        solved.optimum_by_prompt[prompt] - solved.gain_by_prompt[prompt], abs=1e-9
    )
    assert comparisons.of("sol") is comparisons.of("sol")  # computed once
    for token in response:
        game.take(int(token))
    assert verdict(player_result(game), list(results.values())) == "No single answer gets more."


def test_where_nothing_can_be_listed_the_reference_is_sampled():
    game = Game(TokenEnv(device="cpu", split="eval"))
    game.reset("I saw this film today.")
    (reference,) = Comparisons(game._env.mdp, None, seed=0).of("I saw this film today.")
    assert reference.kl == 0.0 and reference.objective == reference.score
    assert abs(reference.score) < 1 and reference.gold_reward is not None
    assert reference.note == "mean of 32 samples"
    for token in game.language_model.tokenizer(" The plot was great.")["input_ids"]:
        game.take(token)
    game.take(game.language_model.eos_token_ids[0])
    said = verdict(player_result(game), [reference])
    assert said.startswith("The score is more than the reference's mean, score − β·KL ")
    assert player_result(game).score > 1 and "The optimum is not known here." in said


# The command -------------------------------------------------------------------------------------


def test_a_game_from_the_first_token_to_the_comparison(monkeypatch, capsys):
    lines = ("1", "sol mi re do", "e", "q")
    status, said = command(monkeypatch, capsys, *OPTIONS, lines=lines)
    assert status == 0
    assert "exact: you are the policy" in said and "took ' sol' ' mi' ' re' ' do'" in said
    assert "response  fa sol mi re do <eos>" in said
    rows = {line.split("  ")[0]: line.split() for line in said.splitlines() if "." in line}
    you, best = rows["you"], rows["best response"]
    assert you[1:5] == best[2:6] and "No single answer gets more." in said
    assert {"reference", "optimum π*"} <= set(rows) and "policy" not in rows
    assert "1 response finished, the best at +3.04. Good-bye." in said and "> " not in said


def test_wrong_lines_are_explained_and_asked_again(monkeypatch):
    lines = ("", "77", "la la", ESCAPES, "u", "#9", "u x", "mi", "?", "e", "5", "u", "q")
    said = played(monkeypatch, *lines, **SHORT)
    flat = " ".join(said.split())
    for answer in (
        *("an empty line is no move", "77 is not in the list", "'la la' can't be spelt"),
        *("there is no token to take back: the response is empty", "#9 is no token id"),
        *("'u x' is no undo", "#17 the token with that id, #0 to #5", "undo the last token"),
        "the response has ended: type one of u, r, n, ?, q",
    ):
        assert answer in flat, answer
    assert "\\x1b[31m" in said.replace("\n", "")
    # After the wrong ones nothing was taken, and the last undo goes on before the end.
    assert said.count("response  mi <eos>\n") == 1 and said.count("response  mi\n") == 2


def test_the_end_of_the_input_ends_the_game(monkeypatch, capsys):
    status, said = command(monkeypatch, capsys, *OPTIONS, lines=("mi",))
    assert status == 0 and "no response was finished. Good-bye." in said
    monkeypatch.setattr(sys, "stdin", None)  # closed
    assert main(["play", *OPTIONS]) == 0


def test_ctrl_c_ends_it_with_a_last_line(monkeypatch, capsys):
    class Interrupted(io.StringIO):
        def readline(self, *_):
            raise KeyboardInterrupt

    monkeypatch.setattr(sys, "stdin", Interrupted())
    assert main(["play", *OPTIONS]) == 130
    assert capsys.readouterr().out.endswith("no response was finished. Good-bye.\nstopped.\n")


def test_bytes_that_are_no_text_are_no_move(monkeypatch, capsys):
    bytes_in = io.TextIOWrapper(io.BytesIO(b"\xff\xfe\nq\n"), encoding="utf-8")
    monkeypatch.setattr(sys, "stdin", bytes_in)
    assert main(["play", *OPTIONS]) == 0
    assert "can't be spelt" in capsys.readouterr().out


def test_words_beyond_the_end_are_named(monkeypatch):
    said = played(monkeypatch, "mi <eos> re re", **SHORT)
    flat = " ".join(said.split())
    assert "took 'mi' ' <eos>'; the response has ended, 2 more of these tokens" in flat
    said = played(monkeypatch, "mi re mi", "1", **SHORT)
    assert "3 of at most 4 tokens, the next is the last" in said


def test_prompts_are_drawn_by_the_seed(monkeypatch):
    def prompts(seed):
        said = played(monkeypatch, "n", "n", "n", "n", task="exact", seed=seed)
        return re.findall(r"^prompt    (\w+)$", said, re.MULTILINE)

    assert prompts(1) == prompts(1) != prompts(2)
    assert len(prompts(1)) == 5


def test_top_says_how_many_are_listed_and_eos_always_is(monkeypatch):
    said = played(monkeypatch, top=2, **EXACT)
    listed = re.findall(r"^(\w) +'([^']+)'", said, re.MULTILINE)
    assert listed == [("1", "fa"), ("2", "mi"), ("e", "<eos>")]
    said = played(monkeypatch, top=1000, **EXACT)
    assert len(re.findall(r"^\w +'", said, re.MULTILINE)) == 6


def test_colours_on_a_terminal_are_the_palettes(game):
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, color_system="256", width=80)
    game.take(SOL)
    View(console).state(game)
    assert "\x1b[38;5;16;48;5;166msol\x1b[0m" in out.getvalue()  # −1.94: the fullest orange


def test_what_prompts_and_models_say_is_shown(monkeypatch, tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("I saw \x1b[31m it \u202e.\n", encoding="utf-8")
    settings = {"max_prompt_tokens": 32, "reward_model": "reviews"}
    said = played(monkeypatch, "The plot.", "e", prompts=str(file), **settings)
    assert "\\x1b[31m" in said and "\\u202e" in said


@pytest.mark.parametrize("width", [40, 60, 80])
def test_no_line_is_wider_than_the_terminal(monkeypatch, width):
    typed(monkeypatch, "1", "e", "?", "zzz", "q")
    out = io.StringIO()
    console = Console(file=out, width=width)
    play(PlayConfig(task="exact", prompt="sol", device="cpu", max_new_tokens=4), console)
    assert max(map(len, out.getvalue().splitlines())) <= width


# A run -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """What a run on `exact` leaves of its configuration and policy, without the training."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    config = TrainConfig(
        out=folder, task="exact", kl_estimator="k2", use_kl_loss=True, max_new_tokens=4
    )
    env = make_vec_env(n_envs=1, task="exact", max_new_tokens=4, device="cpu")
    reference = load_task("exact").reference
    policy = LMActorCriticPolicy(
        env.observation_space, env.action_space, lambda _: 1e-3, actor=reference
    )
    with torch.no_grad():
        noise = torch.Generator().manual_seed(0)
        for parameter in policy.actor.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=noise))
    folder.mkdir()
    write_json(folder / "config.json", config.as_json())
    policy.save_pretrained(folder / "policy", load_frozen(reference).tokenizer)
    return folder


def test_a_runs_policy_stands_beside_the_reference(monkeypatch, run):
    said = played(monkeypatch, "mi", "e", run=run, prompt="sol")
    actor = LMActorCriticPolicy.from_pretrained(run / "policy", "cpu").actor
    tokens = TokenEnv(task="exact").mdp.encode_prompt("sol")
    with torch.no_grad():
        logits = actor(torch.as_tensor(tokens[None])).logits[0, -1].double()
    percent = 100 * torch.softmax(logits, -1)
    for number, name in enumerate(("do", "re", "mi", "fa", "sol")):
        (shown,) = re.findall(rf"^\d  '{name}' .*%", said, re.MULTILINE)[:1]
        assert float(shown.split()[4]) == pytest.approx(float(percent[number]), abs=0.006)
    assert re.search(r"^policy +[+-]", said, re.MULTILINE) and "KL of the policy" in said


def test_the_kl_of_the_policy_is_that_of_the_tokens(run):
    actor = LMActorCriticPolicy.from_pretrained(run / "policy", "cpu").actor
    game = Game(TokenEnv(task="exact", device="cpu"), actor)
    game.reset("sol")
    game.take(MI)
    candidate = game.candidate(RE)
    game.take(RE)
    first = game.policy_log_probs[0] - game.ref_log_probs[0]
    second = np.log(candidate.policy_probability) - np.log(candidate.probability)
    assert game.policy_kl == pytest.approx(first + second, abs=1e-5) and abs(second) > 1e-4
    game.undo(1)
    assert game.policy_kl == pytest.approx(first, abs=1e-6)


def test_a_run_that_names_code_needs_trust(monkeypatch, capsys, run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    content = json.loads((copy / "config.json").read_text())
    write_json(copy / "config.json", {**content, "reward_model": "no_such_module:reward"})
    status, said = command(monkeypatch, capsys, "--run", str(copy))
    assert status == 2 and "--trust-code" in said
    status, said = command(monkeypatch, capsys, "--run", str(copy), "--trust-code")
    assert status == 2 and "no_such_module" in said and "--trust-code" not in said


# Settings ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"top": 0}, "top=0 must be"),
        ({"seed": -1}, "seed=-1 must be"),
        ({"kl_coef": float("nan")}, "kl_coef=nan must be"),
        (
            {"run": Path("x"), "task": "exact", "kl_coef": 0.1},
            r"--run takes .* and --task, --kl-coef would change it",
        ),
    ],
)
def test_wrong_settings_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        PlayConfig(**settings)


@pytest.mark.parametrize(("prompt", "said"), [("do re mi", "max_prompt_tokens=2"), ("", "empty")])
def test_a_prompt_that_is_too_long_or_empty_is_refused(monkeypatch, prompt, said):
    with pytest.raises(ValueError, match=said):
        played(monkeypatch, task="exact", prompt=prompt)


def test_at_beta_0_there_is_no_soft_optimum_and_the_game_goes_on(monkeypatch):
    said = played(monkeypatch, "mi", "e", kl_coef=0.0, **EXACT)
    assert "mean of 32 samples" in said and "optimum π*" not in said


def test_the_verdict_says_where_a_result_lies():
    def result(who, objective):
        return Result(who, score=1.0, kl=1.0, objective=objective)

    def said(you, reference, best):
        others = [result("reference", reference), result("best response", best)]
        return verdict(result("you", you), others)

    assert said(1.5, 1.0, 3.0) == (
        "From the reference (0 %) to the best response (100 %) you came 25% of the way."
    )
    assert said(0.5, 1.0, 3.0).endswith("the best single answer gets +3.00.")
    assert said(-2.0, 1.0, -1.0).startswith("The best single answer gets -1.00; the reference")
    assert said(3.0, 1.0, 3.0) == said(-1.0, 1.0, -1.0) == "No single answer gets more."
