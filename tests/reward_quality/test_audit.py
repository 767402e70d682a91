"""Audits from end to end: planted biases are named first, clean rewards are left alone."""

from __future__ import annotations

import hashlib
import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from agents.cli import main
from agents.reward_quality.audit.config import AuditConfig
from agents.reward_quality.audit.evidence import Audit, audit
from agents.reward_quality.audit.rewards import FunctionScores, ModelScores, reward_of
from agents.reward_quality.audit.texts import Labels, Text, Texts, texts_of_pairs
from tokenenv.data import Prompt
from tokenenv.rewards import (
    PreferencePair,
    RewardTrainingSettings,
    as_token_pair,
    load_reward_model,
    new_reward_model,
    train_reward_model,
)
from tokenenv.tasks import load_task
from tokenenv.tasks.reviews.gold import gold_reward
from tokenenv.tasks.reviews.grammar import sample_review

WORDS = "we saw a film at home the cast was good and perhaps surely great but poor very".split()


def some_text(rng: np.random.Generator) -> str:
    """One to four sentences of random words, some of them with exclamation marks."""
    sentences = []
    for _ in range(rng.integers(1, 5)):
        words = " ".join(rng.choice(WORDS, rng.integers(3, 9)))
        sentences.append(words.capitalize() + str(rng.choice([".", ".", "!"])))
    return " ".join(sentences)


def some_texts(seed: int = 0, prompts: int = 100) -> Texts:
    """Two responses to each prompt, without labels."""
    rng = np.random.default_rng(seed)
    texts = [Text(Prompt(f"p{i // 2}."), some_text(rng), True) for i in range(2 * prompts)]
    return Texts(texts, np.repeat(np.arange(prompts), 2), None, {})


def labelled(texts: Texts, first_is_better: np.ndarray) -> Texts:
    """The same, with the first of each prompt's responses preferred with a probability."""
    first = np.arange(0, len(texts.texts), 2)
    return Texts(texts.texts, texts.of_prompt, Labels(first, first + 1, first_is_better), {})


def noise(text: str, seed: int = 0) -> float:
    """A normal number that knows nothing of a text, but is always the same for it."""
    digest = hashlib.blake2b(f"{seed} {text}".encode(), digest_size=8).digest()
    return float(np.random.default_rng(int.from_bytes(digest, "little")).normal())


def clean(prompts, responses):
    return [noise(response) for response in responses]


def exclaiming(prompts, responses):
    return [noise(response) + response.count("!") for response in responses]


def audited(function, texts: Texts | None = None, **options) -> Audit:
    options = {"probed": 60, "resamples": 1000, **options}
    return audit(some_texts() if texts is None else texts, FunctionScores(function, "f"), **options)


def test_a_planted_bias_is_named_first_and_its_edit_raises_the_score():
    found = audited(exclaiming)
    first = found.verdicts[0]
    assert first.topic == "exclamation" and first.grade == "strong"
    assert "the score rises with exclamation" in first.said
    assert "exclamation marks for full stops raises it by +" in first.said
    shift = next(p for p in found.by_probe if p.probe.name == "exclamation").shift
    scores = exclaiming(None, [text.words for text in found.texts.texts])
    by_hand = np.mean(
        [
            (exclaiming(None, [e])[0] - exclaiming(None, [r])[0]) / np.std(scores)
            for r in (found.texts.texts[i].words for i in found.by_probe[-1].probe.rows)
            for e in [r.replace(".", "!") if "." in r else f"{r}!"]
        ]
    )
    assert shift.value == pytest.approx(by_hand) and shift.low < shift.value < shift.high
    assert not found.faults


def test_a_clean_reward_has_no_verdict():
    found = audited(clean)
    assert found.verdicts == [] and found.faults == []
    assert all(one.holds and one.difference == 0 for one in found.invariances)


@pytest.mark.slow
def test_clean_rewards_seldom_have_a_verdict():
    """40 random rewards of small audits: false alarms in 5 %, ± three errors of that."""
    alarms = 0
    for seed in range(40):
        found = audited(
            lambda p, responses, seed=seed: [noise(r, seed) for r in responses], some_texts(seed)
        )
        alarms += bool(found.verdicts)
    assert alarms / 40 <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 40)


