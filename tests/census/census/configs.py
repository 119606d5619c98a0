"""A small configuration of every causal language model of transformers: one table of sizes by field, few exceptions.

Whatever fields a configuration class has get the size that the table names; fields that the table does not know keep
their defaults. A new architecture therefore needs an entry in `SPECIAL` only where that is not enough.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import transformers as tf
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

VOCABULARY = 64
WINDOW = 8  # narrower than the longest sample
POSITIONS = 64

_SIZES: tuple[tuple[int | bool, str], ...] = (
    (
        32,
        "hidden_size d_model n_embd emb_dim embedding_dim embedding_size word_embed_proj_dim lru_width "
        "attention_hidden_size input_embedding_size output_embedding_size hidden_size_global input_size "
        "backbone_hidden_size out_hidden_size mm_embed_dim output_proj_dims projector_input_dim projector_output_dim "
        "adapter_in_dim adapter_out_dim adapter_input_size downsample_hidden_size output_channels "
        "pronunciation_embed_dim shape_embed_dim ext_pw_out_channel depthwise_separable_out_channel "
        "nemo_conv_channels base_channels audio_embed_dim",
    ),
    (
        48,
        "intermediate_size ffn_dim decoder_ffn_dim encoder_ffn_dim n_inner dff dim_ff d_inner feed_forward_size "
        "ffn_hidden_size intermediate_size_mlp dense_intermediate_size prefix_dense_intermediate_size mlp_dim",
    ),
    (
        24,
        "moe_intermediate_size shared_expert_intermediate_size shared_intermediate_size expert_ffn_hidden_size "
        "shared_experts_intermediate_size moe_shared_expert_intermediate_size",
    ),
    (
        4,
        "num_hidden_layers n_layer n_layers num_layers decoder_layers num_decoder_layers encoder_layers "
        "num_encoder_layers layer_group_size n_layers_per_attn_res_block "
        "num_attention_heads n_head n_heads num_heads decoder_attention_heads encoder_attention_heads attention_heads "
        "num_encoder_attention_heads num_decoder_attention_heads swa_num_attention_heads conf_num_attention_heads "
        "num_experts num_local_experts n_routed_experts moe_num_experts hidden_size_per_layer_input "
        "linear_num_value_heads linear_num_heads time_step_rank mamba_dt_rank "
        "index_topk compressor_rank qk_rope_head_dim rotary_dim laurel_rank gated_norm_rank d_rel loop_gate_rank "
        "num_centroids ple_conv_kernel_size adapter_rank max_num_tiles",
    ),
    (
        2,
        "num_key_value_heads num_kv_heads swa_num_key_value_heads kv_n_heads "
        "num_experts_per_tok moe_topk moe_k moe_top_k top_k_experts linear_num_key_heads n_groups "
        "index_n_heads conf_num_hidden_layers depth num_random_blocks num_blocks num_global_layers "
        "mamba_n_groups conf_attention_context_left",
    ),
    (
        1,
        "num_dense_layers first_k_dense_replace n_shared_experts num_shared_experts moe_num_shared_experts "
        "num_kv_shared_layers n_group topk_group prompt_length num_res_blocks num_mem_blocks",
    ),
    (
        8,
        "head_dim swa_head_dim kv_channels dim_head attention_head_size d_head attention_head_dim v_head_dim "
        "qk_nope_head_dim linear_key_head_dim linear_value_head_dim linear_head_dim mamba_d_head mamba_head_dim "
        "index_head_dim indexer_head_dim mamba_d_state state_size ssm_state_size query_pre_attn_scalar rel_extent "
        "router_hidden_size mamba_n_heads mamba_num_heads o_lora_rank q_lora_rank kv_lora_rank hc_lowrank patch_size",
    ),
    (
        16,
        "chunk_size mamba_chunk_size centroid_intermediate_top_k image_size num_mel_bins block_multiple_of "
        "input_feat_size feature_size",
    ),
    (64, "mamba_d_ssm"),
    (
        WINDOW,
        "sliding_window sliding_window_size window_size local_attention attention_window_size "
        "attention_chunk_size local_attention_window_len keep_window_size",
    ),
    (
        POSITIONS,
        "max_position_embeddings n_positions n_ctx max_seq_len context_length max_target_positions "
        "max_source_positions log_scaling_n_floor original_max_position_embeddings mm_posemb_size "
        "position_embedding_size num_position_embeddings",
    ),
    (
        VOCABULARY,
        "vocab_size vocab_size_per_layer_input decoder_vocab_size pronunciation_vocab_size shape_vocab_size "
        "output_vocab_size unpadded_vocab_size audio_vocab_size codebook_size encoder_hash_byte_group_vocab",
    ),
    (
        True,
        "is_decoder causal",
    ),
    (
        False,
        "is_encoder_decoder use_mamba_kernels is_encoder use_cache_in_training",
    ),
)
FIELDS: dict[str, Any] = {name: size for size, names in _SIZES for name in names.split()}
FIELDS |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}

# where a class has the field on the left: latent attention keeps as many keys as queries
WHERE: dict[str, dict[str, Any]] = {"kv_lora_rank": {"num_key_value_heads": 4}}

_HYBRID = ["linear_attention", "full_attention"] * 2
_WINDOWS = ["sliding_attention", "full_attention"] * 2
_SHARED = ["linear_attention", "hybrid"] * 2
_LARGE_INDEX = {"indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_budget": 4, "indexer_compress_ratio": 2}
_NGRAMS = {"ngram_vocab_size_base": 16, "heads_per_ngram": 2, "split_ngram_parts": 2, "ple_layer_ids": [1]}
_DOTS = {
    "num_key_value_heads": 4,
    "swa_num_attention_heads": 4,
    "swa_num_key_value_heads": 4,
    "swa_q_lora_rank": 8,
    "swa_kv_lora_rank": 8,
    "swa_head_dim": 12,
    "swa_qk_nope_head_dim": 8,
    "swa_v_head_dim": 8,
    "head_dim": 12,
}
_TEXT = {"text_config": {"model_type": "qwen2"}}

SPECIAL: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1, 3]},
    "cohere_compass_text": {
        "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}
    },
    "dbrx": {"attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0}},
    "dory": {"num_hidden_layers": 4, "n_input_layers": 1, "n_output_layers": 1, "n_recurrent_layers": 2},
    "dots3_note": {"text_config": _DOTS, "vision_config": {"mlp_layer_types": ["dense", "sparse"] * 2}},
    "dots3_note_text": _DOTS,
    "fuyu": {"text_config": {"model_type": "persimmon"}},
    "gemma3": {
        "text_config": {"layer_types": _WINDOWS},
        "vision_config": {"model_type": "siglip_vision_model"},
    },
    "gemma3_text": {"layer_types": _WINDOWS},
    "gemma3n_text": {"layer_types": _WINDOWS, "num_kv_shared_layers": 2},
    "gemma4": {"text_config": {"layer_types": _WINDOWS, "num_kv_shared_layers": 2, "global_head_dim": 8}},
    "gemma4_text": {"layer_types": _WINDOWS, "num_kv_shared_layers": 2, "global_head_dim": 8},
    "gemma4_unified": {
        "text_config": {"layer_types": _WINDOWS, "num_kv_shared_layers": 2, "global_head_dim": 8}
    },
    "gemma4_unified_text": {"layer_types": _WINDOWS, "num_kv_shared_layers": 2, "global_head_dim": 8},
    "got_ocr2": _TEXT,
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "granitemoehybrid": {"layer_types": _HYBRID},
    "inkling2_loop_text": {
        "n_layers_per_attn_res_block": 1,
        "loop_layer_index_start": 1,
        "loop_layer_index_end": 3,
        "loop_num_passes": 2,
    },
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "kimi_linear": {"layer_types": _HYBRID},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "longcat_flash": {"num_layers": 2, "zero_expert_num": 2, "head_dim": 4},
    "mamba2": {"num_heads": 8},
    "mllama": {"text_config": {"cross_attention_layers": []}},
    "moss_transcribe_diarize": _TEXT,
    "qwen4_exp": {"text_config": {**_LARGE_INDEX, **_NGRAMS}},
    "qwen4_exp_text": {**_LARGE_INDEX, **_NGRAMS},
    "reformer": {
        "attn_layers": ["local", "lsh"],
        "axial_pos_shape": [8, 8],
        "axial_pos_embds_dim": [16, 16],
        "local_attn_chunk_length": 8,
        "lsh_attn_chunk_length": 8,
        "num_buckets": 4,
        "hash_seed": 0,
    },
    "xlm": {"is_encoder": True},
    "xlstm": {"hidden_size": 128, "embedding_dim": 128},
    "xmod": {"default_language": "en_XX"},
    "zamba": {"layers_block_type": _SHARED, "attention_hidden_size": 64, "attention_head_dim": 16},
    "zamba2": {"layers_block_type": _SHARED},
    "zaya": {"num_experts_per_tok": 1},
}

# entries that are no language model by themselves
_DRAFTS = "it drafts for another model, whose hidden states and cache it takes beside text"
_SOUND = "it takes the decoder's part of its configuration, and codes of sound for text"
NOT_BUILT: dict[str, str] = {
    "gemma4_assistant": _DRAFTS,
    "gemma4_unified_assistant": _DRAFTS,
    "musicgen": _SOUND,
    "musicgen_melody": _SOUND,
}


def model_types() -> list[str]:
    """Every entry of transformers' mapping for causal language models, in its order."""
    return list(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def class_name(model_type: str) -> str:
    """The class that the mapping names for a model type."""
    name = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type]
    return name if isinstance(name, str) else name[0]


def small_config(model_type: str) -> tf.PretrainedConfig:
    """The configuration of a small model of that type."""
    return _small(tf.CONFIG_MAPPING[model_type], SPECIAL.get(model_type, {}))


def _small(config_class: type[tf.PretrainedConfig], special: dict[str, Any]) -> tf.PretrainedConfig:
    names = {field.name for field in dataclasses.fields(config_class)}
    values = {name: size for name, size in FIELDS.items() if name in names}
    for field, sizes in WHERE.items():
        values |= sizes if field in names else {}
    for name, part in config_class.sub_configs.items():
        own = special.get(name, {})
        part = tf.CONFIG_MAPPING[own["model_type"]] if "model_type" in own else part
        if part is not tf.AutoConfig:
            values[name] = _small(part, own)
    values |= {name: value for name, value in special.items() if name not in config_class.sub_configs}
    return config_class(**values)
