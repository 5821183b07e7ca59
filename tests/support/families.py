"""Small random models of every causal family that transformers can make, for the comparison with the plain model."""

from __future__ import annotations

from typing import Any, Final

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from sdsearch.model.attention import TREE_ATTENTIONS, AttentionKind

FAMILIES: Final = tuple(sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))
VOCABULARY: Final = 448
WINDOW: Final = 20
_LARGEST: Final = 3_000_000
# The names that configurations give to sizes; each family takes those that its own configuration has.
_SIZES: Final[dict[int, tuple[str, ...]]] = {
    VOCABULARY: ("vocab_size",),
    32: (
        *("hidden_size", "d_model", "n_embd", "dim", "embedding_size", "word_embed_proj_dim", "emb_dim"),
        *("lru_width", "attention_hidden_size", "ffn_hidden_size", "hidden_size_per_layer_input"),
    ),
    48: ("intermediate_size", "ffn_dim", "n_inner", "d_ff", "decoder_ffn_dim", "encoder_ffn_dim", "dff"),
    24: ("moe_intermediate_size", "shared_expert_intermediate_size", "expert_ffn_hidden_size"),
    16: ("q_lora_rank", "kv_lora_rank"),
    8: ("head_dim", "d_kv", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim", "global_head_dim", "rotary_dim"),
    4: (
        *("num_attention_heads", "n_head", "num_heads", "n_heads", "decoder_attention_heads"),
        *("encoder_attention_heads", "num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"),
    ),
    2: (
        *("num_hidden_layers", "n_layer", "num_layers", "n_layers", "decoder_layers", "encoder_layers"),
        *("num_key_value_heads", "num_kv_heads", "num_experts_per_tok", "moe_k", "moe_topk", "top_k_experts"),
    ),
    1: ("n_group", "topk_group", "n_shared_experts", "first_k_dense_replace"),
    512: ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length", "max_sequence_length"),
    WINDOW: ("sliding_window", "attention_chunk_size", "window_size", "index_topk"),
}
_RANDOM: Final = {"initializer_range": 0.3, "init_std": 0.3}
_TOKENS: Final = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
# Settings under which a family's own rules are at work, or without which it cannot be made this small.
_OWN: Final[dict[str, dict[str, Any]]] = {
    "bamba": {"mamba_n_heads": 8, "mamba_d_head": 8, "attn_layer_indices": [1]},
    "cohere": {"logit_scale": 0.5},
    "gemma2": {"final_logit_softcapping": 3.0, "attn_logit_softcapping": 2.0, "query_pre_attn_scalar": 8},
    "gemma3_text": {"layer_types": ["sliding_attention", "full_attention"], "query_pre_attn_scalar": 8},
    "gemma3n_text": {
        **{"layer_types": ["sliding_attention", "full_attention"] * 2, "num_hidden_layers": 4},
        **{"num_kv_shared_layers": 2, "vocab_size_per_layer_input": VOCABULARY, "laurel_rank": 8},
        **{"intermediate_size": 48, "activation_sparsity_pattern": None},
    },
    "gemma4_text": {
        **{"layer_types": ["sliding_attention", "full_attention"], "vocab_size_per_layer_input": VOCABULARY},
        **{"final_logit_softcapping": 3.0},
    },
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granite": {"logits_scaling": 3.0, "embedding_multiplier": 2.0, "residual_multiplier": 0.5},
    "granitemoehybrid": {"mamba_n_heads": 8, "mamba_d_head": 8, "layer_types": ["mamba", "attention"]},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "llama4_text": {"layer_types": ["chunked_attention", "full_attention"], "no_rope_layers": [1, 0]},
    "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 1},
    "qwen2": {"use_sliding_window": True, "max_window_layers": 0},
    "reformer": {"is_decoder": True},
}
# Variants of a family for other values of a setting that changes how it attends.
VARIANTS: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "qwen2 without a window": ("qwen2", {"use_sliding_window": False}),
    "mistral without a window": ("mistral", {"sliding_window": None}),
}


def small_config(name: str, **own: Any) -> PreTrainedConfig:
    """A configuration of a family or variant: two small layers, a window of WINDOW tokens where the family has one."""
    family, variant = VARIANTS.get(name, (name, {}))
    like = CONFIG_MAPPING[family]()
    text = like.get_text_config()
    return type(text)(**(_sizes_of(text) | _TOKENS | _OWN.get(text.model_type, {}) | variant | own))


def small_model(name: str, attention: AttentionKind = "split", **own: Any) -> PreTrainedModel:
    """A model with random weights, float32; ValueError (or what transformers raises) where it cannot be this small."""
    config = small_config(name, **own)
    with torch.device("meta"):
        parameters = AutoModelForCausalLM.from_config(config).num_parameters()
    if parameters > _LARGEST:
        raise ValueError(f"has {parameters / 1e6:.0f} million weights at least")
    torch.manual_seed(1)
    return AutoModelForCausalLM.from_config(config, attn_implementation=TREE_ATTENTIONS[attention]).eval()


def _sizes_of(config: PreTrainedConfig) -> dict[str, Any]:
    known = {*vars(config), *(getattr(config, "attribute_map", None) or {})}
    sizes = {name: size for size, names in _SIZES.items() for name in names if name in known}
    if "kv_lora_rank" in known:
        sizes["num_key_value_heads"] = sizes["num_attention_heads"]
    return sizes | {name: value for name, value in _RANDOM.items() if name in known}
