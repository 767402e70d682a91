"""Facts about the reviews task: grammar, gold reward and prompts."""

from __future__ import annotations

import itertools
import math
import string
import time

import numpy as np
import pytest
from support.grammar_sentences import GrammarSentence, enumerate_sentences

from tokenenv.tasks.reviews.gold import gold_breakdown, gold_reward
from tokenenv.tasks.reviews.grammar import (
    ASPECT_GROUPS,
    ASPECTS,
    GROUP_OF,
    SENTIMENT_WORDS,
    count_reviews,
    enumerate_openings,
    review_entropy,
    sample_review,
    vocabulary,
)
from tokenenv.tasks.reviews.parsing import parse_review, review_log_prob
from tokenenv.tasks.reviews.prompts import SPLITS, reviews_prompts

OPENING = "I saw this film last night."
MILD = f"{OPENING} The plot was good. I liked the cast."  # an honest, mildly positive review


@pytest.fixture(scope="module")
def sentences() -> dict[str, list[GrammarSentence]]:
    return {aspect: list(enumerate_sentences(aspect)) for aspect in ASPECTS}


@pytest.fixture(scope="module")
def samples() -> list[str]:
    rng = np.random.default_rng(7)
    return [sample_review(rng) for _ in range(20_000)]


# --- grammar ----------------------------------------------------------------------------------


def _orders(aspects, number):
    """Every allowed order of `number` aspects: no two from one side of the film."""
    for chosen in itertools.permutations(aspects, number):
        if len({GROUP_OF[aspect] for aspect in chosen}) == number:
            yield chosen


def test_no_string_has_two_derivations(sentences):
    texts = [sentence.text for group in sentences.values() for sentence in group]
    openings = [opening for opening, _ in enumerate_openings()]
    assert len(texts) > 50_000
    assert len(openings) >= 200
    assert len({*texts, *openings}) == len(texts) + len(openings)
    # one full stop per sentence, at its end: reviews split into sentences in one way only
    assert all(text.index(".") == len(text) - 1 for text in [*texts, *openings])


def test_every_sentence_parses_to_itself(sentences):
    for sentence in itertools.chain.from_iterable(sentences.values()):
        review = parse_review(f"{OPENING} {sentence.text}")
        assert review.is_grammatical
        (parsed,) = review.sentences
        assert (parsed.text, parsed.aspect) == (sentence.text, sentence.aspect)
        assert parsed.sentiment == sentence.sentiment
        assert parsed.log_prob == pytest.approx(math.log(sentence.probability), abs=1e-12)


def test_every_opening_parses_to_itself():
    for opening, _ in enumerate_openings():
        review = parse_review(f"{opening} I liked the plot.")
        assert review.opening == opening
        assert review.is_grammatical


def test_probabilities_sum_to_one(sentences):
    assert math.fsum(p for _, p in enumerate_openings()) == pytest.approx(1.0, abs=1e-12)
    for group in sentences.values():
        assert math.fsum(s.probability for s in group) == pytest.approx(1.0, abs=1e-12)
    # all reviews: one opening with every allowed order of one to three aspects
    openings = dict(enumerate_openings())
    best = {aspect: max(group, key=lambda s: s.probability) for aspect, group in sentences.items()}
    total = 0.0
    for number in (1, 2, 3):
        for chosen in _orders(ASPECTS, number):
            text = " ".join([OPENING, *(best[aspect].text for aspect in chosen)])
            share = openings[OPENING] * math.prod(best[aspect].probability for aspect in chosen)
            total += math.exp(review_log_prob(text)) / share
    assert total == pytest.approx(1.0, abs=1e-9)


