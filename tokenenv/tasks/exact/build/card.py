"""The model card of `exact` as Markdown, from the figures of the build."""

from __future__ import annotations

from typing import Any

from tokenenv.building.card_parts import LICENSE, accuracy_rows, table

__all__ = ["render_card"]

_USE_AND_LIMITS = (
    "## Use",
    "To grade an agent of RLHF where the optimum is known, to teach with, and to test with. The "
    "reference knows how to\nanswer one note with at most six; it knows no language.",
    "## Limits",
    "- The reward model is less accurate on what the reference plays than on the pairs that it was "
    "trained on: both\n  tables stand above. Its errors are part of the task: J\\* is the optimum "
    "of its score, not of the gold reward.\n"
    "- Scores mean something for melodies of this grammar's tokens alone, and are comparable "
    "within this task only.\n"
    "- The optimum holds for the files as they ship and the β above; another precision or β has "
    "another one\n  (`tokenenv.optimum`).",
)


def render_card(card: dict[str, Any]) -> str:
    """The card as text; `card.json` holds the same numbers in full."""
    parts = [
        "# The models of the task `exact`",
        f"Built by `python -m tokenenv.tasks.exact.build --seed {card['seed']}`, which also "
        "measured what stands here,\non the files as they ship (float16). Melodies come from the "
        "project's own grammar; nothing was downloaded.\nAll but the accuracies is summed over "
        f"all {card['reference']['responses']:,} finished responses: no sampling error.",
        *_reference(card["reference"]),
        *_reward_model(card["reward_model"]),
        *_optimum(card["optimum"]),
        *_USE_AND_LIMITS,
        *LICENSE,
    ]
    return "\n\n".join(parts) + "\n"


def _reference(facts: dict[str, Any]) -> list[str]:
    return [
        "## Reference",
        f"GPT-2 architecture, {facts['parameters']:,} parameters, a vocabulary of five notes and "
        "EOS, trained on melodies drawn\nfrom the grammar.",
        table(
            "nats per response",
            [
                ("cross-entropy of the model", f"{facts['cross_entropy_per_response']:.4f}"),
                ("entropy of the grammar", f"{facts['grammar_entropy_per_response']:.4f}"),
                ("ratio", f"{facts['cross_entropy_over_entropy']:.4f}"),
            ],
        ),
        f"A response has {facts['tokens_per_response']:.2f} tokens in the mean; "
        f"{facts['eos_rate']:.0%} end with EOS, the others with the sixth note.",
    ]


def _reward_model(facts: dict[str, Any]) -> list[str]:
    gold = f"{facts['reference_gold_mean']:.3f} ± {facts['reference_gold_std']:.3f}"
    return [
        "## Reward model",
        "The same trunk with a head of one output, trained by `tokenenv.rewards.preferences` on "
        f"{facts['training_pairs']:,} pairs,\nlabelled by a Bradley–Terry annotator: "
        f"P(a ≻ b) = σ({facts['annotator_sharpness']:g}·(gold(a) − gold(b))). "
        f"{1 - facts['explored_share']:.0%} of the responses are the\nreference's; the others are "
        "explored: cadences, what is nearly one, and random notes. Scores are normalised\nexactly: "
        "mean 0 and standard deviation 1 under the reference.",
        table(f"on {facts['held_out_pairs']:,} fresh pairs of this kind", accuracy_rows(facts)),
        table(
            f"on {facts['held_out_pairs']:,} pairs of reference samples",
            accuracy_rows(facts["on_reference_pairs"]),
        ),
        table(
            "on reference samples",
            [
                ("correlation of score and gold reward", f"{facts['correlation_with_gold']:.3f}"),
                ("gold reward, mean ± standard deviation", gold),
            ],
        ),
    ]


def _optimum(facts: dict[str, Any]) -> list[str]:
    gain = facts["optimum"] - facts["objective_reference"]
    half = facts["half_mass_reference_probability"]
    return [
        f"## Optimum at β = {facts['kl_coef']}",
        table(
            "exact, in units of the score",
            [
                ("J*", f"{facts['optimum']:.4f}"),
                ("J of the reference", f"{facts['objective_reference']:.4f}"),
                ("J* − J_ref", f"{gain:.4f} = {gain / facts['kl_coef']:.2f} β"),
                ("KL(π* ‖ π_ref), nats per response", f"{facts['kl']:.3f}"),
                ("E[R] under π*", f"{facts['score']:.3f}"),
                ("gold reward at the optimum", f"{facts['optimum_gold']:.3f}"),
                ("gold reward of the reference", f"{facts['reference_gold']:.3f}"),
                (
                    "answers of the reference with the full cadence",
                    f"{facts['reference_cadence_probability']:.2%}",
                ),
                ("the same at the optimum", f"{facts['optimum_cadence_probability']:.1%}"),
            ],
        ),
        table(
            "(J − J_ref)/(J* − J_ref), the greatest over prompts",
            [
                (name.replace("_", " "), f"{max(fractions):.2f}")
                for name, fractions in facts["objective_fractions"].items()
            ],
        ),
        table(
            "π_ref of the responses that hold half of π*'s mass",
            [(prompt, f"{probability:.4f}") for prompt, probability in half.items()],
        ),
        table(
            "the five most likely responses of π*",
            [
                (prompt, ", ".join(f"{text} ({p:.3f})" for text, p in ranked.items()))
                for prompt, ranked in facts["most_likely"].items()
            ],
        ),
    ]
