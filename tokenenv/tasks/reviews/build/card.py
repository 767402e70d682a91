"""The model card of `reviews` as Markdown, from the figures of the build."""

from __future__ import annotations

from typing import Any

from tokenenv.building.card_parts import LICENSE, accuracy_rows, table

__all__ = ["render_card"]

_USE_AND_LIMITS = (
    "## Use",
    "To try, teach and test RLHF within minutes on two CPU cores. The reference continues film "
    "reviews of its grammar;\nit knows no other text, and no facts.",
    "## Limits",
    "- The reward model was trained on the reference's own responses. An actor far from the "
    "reference leaves them, and\n  its score then overstates the gold reward: the gold reward is "
    "there to see that.\n"
    "- Scores mean something for reviews of this grammar alone, and are comparable within this "
    "task only.\n"
    "- J\\* is bounded, not known: the figures above are a lower bound, with the error of a "
    "sample.",
)


def render_card(card: dict[str, Any]) -> str:
    """The card as text; `card.json` holds the same numbers in full."""
    parts = [
        "# The models of the task `reviews`",
        f"Built by `python -m tokenenv.tasks.reviews.build --seed {card['seed']}`, which also "
        "measured what stands here,\non the files as they ship (float16). Texts come from the "
        "project's own grammar; nothing was downloaded.",
        *_reference(card["reference"]),
        *_reward_model(card["reward_model"]),
        *_optimum(card["optimum"], card["reward_model"]["reference_score_std"]),
        *_USE_AND_LIMITS,
        *LICENSE,
    ]
    return "\n\n".join(parts) + "\n"


def _reference(facts: dict[str, Any]) -> list[str]:
    cross_entropy = (
        f"{facts['cross_entropy_per_review']:.4f} ± {facts['cross_entropy_standard_error']:.4f}"
    )
    plain = (
        f"{facts['cross_entropy_plain_mean']:.3f} ± "
        f"{facts['cross_entropy_plain_standard_error']:.3f}"
    )
    return [
        "## Reference",
        f"Llama architecture, {facts['parameters']:,} parameters, byte-level BPE with "
        f"{facts['vocabulary_size']} entries, trained on\nreviews drawn from the grammar "
        f"({facts['distinct_reviews']:.2e} distinct ones).",
        table(
            "nats per review",
            [
                ("cross-entropy of the model, on fresh reviews (± standard error)", cross_entropy),
                ("entropy of the grammar, exact", f"{facts['grammar_entropy_per_review']:.4f}"),
                ("ratio", f"{facts['cross_entropy_over_entropy']:.4f}"),
                ("cross-entropy as a plain mean, for comparison", plain),
            ],
        ),
        "The first is the entropy plus the mean of log p(grammar) − log p(model), which varies "
        "little from\nreview to review. A review has "
        f"{facts['tokens_per_review']:.1f} tokens in the mean: "
        f"{facts['grammar_entropy_per_token']:.3f} nats per token.",
    ]


def _reward_model(facts: dict[str, Any]) -> list[str]:
    gold = f"{facts['reference_gold_mean']:.3f} ± {facts['reference_gold_std']:.3f}"
    return [
        "## Reward model",
        "The same trunk with a head of one output, trained by `tokenenv.rewards.preferences` on "
        f"{facts['training_pairs']:,} pairs of\nreference samples, labelled by a Bradley–Terry "
        f"annotator: P(a ≻ b) = σ({facts['annotator_sharpness']:g}·(gold(a) − gold(b))).",
        table(
            f"on {facts['held_out_pairs']:,} pairs of held-out prompts",
            accuracy_rows(facts),
        ),
        table(
            "on reference samples for held-out prompts",
            [
                ("correlation of score and gold reward", f"{facts['correlation_with_gold']:.3f}"),
                ("gold reward, mean ± standard deviation", gold),
                ("standard deviation of the score", f"{facts['reference_score_std']:.3f}"),
            ],
        ),
    ]


def _optimum(facts: dict[str, Any], score_std: float) -> list[str]:
    gain = facts["optimum_lower_bound"] - facts["objective_reference"]
    bounds = ", ".join(f"{bound:.3f}" for bound in facts["bounds_by_seed"])
    objectives = ", ".join(f"{value:.3f}" for value in facts["proposal_objectives"])
    shares = ", ".join(f"{share:.2f}" for share in facts["effective_sample_size"])
    deviations = f"{gain:.3f} = {gain / score_std:.2f} standard deviations of the reference's score"
    return [
        f"## Optimum at β = {facts['kl_coef']}",
        f"From {len(facts['bounds_by_seed'])} independently trained proposals on "
        f"{facts['prompts']} held-out prompts with {facts['responses_per_prompt']} responses "
        "each\n(`tokenenv.optimum`).",
        table(
            "in units of the score",
            [
                (
                    "lower bound on J*, all proposals together",
                    f"{facts['optimum_lower_bound']:.3f}",
                ),
                ("the same, by proposal", bounds),
                ("J of each proposal itself", objectives),
                ("effective sample size, as a share", shares),
                ("J of the reference", f"{facts['objective_reference']:.3f}"),
                ("J* − J_ref, at least", deviations),
                ("gold reward at the optimum, estimated", f"{facts['optimum_gold']:.3f}"),
                ("gold reward of the reference", f"{facts['reference_gold']:.3f}"),
            ],
        ),
    ]