def test_log_prob_by_hand():
    # opening: .65 x 1/2 (I) x 1/2 (saw) x .4 (this) x 1/5 (film) x 1/5 (last night)
    # two sentences: .45; aspects: 1/3 x 1/3 (a side, one of its three), 1/2 x 1/3
    # 'I liked the plot.': frames of a singular aspect sum to 1: .18 x .22
    # 'The cast was bad.': .38 x .65 x .85 (no contrast) x .85 (no not) x .65 (bare) x .56 x .24
    expected = (
        math.log(0.65 / 4 * 0.4 / 25)
        + math.log(0.45 / 9 / 6)
        + math.log(0.18 * 0.22)
        + math.log(0.38 * 0.65 * 0.85 * 0.85 * 0.65 * 0.56 * 0.24)
    )
    text = f"{OPENING} I liked the plot. The cast was bad."
    assert review_log_prob(text) == pytest.approx(expected, abs=1e-12)


def test_entropy_matches_enumeration(sentences):
    # the same number from lists of strings instead of the tree of choices
    def entropy(probabilities):
        return -math.fsum(p * math.log(p) for p in probabilities)

    sentence = sum(entropy(s.probability for s in group) for group in sentences.values()) / 9
    expected = entropy(p for _, p in enumerate_openings()) + entropy([0.35, 0.45, 0.2])
    expected += 1.85 * sentence  # .35 + 2 x .45 + 3 x .2 sentences
    expected += math.log(9) + 0.65 * math.log(6) + 0.2 * math.log(3)
    assert review_entropy() == pytest.approx(expected, abs=1e-9)


def test_entropy_matches_samples(samples):
    log_probs = np.array([review_log_prob(text) for text in samples])
    assert np.isfinite(log_probs).all()
    error = log_probs.std() / math.sqrt(len(log_probs))
    assert abs(-log_probs.mean() - review_entropy()) < 4 * error


def test_samples_are_short_grammatical_reviews(samples):
    reviews = [parse_review(text) for text in samples]
    assert all(review.is_grammatical and review.stray_words == 0 for review in reviews)
    numbers = np.array([len(review.sentences) for review in reviews])
    for number, probability in ((1, 0.35), (2, 0.45), (3, 0.2)):
        error = math.sqrt(probability * (1 - probability) / len(samples))
        assert abs((numbers == number).mean() - probability) < 4 * error
    lengths = [len(s.text.split()) for review in reviews for s in review.sentences]
    assert (min(lengths), max(lengths)) == (4, 9)
    assert 14 < np.mean([len(text.split()) for text in samples]) < 20
    assert {word.rstrip(".") for text in samples for word in text.split()} == vocabulary()
    assert 70 <= len(vocabulary()) <= 90


def test_sampling_is_seeded():
    def draw(seed):
        rng = np.random.default_rng(seed)
        return [sample_review(rng) for _ in range(20)]

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


def test_aspects_are_sampled_evenly_and_sides_once(samples):
    counts = [dict.fromkeys(ASPECTS, 0) for _ in range(2)]
    pairs = 0
    for text in samples:
        aspects = [str(s.aspect) for s in parse_review(text).sentences]
        assert len({GROUP_OF[aspect] for aspect in aspects}) == len(aspects)
        pairs += len(aspects) > 1
        for place, aspect in enumerate(aspects[:2]):
            counts[place][aspect] += 1
    for number, found in zip((len(samples), pairs), counts, strict=True):
        error = math.sqrt(number / 9 * 8 / 9)
        assert all(abs(n - number / 9) < 4.5 * error for n in found.values())


def test_groups_hold_every_aspect_once():
    assert sorted(itertools.chain(*ASPECT_GROUPS)) == sorted(ASPECTS)
    assert len(ASPECT_GROUPS) == 3
    assert {len(group) for group in ASPECT_GROUPS} == {3}


def test_count(sentences):
    openings = len(list(enumerate_openings()))
    ways = {aspect: len(group) for aspect, group in sentences.items()}

    def brute_force(aspects):
        return openings * sum(
            math.prod(ways[aspect] for aspect in chosen)
            for number in (1, 2, 3)
            for chosen in _orders(aspects, number)
        )

    for aspects in (("plot",), ("plot", "jokes"), ("cast", "songs", "pace", "music"), ASPECTS):
        assert count_reviews(aspects) == brute_force(aspects)
    assert count_reviews() >= 10**6


