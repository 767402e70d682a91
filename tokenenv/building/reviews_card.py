"""The model card of `reviews` as Markdown, from what the build measured."""

from __future__ import annotations

from typing import Any

from tokenenv.building.card_parts import accuracy_rows, table

__all__ = ["render_card"]


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
    ]
    return "\n\n".join(parts) + "\n"


def _reference(found: dict[str, Any]) -> list[str]:
    cross_entropy = (
        f"{found['cross_entropy_per_review']:.4f} ± {found['cross_entropy_standard_error']:.4f}"
    )
    plain = (
        f"{found['cross_entropy_plain_mean']:.3f} ± "
        f"{found['cross_entropy_plain_standard_error']:.3f}"
    )
    return [
        "## Reference",
        f"Llama architecture, {found['parameters']:,} parameters, byte-level BPE with "
        f"{found['vocabulary_size']} entries, trained on\nreviews drawn from the grammar "
        f"({found['distinct_reviews']:.2e} distinct ones).",
        table(
            "nats per review",
            [
                ("cross-entropy of the model, on fresh reviews (± standard error)", cross_entropy),
                ("entropy of the grammar, exact", f"{found['grammar_entropy_per_review']:.4f}"),
                ("ratio", f"{found['cross_entropy_over_entropy']:.4f}"),
                ("cross-entropy as a plain mean, for comparison", plain),
            ],
        ),
        "The first is the entropy plus the mean of log p(grammar) − log p(model), which varies "
        "little from\nreview to review. A review has "
        f"{found['tokens_per_review']:.1f} tokens in the mean: "
        f"{found['grammar_entropy_per_token']:.3f} nats per token.",
    ]


def _reward_model(found: dict[str, Any]) -> list[str]:
    gold = f"{found['reference_gold_mean']:.3f} ± {found['reference_gold_std']:.3f}"
    return [
        "## Reward model",
        "The same trunk with a head of one output, trained by `tokenenv.rewards.preferences` on "
        f"{found['training_pairs']:,} pairs of\nreference samples, labelled by a Bradley–Terry "
        f"annotator: P(a ≻ b) = σ({found['annotator_sharpness']:g}·(gold(a) − gold(b))).",
        table(
            f"on {found['held_out_pairs']:,} pairs of held-out prompts",
            accuracy_rows(found),
        ),
        table(
            "on reference samples for held-out prompts",
            [
                ("correlation of score and gold reward", f"{found['correlation_with_gold']:.3f}"),
                ("gold reward, mean ± standard deviation", gold),
                ("standard deviation of the score", f"{found['reference_score_std']:.3f}"),
            ],
        ),
    ]


def _optimum(found: dict[str, Any], score_std: float) -> list[str]:
    gain = found["optimum_lower_bound"] - found["objective_reference"]
    bounds = ", ".join(f"{bound:.3f}" for bound in found["bounds_by_seed"])
    own = ", ".join(f"{value:.3f}" for value in found["proposal_objectives"])
    shares = ", ".join(f"{share:.2f}" for share in found["effective_sample_size"])
    deviations = f"{gain:.3f} = {gain / score_std:.2f} standard deviations of the reference's score"
    return [
        f"## Optimum at β = {found['kl_coef']}",
        f"From {len(found['bounds_by_seed'])} independently trained proposals on "
        f"{found['prompts']} held-out prompts with {found['responses_per_prompt']} responses "
        "each\n(`tokenenv.optimum`).",
        table(
            "in units of the score",
            [
                (
                    "lower bound on J*, all proposals together",
                    f"{found['optimum_lower_bound']:.3f}",
                ),
                ("the same, by proposal", bounds),
                ("J of each proposal itself", own),
                ("effective sample size, as a share", shares),
                ("J of the reference", f"{found['objective_reference']:.3f}"),
                ("J* − J_ref, at least", deviations),
                ("gold reward at the optimum, estimated", f"{found['optimum_gold']:.3f}"),
                ("gold reward of the reference", f"{found['reference_gold']:.3f}"),
            ],
        ),
    ]
