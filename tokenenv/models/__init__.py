"""Causal language models: loading, the cached step, log-probabilities, sampling.

* `loading`: what a name may be, one load at a time; `language_model`: loading and building;
  `forward`: trunk and head; `preparation`: fused weights; `encoding`: text and ids; `chat`:
  conversations as text.
* `slot_cache`, `slot_decoder`, `decode_step`: one token for many sequences of different age;
  `cache_check`, `step_comparison`: the cached step is the plain forward, or the model is refused;
  `weight_watch`: notices weights that were written.
* `adapters`, `adapter_files`: low-rank adapters over frozen weights that several models share.
* `precision`: float32, or bfloat16 by autocast.
* `one_process`: how a training on batches shares its work among processes: here, not at all.
* `packing`: whole sequences for one forward; `log_probs`: of tokens and responses.
* `sampling`: responses; `reference`, `reference_decoder`: the frozen model, step by step.
"""

from tokenenv.models.adapter_files import load_adapter, save_adapter
from tokenenv.models.adapters import (
    LoraSettings,
    add_lora,
    copy_sharing_frozen,
    is_adapter_weight,
    merged,
)
from tokenenv.models.cache_check import check_cached_step
from tokenenv.models.chat import (
    ChatTemplate,
    as_turn_messages,
    end_of_turn_id,
    texts_at_the_seam,
)
from tokenenv.models.decode_step import (
    attention_masks,
    attention_windows,
    bucket_width,
    graph_capture,
    no_capture,
)
from tokenenv.models.encoding import (
    decode_all,
    eos_ids_of,
    join_ids,
    prompt_ids,
    prompt_text,
    seam_differences,
)
from tokenenv.models.forward import output_logits, trunk_hidden_states
from tokenenv.models.language_model import (
    LanguageModel,
    build_language_model,
    check_complete,
    check_context,
    freeze,
    load_frozen,
    load_trainable,
)
from tokenenv.models.loading import (
    SharedLoader,
    check_config,
    check_source,
    check_tokenizer,
    load_tokenizer,
    loading_errors,
    one_at_a_time,
    output_folder,
    quiet_loading,
    resolve_device,
    resolve_dtype,
)
from tokenenv.models.log_probs import (
    GPU_FACTOR,
    NonFiniteNumbers,
    log_softmax,
    refuse_nan,
    response_log_probs,
    rows_at_once,
    sample_tokens,
    tempered_logits,
    token_log_probs,
)
from tokenenv.models.one_process import OneProcess
from tokenenv.models.packing import (
    MICRO_BATCH_TOKENS,
    PackedSequences,
    hidden_states,
    minibatch_indices,
    pack,
    pack_observations,
    pad_right,
    token_batches,
)
from tokenenv.models.precision import computing_in, seconds_by_precision
from tokenenv.models.preparation import check_weights, enable_checkpointing, prepare
from tokenenv.models.reference import Reference
from tokenenv.models.reference_decoder import ReferenceDecoder
from tokenenv.models.sampling import SampledResponse, sample_responses
from tokenenv.models.slot_cache import SlotCache, cache_argument
from tokenenv.models.slot_decoder import SlotDecoder
from tokenenv.models.weight_watch import WeightWatch, contents_digest

__all__ = [
    "GPU_FACTOR",
    "MICRO_BATCH_TOKENS",
    "ChatTemplate",
    "LanguageModel",
    "LoraSettings",
    "NonFiniteNumbers",
    "OneProcess",
    "PackedSequences",
    "Reference",
    "ReferenceDecoder",
    "SampledResponse",
    "SharedLoader",
    "SlotCache",
    "SlotDecoder",
    "WeightWatch",
    "add_lora",
    "as_turn_messages",
    "attention_masks",
    "attention_windows",
    "bucket_width",
    "build_language_model",
    "cache_argument",
    "check_cached_step",
    "check_complete",
    "check_config",
    "check_context",
    "check_source",
    "check_tokenizer",
    "check_weights",
    "computing_in",
    "contents_digest",
    "copy_sharing_frozen",
    "decode_all",
    "enable_checkpointing",
    "end_of_turn_id",
    "eos_ids_of",
    "freeze",
    "graph_capture",
    "hidden_states",
    "is_adapter_weight",
    "join_ids",
    "load_adapter",
    "load_frozen",
    "load_tokenizer",
    "load_trainable",
    "loading_errors",
    "log_softmax",
    "merged",
    "minibatch_indices",
    "no_capture",
    "one_at_a_time",
    "output_folder",
    "output_logits",
    "pack",
    "pack_observations",
    "pad_right",
    "prepare",
    "prompt_ids",
    "prompt_text",
    "quiet_loading",
    "refuse_nan",
    "resolve_device",
    "resolve_dtype",
    "response_log_probs",
    "rows_at_once",
    "sample_responses",
    "sample_tokens",
    "save_adapter",
    "seam_differences",
    "seconds_by_precision",
    "tempered_logits",
    "texts_at_the_seam",
    "token_batches",
    "token_log_probs",
    "trunk_hidden_states",
]