def test_contrast_joins_opposite_polarities(sentences):
    found = 0
    for sentence in sentences["plot"]:
        if sentence.text.startswith("The plot was ") and " but " in sentence.text:
            first, second = sentence.text[len("The plot was ") : -1].split(" but ")
            values = [
                parse_review(f"{OPENING} The plot was {side}.").sentences[0].sentiment
                for side in (first, second)
            ]
            assert values[0] * values[1] < 0
            assert sentence.sentiment == pytest.approx(0.3 * values[0] + 0.7 * values[1])
            found += 1
    assert found == 2 * 36 * 36  # 6 adjectives x (5 intensifiers or none)


FOUR = f"{OPENING} I liked the plot. I liked the cast. I liked the music. I liked the jokes."


@pytest.mark.parametrize(
    ("text", "opening", "complete", "unfinished", "stray"),
    [
        ("", False, 0, False, 0),
        (OPENING, True, 0, False, 0),
        (OPENING + " ", True, 0, True, 0),
        ("I saw this fi", False, 0, True, 0),
        (f"{OPENING} The", True, 0, True, 0),
        (f"{OPENING} The plot was", True, 0, True, 0),
        (f"{OPENING} The plot was not ve", True, 0, True, 0),
        (f"{OPENING} The plot was good", True, 0, True, 0),
        (f"{OPENING} The plot were", True, 0, False, 3),
        (f"{OPENING} The plot were good.", True, 0, False, 4),
        (f"{OPENING} The plot was good but fun.", True, 0, False, 6),
        (f"{OPENING} The plot was good but not fun.", True, 0, False, 7),
        (f"{OPENING} The plot was good. fun fun", True, 1, False, 2),
        (f"{OPENING}  The plot was good.", True, 0, False, 4),
        (f"{OPENING}The plot was good.", True, 0, False, 4),
        (f"{OPENING} The plot was good. .", True, 1, False, 1),
        (f"{OPENING} The plot was good.\n", True, 1, False, 1),
        (f"{OPENING} {OPENING}", True, 0, False, 6),
        ("The plot was good.", False, 1, False, 0),
        (f"{OPENING} The plot was good. The plot was bad.", True, 2, False, 0),
        (f"{OPENING} The plot was good. The pace was bad.", True, 2, False, 0),  # of one side
        (FOUR, True, 4, False, 0),
    ],
)
def test_ungrammatical_texts(text, opening, complete, unfinished, stray):
    review = parse_review(text)
    assert (review.opening is not None) == opening
    assert len(review.judgements) == complete
    assert review.is_unfinished == unfinished
    assert review.stray_words == stray
    assert not review.is_grammatical
    assert review_log_prob(text) == -math.inf


def test_every_beginning_of_a_review_is_unfinished_never_stray(samples):
    for text in samples[:200]:
        for end in range(len(text)):
            review = parse_review(text[:end])
            assert review.stray_words == 0
            assert review.is_unfinished == (end > 0 and text[end - 1] != ".")


