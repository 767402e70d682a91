"""Tiny random models of very different architectures, and what becomes of each as a token MDP.

`python tests/support/architectures.py` prints `docs/architectures.md`, which
`tests/models/test_architectures.py` holds.
"""

from __future__ import annotations

import sys
import textwrap
import warnings
from dataclasses import dataclass, field
from typing import Any

from transformers import AutoConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from tokenenv.models.cache_check import TESTED_FAMILIES

P, T, V = 6, 9, 40

# Every name that a config class may have for the same size; a class takes those that it knows.
_SIZES: dict[str, Any] = {
    **dict.fromkeys(["hidden_size", "n_embd", "d_model", "embed_dim", "hidden_dim", "dim"], 32),
    **dict.fromkeys(["word_embed_proj_dim", "embedding_size", "attention_hidden_size"], 32),
    **dict.fromkeys(["num_hidden_layers", "n_layer", "n_layers", "num_layers"], 2),
    **dict.fromkeys(["decoder_layers", "encoder_layers"], 2),
    **dict.fromkeys(["num_attention_heads", "n_head", "n_heads", "num_heads"], 4),
    **dict.fromkeys(["decoder_attention_heads", "encoder_attention_heads"], 4),
    **dict.fromkeys(["num_key_value_heads", "num_kv_heads"], 2),
    **dict.fromkeys(["intermediate_size", "ffn_dim", "n_inner", "decoder_ffn_dim", "dff"], 48),
    **dict.fromkeys(["max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"], 64),
    **dict.fromkeys(["head_dim", "q_lora_rank", "kv_lora_rank", "state_size"], 8),
    **dict.fromkeys(["qk_nope_head_dim", "v_head_dim", "hidden_size_per_layer_input"], 8),
    **dict.fromkeys(["qk_rope_head_dim", "rotary_dim"], 4),
    **dict.fromkeys(["num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"], 4),
    **dict.fromkeys(["num_experts_per_tok", "moe_k", "moe_topk"], 2),
    **dict.fromkeys(["moe_intermediate_size", "shared_expert_intermediate_size"], 16),
    **dict.fromkeys(["n_group", "topk_group", "first_k_dense_replace", "n_groups"], 1),
    **dict.fromkeys(["mamba_d_state", "laurel_rank", "mamba_d_head", "mamba_head_dim"], 8),
    **dict.fromkeys(["mamba_n_heads", "mamba_num_heads", "n_mamba_heads"], 4),
    **dict.fromkeys(["linear_num_value_heads", "linear_num_key_heads"], 2),
    **dict.fromkeys(["linear_key_head_dim", "linear_value_head_dim", "ssm_state_size"], 8),
    "vocab_size": V,
    "vocab_size_per_layer_input": V,
    "lru_width": 32,
    "attention_window_size": 5,
    "sliding_window": 5,
    "chunk_size": 4,
    "altup_num_inputs": 2,
    "num_kv_shared_layers": 0,
    "is_decoder": True,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


@dataclass(frozen=True)
class Architecture:
    """A tiny config.

    Attributes:
        model_type: transformers' name of the family.
        kind: what is unusual in it, for the table.
        settings: beside the sizes; None removes a size.
        refused: part of the reason why it can't be used; None: it can.
        is_slow: left to `make test-slow`.
    """

    model_type: str
    kind: str = "full attention"
    settings: dict[str, Any] = field(default_factory=dict)
    refused: str | None = None
    is_slow: bool = True

    @property
    def is_known(self) -> bool:
        """Whether the installed transformers has it."""
        return self.model_type in CONFIG_MAPPING

    def config(self) -> dict[str, Any]:
        """The config as a dictionary."""
        kind = CONFIG_MAPPING[self.model_type]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            default = kind()
            known = set(default.to_dict()) | set(kind.attribute_map)
            settings = {n: v for n, v in _SIZES.items() if n in known and n not in self.settings}
            layer_types = getattr(default, "layer_types", None)
            if layer_types and "layer_types" not in self.settings and "layer_types" in known:
                settings["layer_types"] = [layer_types[0], layer_types[-1]]
            settings.update({n: v for n, v in self.settings.items() if v is not None})
            made = AutoConfig.for_model(self.model_type, **settings).to_dict()
        return {**made, "model_type": self.model_type}


def _all(model_types: str, **kwargs: Any) -> list[Architecture]:
    return [Architecture(model_type, **kwargs) for model_type in model_types.split()]


_MLA = {"num_key_value_heads": 4, "head_dim": 4, "qk_head_dim": None}
_LOGITS = "logits"
_LAYERS = "has layers of type"
_BY_TOKEN = "token by token"
_NO_CACHE = "takes no cache"


def _rope(**parameters: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_theta": 10000.0, **parameters}}


_FULL_ATTENTION = (
    "apertus arcee aria_text bitnet biogpt bert-generation codegen ctrl diffllama doge ernie4_5 "
    "ernie4_5_moe flex_olmo flint glm glm4 glm4_moe gpt-sw3 gpt_bigcode gpt_neox_japanese granite "
    "granitemoe granitemoeshared helium hrm_text hunyuan_v1_dense hunyuan_v1_moe hy_v3 hyperclovax "
    "internlm3 iquestcoder jais2 jetmoe kolibri1 lfm2 minimax_m2 minimax_m3_vl_text ministral3 "
    "nanochat nemotron olmo olmoe persimmon phimoe qwen2_moe qwen3_moe seed_oss solar_open "
    "stablelm starcoder2 vaultgemma whisper xglm beam"
)
_WINDOWS = (
    "afmoe cwm exaone4 exaone_moe gemma3n_text gemma4_text gemma4_unified_text granite_swa "
    "granitemoe_swa laguna mellum mimo_v2_flash ministral"
)
ARCHITECTURES: list[Architecture] = [
    # What people use, and one of each kind: quick
    Architecture("gpt2", "learned positions", is_slow=False),
    Architecture("opt", "learned positions, shifted by 2", is_slow=False),
    Architecture("gptj", "interleaved rotary positions, parallel blocks", is_slow=False),
    Architecture("gpt_neox", "rotary positions on a part of a head", is_slow=False),
    Architecture("gpt_bigcode", "one key-value head", is_slow=False),
    Architecture("llama", "rotary positions, grouped heads", is_slow=False),
    Architecture("qwen2", "biases in attention", is_slow=False),
    Architecture(
        "qwen2",
        "sliding windows in some layers",
        {
            "use_sliding_window": True,
            "max_window_layers": 1,
            "layer_types": ["full_attention", "sliding_attention"],
        },
        is_slow=False,
    ),
    Architecture("qwen3", "norms on queries and keys", is_slow=False),
    Architecture("mistral", "sliding windows", is_slow=False),
    Architecture("mixtral", "mixture of experts", is_slow=False),
    Architecture("gemma", "heads wider than the model", is_slow=False),
    Architecture(
        "gemma2",
        "soft caps and sliding windows",
        {"layer_types": ["sliding_attention", "full_attention"]},
        is_slow=False,
    ),
    Architecture(
        "gemma3_text",
        "sliding windows with their own rotary frequencies",
        {"layer_types": ["sliding_attention", "full_attention"]},
        is_slow=False,
    ),
    Architecture("phi", "rotary positions on a part of a head, parallel blocks", is_slow=False),
    Architecture("phi3", "one matrix for queries, keys and values", is_slow=False),
    Architecture("olmo2", "norms behind the layers", is_slow=False),
    Architecture(
        "olmo3",
        "sliding windows",
        {"layer_types": ["sliding_attention", "full_attention"]},
        is_slow=False,
    ),
    Architecture("smollm3", "layers without positions", {"no_rope_layers": [1, 0]}, is_slow=False),
    Architecture("mpt", "ALiBi", is_slow=False),
    Architecture("falcon", "one key-value head, parallel blocks", is_slow=False),
    Architecture("falcon", "grouped heads", {"new_decoder_architecture": True}, is_slow=False),
    Architecture("gpt_oss", "attention sinks, sliding windows, experts", is_slow=False),
    Architecture(
        "deepseek_v3", "latent attention, experts", {**_MLA, "n_shared_experts": 1}, is_slow=False
    ),
    Architecture("llama", "rotary scaling: linear", _rope(rope_type="linear", factor=2.0)),
    Architecture(
        "llama",
        "rotary scaling: llama3",
        _rope(
            rope_type="llama3",
            factor=2.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=8,
        ),
        is_slow=False,
    ),
    Architecture(
        "llama",
        "rotary scaling: yarn",
        _rope(rope_type="yarn", factor=4.0, original_max_position_embeddings=16),
        is_slow=False,
    ),
    Architecture(
        "llama",
        "rotary scaling: dynamic, never reached",
        _rope(rope_type="dynamic", factor=2.0),
        is_slow=False,
    ),
    Architecture(
        "phi3",
        "rotary scaling: longrope, by the longest sequence",
        {
            "original_max_position_embeddings": 8,
            **_rope(
                rope_type="longrope",
                short_factor=[1.0] * 4,
                long_factor=[2.0] * 4,
                factor=8.0,
                original_max_position_embeddings=8,
                partial_rotary_factor=1.0,
            ),
        },
        "not causal",
        is_slow=False,
    ),
    Architecture(
        "gpt_neo",
        "local attention within P+T",
        {"num_layers": 2, "attention_types": [[["global", "local"], 1]], "window_size": 5},
        _BY_TOKEN,
        is_slow=False,
    ),
    Architecture(
        "gpt_neo",
        "local attention wider than P+T",
        {"num_layers": 2, "attention_types": [[["global", "local"], 1]], "window_size": 32},
        is_slow=False,
    ),
    Architecture("bloom", "ALiBi, from a padding mask", {}, _BY_TOKEN, is_slow=False),
    Architecture("falcon", "ALiBi, from a padding mask", {"alibi": True}, _BY_TOKEN, is_slow=False),
    Architecture("cohere", "scaled logits", {}, _LOGITS, is_slow=False),
    Architecture("granite", "scaled logits", {"logits_scaling": 2.0}, _LOGITS, is_slow=False),
    Architecture("bert", "a head behind the trunk", {}, _LOGITS, is_slow=False),
    Architecture("bart", "positions counted by the cache", {}, _BY_TOKEN, is_slow=False),
    Architecture("openai-gpt", "no cache", {}, _NO_CACHE, is_slow=False),
    Architecture("rwkv", "recurrent", {}, _NO_CACHE, is_slow=False),
    Architecture("mamba", "state space", {}, _LAYERS, is_slow=False),
    Architecture("jamba", "attention and state space", {}, _LAYERS, is_slow=False),
    Architecture("qwen3_next", "linear attention", {}, _LAYERS, is_slow=False),
    Architecture("llama4_text", "a trunk without hidden states", {}, "no trunk", is_slow=False),
    # The rest of transformers
    *_all(_FULL_ATTENTION),
    *_all(_WINDOWS, kind="sliding windows"),
    *_all("deepseek_v2 glm4_moe_lite youtu", kind="latent attention", settings=_MLA),
    *_all("cohere2 cohere2_moe", kind="scaled logits", refused=_LOGITS),
    *_all(
        "big_bird camembert data2vec-text electra ernie megatron-bert roberta "
        "roberta-prelayernorm roc_bert roformer xlm-roberta xlm-roberta-xl modernbert-decoder",
        kind="a head behind the trunk",
        refused=_LOGITS,
    ),
    *_all(
        "bigbird_pegasus blenderbot blenderbot-small marian mbart mvp pegasus plbart moshi trocr",
        kind="positions counted by the cache",
        refused=_BY_TOKEN,
    ),
    *_all("falcon_mamba minimax nemotron_h olmo_hybrid", kind="linear", refused=_LAYERS),
    *_all("qwen3_5_text qwen3_5_moe_text", kind="linear attention", refused=_LAYERS),
    *_all("deepseek_v4 hy_v4 inkling2_text lfm3", kind="its own attention", refused=_LAYERS),
    *_all("cpmant", kind="not causal", refused="not causal"),
    *_all("prophetnet", kind="a head behind the trunk", refused=_LOGITS),
    *_all("minicpm3", kind="scaled logits", settings=_MLA, refused=_LOGITS),
]


_INTRODUCTION = """\
# Architectures

While it samples, the language model is run on one new token at a time, with keys and values from a
cache whose rows are of different age. That is right only where the model's masks, positions and
frequencies depend on the row's own tokens. So a model is used only where it is known that its
cached step gives what its plain forward gives; else it is refused by name, with the reason, when
the environment or the policy is made.

- These families (`tokenenv.models.cache_check.TESTED_FAMILIES`) are taken as they are, where their
  config sets nothing but sizes, sliding windows, tied embeddings and plain rotary frequencies:
  {families}.
- Any other model is checked once per process and config, when the environment, the policy or the
  critic is made: three sequences of different length are decoded over the full P+T and compared
  with transformers' own forward of each alone, without cache and padding; so is one forward of all
  three padded on the right, as updates compute it. Up to 50 M parameters it is a float32 copy with
  random weights that is checked, so that the result does not depend on how far a model is trained;
  larger ones are checked as they are. Of a critic without an output layer the hidden states are
  compared. What rounding may do is measured on the model itself: the same forward with every
  module's result moved by about one rounding. Differences may be 4 times that in float32 (1.5 times
  in half precision), at least 1e-4 and at most 1e-2 nats, or of the largest hidden state (8 and 256
  roundings of the dtype, where that is more); log-probabilities beyond -20 widen it in proportion.
  In half precision the mean KL is held as well, to 1e-2 (bfloat16) or 1e-3 (float16).
- The check costs what it costs to sample one response of T tokens, and some full forwards.
- During training, `RLHFCallback` evaluates some 256 tokens of every rollout again by a full forward
  in float32, and warns where their approximate KL exceeds 1e-4 before any step. Tokens that an
  earlier policy sampled are left out.

`python tests/support/architectures.py` prints this page; `tests/models/test_architectures.py` runs
every row with a tiny random model over the full P+T, four rows of different length:
log-probabilities of the environment, of the policy while sampling and of the update equal the plain
forward's to 1e-4, or making the environment raises the reason. "Refused" holds for the models as
they are built here: their cause is in what is unusual, not in their size.

| family | what is unusual | result |
|---|---|---|
"""


def table() -> str:
    """`docs/architectures.md`."""
    rows = sorted(
        f"| `{a.model_type}` | {a.kind} | {'equal' if a.refused is None else 'refused'} |"
        for a in ARCHITECTURES
    )
    families = ", ".join(f"`{name}`" for name in TESTED_FAMILIES)
    wrapped = textwrap.fill(families, 90, subsequent_indent="  ")
    return _INTRODUCTION.format(families=wrapped) + "\n".join(rows) + "\n"


if __name__ == "__main__":
    sys.stdout.write(table())