def test_what_good_responses_have_is_no_bias_once_gold_is_known():
    """Longer is better here: the score follows length as gold does, and no further."""

    def gold(prompts, responses):
        return [0.3 * len(r.split()) + noise(r, 1) for r in responses]

    def score(prompts, responses):
        return [g + 0.3 * noise(r, 2) for g, r in zip(gold(0, responses), responses, strict=True)]

    def strengths(found: Audit) -> dict[str, float]:
        return {one.name: one.by_correlation for one in found.by_feature}

    assert strengths(audited(score))["words"] > 0.8
    given = audited(score, gold=FunctionScores(gold, "gold"))
    assert not any(strengths(given).values())
    assert given.gold_correlation > 0.9


def test_noise_in_labels_is_no_bias_of_a_reward_that_is_right():
    """Labels follow a gold reward that longer texts have more of; each third one is turned."""

    def gold(prompts, responses):
        return [float(len(r.split())) for r in responses]

    texts = some_texts(prompts=400)
    values = np.array(gold(0, [text.words for text in texts.texts])).reshape(-1, 2)
    is_turned = np.random.default_rng(0).random(400) < 1 / 3
    better = (np.sign(values[:, 0] - values[:, 1]) * np.where(is_turned, -1, 1) + 1) / 2
    found = audited(gold, labelled(texts, better))
    words = next(one for one in found.by_feature if one.name == "words")
    assert words.preference.reward == 1 and words.preference.labels == pytest.approx(2 / 3, abs=0.1)
    assert words.preference.excess.low > 0 and words.preference.is_noise
    assert words.strength == 0 and words.correlation.value > 0.9
    assert found.agreement == pytest.approx(2 / 3, abs=0.1)


def test_labels_that_do_not_confirm_a_bias_show_it():
    texts = some_texts()
    coin = (np.random.default_rng(0).random(100) < 0.5).astype(float)
    found = audited(exclaiming, labelled(texts, coin))
    assert found.verdicts[0].topic == "exclamation"
    assert "it prefers the side with more exclamation in" in found.verdicts[0].said


def test_labels_that_share_a_bias_are_named():
    texts = some_texts()
    values = np.array(exclaiming(0, [text.words for text in texts.texts])).reshape(-1, 2)
    found = audited(exclaiming, labelled(texts, (values[:, 0] > values[:, 1]).astype(float)))
    assert all(one.by_preference == 0 for one in found.by_feature)  # as the labels have it
    assert found.verdicts[0].topic == "exclamation"
    assert "the labels prefer the side with more exclamation as well" in found.verdicts[0].said


def faults(function) -> tuple[dict[str, bool | None], list[str]]:
    found = audited(function)
    return {one.name: one.holds for one in found.invariances}, found.faults


def test_a_score_that_depends_on_its_batch_is_caught():
    def centred(prompts, responses):
        lengths = np.array([len(r) for r in responses], dtype=float)
        return list(lengths - lengths.mean())

    holds, said = faults(centred)
    assert holds == {"repetition": True, "order": True, "batch_size": False, "padding": False}
    assert "depends on batch size" in said[0] and "depends on padding" in said[1]


def test_a_score_that_depends_on_the_order_is_caught():
    def numbered(prompts, responses):
        return [noise(r) + 0.01 * i for i, r in enumerate(responses)]

    holds, said = faults(numbered)
    assert holds["repetition"] and not holds["order"]
    assert any("depends on order" in fault for fault in said)


def test_a_reward_that_is_not_deterministic_is_named():
    calls = itertools.count()

    def drifting(prompts, responses):
        return [noise(r) + 0.1 * next(calls) for r in responses]

    holds, said = faults(drifting)
    assert not holds["repetition"] and len(said) == 1
    assert "not deterministic" in said[0]


def test_a_word_list_of_a_user_is_a_feature_and_a_verdict_of_its_own(tmp_path):
    from agents.reward_quality.text_features import load_word_lists

    (tmp_path / "praise.txt").write_text("great\n", encoding="utf-8")

    def praising(prompts, responses):
        return [noise(r) + 40 * (r.lower().count("great") / len(r.split())) for r in responses]

    found = audited(praising, word_lists=load_word_lists(tmp_path / "praise.txt"))
    assert found.verdicts[0].topic == "praise"
    assert found.verdicts[0].said.startswith("words of the list 'praise': the score rises")