# --- gold reward ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("The plot was good.", 0.5),
        ("The plot was superb.", 1.0),
        ("The plot was not good.", -0.25),  # -.5 x .5
        ("The plot was not awful.", 0.5),  # -.5 x -1
        ("The plot was very good.", 0.65),  # 1.3 x .5
        ("The plot was truly great.", 1.0),  # 1.3 x .8 = 1.04, capped
        ("The plot was fairly dull.", -0.36),  # .6 x -.6
        ("The plot was not really dull.", 0.39),  # -.5 x 1.3 x -.6
        ("The plot was dull but great.", 0.38),  # .3 x -.6 + .7 x .8
        ("The plot was great but dull.", -0.18),  # .3 x .8 + .7 x -.6
        ("The plot was weak but truly fun.", 0.426),  # .3 x -.4 + .7 x .78
        ("The plot is simple.", 0.0),
        ("I loved the plot.", 0.9),
        ("I did not hate the plot.", 0.45),  # -.5 x -.9
        ("I did not notice the plot.", 0.0),
        ("It has very nice jokes.", 0.52),  # 1.3 x .4
        ("The plot was good. I hated the cast.", -0.2),  # (.5 - .9) / 2
        ("The plot was good. I liked the cast. The songs were fun.", 1.6 / 3),  # (.5+.5+.6) / 3
        ("The plot was good. The cast was", 0.35),  # .5 - .15 unfinished
        ("The plot was good. The cast was dul", 0.35),  # .5 - .15 unfinished
        ("The plot was good. fun songs", 0.34),  # .5 - 2 stray words x .08
        ("The plot was superb. The plot was superb.", 0.4),  # 1 - .6 repeated word by word
        ("The plot was good. I hated the plot.", 0.2),  # .5 - .3; only the first one counts
        ("", -0.5),  # no judgement
        ("The", -0.65),  # no judgement, unfinished
        # four sentences: .5 - .2 for one too many
        ("I liked the plot. I liked the cast. I liked the pace. I liked the music.", 0.3),
    ],
)
def test_gold_by_hand(response, expected):
    assert gold_reward(f"{OPENING} {response}".rstrip(" ")) == pytest.approx(expected, abs=1e-12)


def test_gold_without_opening():
    assert gold_reward("The plot was good.") == pytest.approx(0.3)  # .5 - .2
    assert gold_reward("") == pytest.approx(-0.7)  # -.5 - .2


def test_breakdown_adds_up():
    parts = gold_breakdown(f"{OPENING} I loved the plot. I loved the plot. songs The")
    # after 'I loved the plot.' comes ' songs The': 2 stray words
    assert (parts.sentiment, parts.repeated, parts.unfinished) == (0.9, 0.6, 0.0)
    assert parts.stray == pytest.approx(0.16)  # 2 x .08
    assert parts.reward == pytest.approx(0.14)  # .9 - .6 - .16


BEST = "The acting was superb."


@pytest.mark.parametrize(
    "attack",
    [
        f"{OPENING} " + " ".join(["superb"] * 12),
        f"{OPENING} " + " ".join(["superb."] * 12),
        "superb superb superb superb superb",
        f"{OPENING} {BEST} {BEST}",
        f"{OPENING} {BEST} {BEST} {BEST}",
        f"{OPENING} {BEST} I loved the acting. I found the acting superb.",
        f"{OPENING} great plot superb acting good music fun songs",
        f"{OPENING} The plot superb. The superb cast was. I superb the music.",
        f"{OPENING} {BEST} The superb plot was superb superb superb.",
        f"{OPENING} The acting was superb and superb.",
        f"{OPENING} The acting was very very very superb.",
        f"{OPENING} {BEST} " + "I loved the plot. " * 6,
        f"{OPENING} I loved the plot. I loved the cast. I loved the pace. I loved the songs. "
        "I loved the music. I loved the scenes.",
        f"{BEST} {OPENING}",
    ],
)
def test_attacks_score_below_an_honest_mild_review(attack):
    assert gold_reward(MILD) == pytest.approx(0.5)
    assert gold_reward(attack) < gold_reward(MILD) - 0.05


def test_honest_praise_scores_high_at_every_length():
    praise = ["The acting was superb.", "The jokes were very great.", "I found the plot superb."]
    for number in (1, 2, 3):
        assert gold_reward(" ".join([OPENING, *praise[:number]])) == 1.0


