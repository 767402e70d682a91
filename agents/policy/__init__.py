"""The language model as a Stable-Baselines3 policy.

* `policy`: `LMActorCriticPolicy`, SB3's interface.
* `decoders`: the policy's caches, and when they are dropped.
* `critic`: a critic with a separate trunk; `value_head`: the linear layer of either kind.
* `token_scores`: log-probabilities and entropies with gradient, chunk by chunk.
* `checks`: observation and action spaces; `files`: `save_pretrained` and `from_pretrained`.
* `fast_paths`: a fused optimiser, and one transfer to the host instead of several.
"""

from agents.policy.fast_paths import OPTIMIZERS, fused_where_possible
from agents.policy.files import store_rebuild_kwargs
from agents.policy.policy import VALUE_HEADS, LMActorCriticPolicy
from agents.policy.token_scores import score_tokens
from agents.policy.value_head import ValueHead, return_std

__all__ = [
    "OPTIMIZERS",
    "VALUE_HEADS",
    "LMActorCriticPolicy",
    "ValueHead",
    "fused_where_possible",
    "return_std",
    "score_tokens",
    "store_rebuild_kwargs",
]