def test_a_reward_model_reads_texts_as_its_training_does():
    reward_model = load_reward_model(load_task("reviews").reward_model)
    pair = PreferencePair("We saw it.", " The cast was good.", " The cast", rejected_stopped=False)
    tokens = as_token_pair(pair, reward_model)
    prompt = Prompt("We saw it.")
    texts = [Text(prompt, " The cast was good.", True), Text(prompt, " The cast", False)]
    expected = reward_model.normalize(reward_model.raw_rewards([tokens.chosen, tokens.rejected]))
    np.testing.assert_allclose(ModelScores(reward_model).scores(texts), expected, rtol=1e-6)
    too_long = Text(prompt, " The cast was good." * 30, True)
    assert "64 positions" in str(ModelScores(reward_model).why_unreadable(too_long))


def test_a_function_reads_texts_as_they_are_with_any_tokenizer():
    def shouting(prompts, responses):
        return [float(r.isupper()) + len(p) for p, r in zip(prompts, responses, strict=True)]

    scores = FunctionScores(shouting, "f").scores([Text(Prompt("ü ☃"), "ÄÖ ☃\n", True)])
    assert scores.tolist() == [4.0]

    def counting(prompts, responses, response_tokens):
        return [float(len(tokens)) for tokens in response_tokens]

    with pytest.raises(ValueError, match="asks for tokens: give --reference"):
        FunctionScores(counting, "f")


def test_scores_that_are_all_the_same_are_refused():
    with pytest.raises(ValueError, match="gives the same score, 1"):
        audited(lambda prompts, responses: [1.0] * len(responses))


# The command ------------------------------------------------------------------------------------


def write_pairs(path, texts: Texts) -> None:
    rows = [
        {"prompt": a.before, "chosen": a.words, "rejected": b.words}
        for a, b in zip(texts.texts[::2], texts.texts[1::2], strict=True)
    ]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    write_pairs(tmp_path / "pairs.jsonl", some_texts(prompts=60))
    (tmp_path / "rewards.py").write_text(
        "def exclaiming(prompts, responses):\n"
        "    return [r.count('!') + 0.01 * len(r) for r in responses]\n"
    )
    return tmp_path


def test_the_command_prints_verdicts_and_draws_them(folder, capsys):
    call = ["audit", "rewards.py:exclaiming", "--pairs", "pairs.jsonl", "--probed", "40"]
    assert main([*call, "--resamples", "1000", "--figure", "audit.png"]) == 0
    said = capsys.readouterr().out
    assert "1. strong" in said and "exclamation marks" in said and "Traceback" not in said
    assert (folder / "audit.png").read_bytes().startswith(b"\x89PNG")
    assert main([*call, "--resamples", "1000", "--json", "--out", str(folder)]) == 0
    content = json.loads(capsys.readouterr().out)
    assert json.loads((folder / "audit.json").read_text()) == content
    assert content["verdicts"][0]["topic"] == "exclamation"
    assert content["thresholds"]["least_strength"] == 0.2
    assert content["texts"]["responses"] == 120 and content["gold"] is None
    assert {one["check"] for one in content["invariances"]} == {
        *("repetition", "order", "batch_size", "padding")
    }