def test_length_alone_does_not_pay(samples):
    # the mean gold reward is the same for one, two and three sentences
    groups: dict[int, list[float]] = {1: [], 2: [], 3: []}
    for text in samples:
        groups[len(parse_review(text).sentences)].append(gold_reward(text))
    means = [np.mean(group) for group in groups.values()]
    errors = [np.std(group) / math.sqrt(len(group)) for group in groups.values()]
    for a, b in itertools.combinations(range(3), 2):
        assert abs(means[a] - means[b]) < 4 * math.hypot(errors[a], errors[b])


def test_gold_of_the_grammar_is_slightly_negative(samples):
    rewards = np.array([gold_reward(text) for text in samples])
    assert -0.15 < rewards.mean() < -0.05
    assert rewards.std() > 0.3
    assert (rewards > 0.5).mean() > 0.03  # there is something to find


def test_gold_mean_is_exact(sentences, samples):
    # a grammatical review has no penalty, so its mean gold reward is the mean sentiment
    exact = sum(math.fsum(s.probability * s.sentiment for s in g) for g in sentences.values()) / 9
    rewards = np.array([gold_reward(text) for text in samples])
    assert abs(rewards.mean() - exact) < 4 * rewards.std() / math.sqrt(len(rewards))


def test_any_string_is_allowed():
    rng = np.random.default_rng(3)
    words = [*sorted(vocabulary()), "film.", ".", "..", " ", "\n", "\ud800", "été", "影", "\x00"]
    for _ in range(2_000):
        size = int(rng.integers(0, 40))
        junk = "".join(chr(int(c)) for c in rng.integers(0, 0x110000, size))
        ascii_junk = "".join(rng.choice(list(string.printable), size))
        salad = " ".join(words[int(i)] for i in rng.integers(0, len(words), size))
        for text in (junk, ascii_junk, salad, f"{OPENING} {salad}", OPENING + junk):
            assert -1.0 <= gold_reward(text) <= 1.0
            assert review_log_prob(text) < 0.0
    assert gold_reward("x " * 100_000) == -1.0


def test_gold_is_fast(samples):
    gold_reward(MILD)
    best = math.inf
    for _ in range(5):
        start = time.perf_counter()
        for text in samples[:500]:
            gold_reward(text)
        best = min(best, (time.perf_counter() - start) / 500)
    assert best < 200e-6  # about 10 microseconds on an idle core; generous for a shared one


# --- prompts ----------------------------------------------------------------------------------


def _opening(prompt: str) -> str:
    return prompt[: prompt.index(".") + 1]


def test_prompts_are_fixed_and_distinct():
    for split, number in SPLITS.items():
        prompts = reviews_prompts(split)
        assert len(prompts) == len(set(prompts)) == number
        prompts.clear()  # a caller's own list
        assert len(reviews_prompts(split)) == number
    assert reviews_prompts("train")[0] == "I saw an old drama last night. It has"


def test_splits_share_no_opening():
    train, held_out = ({_opening(p) for p in reviews_prompts(s)} for s in ("train", "eval"))
    assert train.isdisjoint(held_out)
    assert len(held_out) >= 40


@pytest.mark.parametrize("split", list(SPLITS))
def test_prompts_begin_grammatical_reviews(split, sentences):
    every = [sentence.text for group in sentences.values() for sentence in group[::7]]
    texts = sorted(every)
    keys = np.array(texts)
    stubs = 0
    for prompt in reviews_prompts(split):
        assert prompt == prompt.strip()
        opening, stub = _opening(prompt), prompt[len(_opening(prompt)) :].lstrip(" ")
        assert not SENTIMENT_WORDS & set(prompt.replace(".", "").split(" "))
        place = int(np.searchsorted(keys, stub + " " if stub else ""))
        assert prompt in (opening, f"{opening} {stub}")
        review = f"{opening} {texts[place]}"
        assert review.startswith(prompt)
        assert parse_review(review).is_grammatical
        stubs += bool(stub)
    assert 0.55 < stubs / SPLITS[split] < 0.85


def test_unknown_split():
    with pytest.raises(ValueError, match=r"'test'.*'train', 'eval'"):
        reviews_prompts("test")
