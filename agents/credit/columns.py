"""The columns of a token table: one list says what they are, for Python, files and pages alike."""

from __future__ import annotations

__all__ = ["COLUMNS", "SCHEMA", "TOP", "WHOLE_COLUMNS"]

SCHEMA = 1
"""Version of the files; a reader refuses others."""

TOP = 5
"""Alternatives listed for every token."""

COLUMNS: dict[str, str] = {
    "position": "index t of the token in its response, from 0; a segment may begin later",
    "token": "token id",
    "text": "what the token adds to the text; bytes that are no character yet show as �",
    "log_prob": "log π(a|s), nats",
    "ref_log_prob": "log π_ref(a|s), nats",
    "kl": "log π(a|s) − log π_ref(a|s): the KL as the sampled token estimates it, nats",
    "full_kl": "KL(π(·|s) ‖ π_ref(·|s)), over the whole vocabulary, nats",
    "entropy": "entropy of π(·|s), nats",
    "reward_reference": "β·log π_ref(a|s), the environment's half of the KL penalty; null where "
    "it is not paid in halves",
    "reward_actor": "−β·log π(a|s), the agent's half; null where it is not paid in halves",
    "reward_kl": "the whole KL penalty that is paid as a reward; 0 where it is a loss",
    "reward_score": "what of the score R(x, y) is paid with this token",
    "reward": "reward_kl + reward_score",
    "value": "V(s), before the token; of the estimator vine, the mean of continuations; null where "
    "the estimator needs neither",
    "delta": "δ = r + γ·V(s′) − V(s); null without V",
    "advantage": "by the run's estimator",
    "whitened": "the same, whitened as the update does it",
    "return": "what the critic is trained towards: advantage + V, unless it has a λ of its own; "
    "without a critic, the rewards to come",
    "true_advantage": "A^π(s, a), exact; null where the task can't be enumerated",
    "ratio": "π(a|s)/π_old(a|s) after the last epoch; null for tokens that no update used",
    "clip": "'high' or 'low' where the clip range stops the gradient, else ''; null likewise",
    "weight": "w = whitened advantage × ratio; 0 where the surrogate has no gradient; where the "
    "loss is no mean over tokens, times what the token counts in it (1 in a mean over the table's)",
    "strength": "|w|·‖∇ log π(a|s)‖ over the weights of the output layer",
    "share": "the token's share of the sum of all tokens' policy terms, in the output layer; "
    "null for a layer of more than 2^27 weights",
    "exact_strength": "|w|·‖∇ log π(a|s)‖ over all trainable parameters; null unless asked for",
    "exact_share": "the share in that gradient; null unless asked for",
    "value_loss": "(return − V)², in units of the returns' variance where they are normalised",
    "entropy_bonus": "ent_coef × entropy",
    "gradient_norm": "‖∇ log π(a|s)‖ over the weights of the output layer",
    "kl_loss": "β × the KL estimate where the KL is a loss, before the update divides it as it "
    "divides advantages; else 0",
}
"""Name → meaning, in the order of the files; null: not known, or not defined."""

WHOLE_COLUMNS: dict[str, str] = {
    "top_tokens": f"ids of the {TOP} most likely tokens under π",
    "top_texts": "their texts",
    "top_probs": "their probabilities",
}
"""Columns whose entries are lists of `TOP` entries (fewer where the vocabulary is smaller)."""