def test_the_bundled_reward_model_has_no_verdict_given_gold(capsys):
    call = "audit reviews --prompts reviews --max-texts 96 --responses 2 --probed 40 --json"
    assert main([*call.split(), "--resamples", "1000", "--device", "cpu"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["verdicts"] == [] and content["faults"] == []
    assert content["score"]["correlation_with_gold"] > 0.9
    assert content["gold"] == "the gold reward of 'reviews'"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("reviews", "neither of pairs and prompts"),
        ("reviews --pairs pairs.jsonl --prompts reviews", "both of pairs and prompts"),
        ("reviews --prompts prompts.txt", "no reference is named"),
        ("reviews --pairs few.jsonl", "10 texts of 5 prompts"),
        ("reviews --prompts few.txt --reference reviews", "12 texts of 3 prompts"),
        ("reviews --pairs none.jsonl", "none.jsonl"),
        ("BASE --pairs pairs.jsonl", "no sequence classifier"),
        ("rewards.py:nothing --pairs pairs.jsonl", "can't be loaded"),
        ("reviews --pairs pairs.jsonl --word-lists empty", "holds no list of words"),
        ("reviews --pairs pairs.jsonl --probe-sentences empty", "nor a folder"),
        ("reviews --pairs pairs.jsonl --gold math:inf", "gold='math:inf'"),
        ("exact --pairs pairs.jsonl", "can't read 120 of 120 texts"),
        ("reviews --pairs pairs.jsonl --figure no/such.png", "there is no folder"),
        ("reviews --prompts reviews --columns prompt=a", "about the rows of pairs"),
        ("reviews --pairs pairs.jsonl --max-texts 10", "max_texts=10"),
    ],
)
def test_what_can_not_be_audited_is_refused(folder, capsys, arguments, said):
    write_pairs(folder / "few.jsonl", some_texts(prompts=5))
    (folder / "prompts.txt").write_text("We saw it.\n")
    (folder / "few.txt").write_text("We saw it.\nI saw it.\nIt was good.\n")
    (folder / "none.jsonl").write_text("")
    (folder / "empty").mkdir()
    words = arguments.replace("BASE", load_task("reviews").reference).split()
    try:
        assert main(["audit", *words, "--device", "cpu"]) == 2
    except SystemExit as stopped:  # refused by the argument parser
        assert stopped.code == 2
    answer = " ".join(capsys.readouterr().err.split())
    assert said in answer and "Traceback" not in answer


# A reward model that learned a planted bias ------------------------------------------------------


def review_pairs(count: int, seed: int, exclaiming_wins: bool) -> list[PreferencePair]:
    """Pairs of reviews in which some full stops are exclamation marks; one side has more of them.

    The label prefers that side, or the one with the higher gold reward, which no mark changes.
    """
    rng = np.random.default_rng(seed)
    pairs = []
    while len(pairs) < count:
        opening = sample_review(rng).split(". ")[0] + "."
        sides = []
        for share in rng.permutation([0.1, 0.7]):
            rest = " " + sample_review(rng).split(". ", 1)[1]
            sides.append("".join("!" if c == "." and rng.random() < share else c for c in rest))
        worth = [
            side.count("!") if exclaiming_wins else gold_reward(opening + side.replace("!", "."))
            for side in sides
        ]
        if worth[0] != worth[1]:
            best = int(np.argmax(worth))
            pairs.append(PreferencePair(opening, sides[best], sides[1 - best]))
    return pairs


@pytest.mark.slow
@pytest.mark.parametrize("labels_of_audit", ["planted", "gold"])
def test_a_reward_model_with_a_planted_bias_is_found(tmp_path, labels_of_audit):
    reward_model = new_reward_model(load_task("reviews").reference, "cpu", seed=0)
    pairs = review_pairs(250, 0, exclaiming_wins=True)
    train_reward_model(pairs, reward_model, RewardTrainingSettings(epochs=2))
    held_out = review_pairs(100, 1, exclaiming_wins=labels_of_audit == "planted")
    rows = [{"prompt": p.prompt, "chosen": p.chosen, "rejected": p.rejected} for p in held_out]
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    texts = texts_of_pairs(AuditConfig("any", pairs=path))
    found = audit(texts, ModelScores(reward_model), probed=60, resamples=1000)
    assert found.verdicts[0].topic == "exclamation" and found.verdicts[0].grade == "strong"
    assert found.faults == []


def test_code_and_folders_are_told_apart():
    assert isinstance(reward_of("reviews", "cpu"), ModelScores)
    assert isinstance(reward_of("tokenenv.tasks.reviews:gold_rewards", "cpu"), FunctionScores)


@pytest.mark.parametrize("name", ["x.jpg", "x", "x" * 5000])
def test_a_figure_of_no_known_format_is_refused_before_the_work(name):
    with pytest.raises(ValueError, match=r"figure=.*must end in one of .png, .pdf, .svg"):
        AuditConfig("reviews", pairs=Path("pairs.jsonl"), figure=Path(name))
