"""The model card of `reviews` as Markdown, from what the build measured."""

from __future__ import annotations

from typing import Any

__all__ = ["render_card"]


def render_card(card: dict[str, Any]) -> str:
    """The card as text; `card.json` holds the same numbers in full."""
    reference, reward, optimum = card["reference"], card["reward_model"], card["optimum"]
    gain = optimum["optimum_lower_bound"] - optimum["objective_reference"]
    bounds = ", ".join(f"{bound:.3f}" for bound in optimum["bounds_by_seed"])
    return f"""# The models of the task `reviews`

Built by `python -m tokenenv.tasks.reviews.build --seed {card["seed"]}`, which also measured what
stands here. Texts come from the project's own grammar; nothing was downloaded.

## Reference

Llama architecture, {reference["parameters"]:,} parameters, byte-level BPE with
{reference["vocabulary_size"]} entries, trained on reviews drawn from the grammar
({reference["distinct_reviews"]:.2e} distinct ones).

| per review | nats |
|---|---|
| cross-entropy of the model, on fresh reviews | {reference["cross_entropy_per_review"]:.3f} ± {reference["cross_entropy_standard_error"]:.3f} |
| entropy of the grammar, exact | {reference["grammar_entropy_per_review"]:.3f} |
| ratio | {reference["cross_entropy_over_entropy"]:.4f} |

A review has {reference["tokens_per_review"]:.1f} tokens in the mean: {reference["grammar_entropy_per_token"]:.3f} nats per token.

## Reward model

The same trunk with a head of one output, trained by `tokenenv.preferences` on
{reward["training_pairs"]:,} pairs of reference samples, labelled by a Bradley–Terry annotator:
P(a ≻ b) = σ({reward["annotator_sharpness"]}·(gold(a) − gold(b))).

| on {reward["held_out_pairs"]:,} pairs of held-out prompts | |
|---|---|
| accuracy | {reward["accuracy"]:.4f} |
| Bayes accuracy | {reward["bayes_accuracy"]:.4f} |
| (accuracy − ½)/(Bayes − ½) | {reward["accuracy_over_bayes"]:.3f} |
| calibration error | {reward["calibration_error"]:.4f} |
| correlation of score and gold reward, reference samples | {reward["correlation_with_gold"]:.3f} |
| gold reward of the reference | {reward["reference_gold_mean"]:.3f} ± {reward["reference_gold_std"]:.3f} |
| standard deviation of the reference's score | {reward["reference_score_std"]:.3f} |

## Optimum at β = {optimum["kl_coef"]}

From {len(optimum["bounds_by_seed"])} independently trained proposals on {optimum["prompts"]} held-out
prompts with {optimum["responses_per_prompt"]} responses each (`tokenenv.optimum`): {bounds}.

| | |
|---|---|
| lower bound on J*, all proposals together | {optimum["optimum_lower_bound"]:.3f} |
| J of the reference | {optimum["objective_reference"]:.3f} |
| J* − J_ref, at least | {gain:.3f} = {gain / reward["reference_score_std"]:.2f} standard deviations of the reference's score |
"""
