"""Selects the keys of a given config.json that the optimised model's config.json keeps.

These keys are for other libraries. Examples are `sentence_transformers` (the activation of a
reranker), `finetuning_task` and `label_names`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

DROPPED = frozenset(
    {
        # replaced by prumux's own fields; wrong for a pruned model
        *("model_type", "architectures", "problem_type", "id2label", "label2id", "num_labels"),
        *("pad_token_id", "hidden_size", "num_hidden_layers", "num_attention_heads"),
        *("intermediate_size", "vocab_size", "max_position_embeddings", "type_vocab_size"),
        *("embedding_size", "dim", "n_layers", "n_heads", "hidden_dim", "hidden_act"),
        *("activation", "layer_norm_eps", "norm_eps", "position_embedding_type"),
        *("is_decoder", "add_cross_attention", "cross_attention_hidden_size"),
        *("is_encoder_decoder", "relative_attention_num_buckets", "hidden_activation"),
        *("classifier_activation", "classifier_pooling", "norm_bias", "mlp_bias"),
        *("attention_bias", "classifier_bias", "decoder_bias", "layer_types"),
        *("rope_parameters", "rope_theta", "global_rope_theta", "local_rope_theta"),
        *("local_attention", "global_attn_every_n_layers", "sinusoidal_pos_embds"),
        *("summary_type", "summary_use_proj", "summary_activation", "summary_last_dropout"),
        *("relative_attention", "max_relative_positions", "position_biased_input"),
        *("pos_att_type", "position_buckets", "norm_rel_ebd", "share_att_key"),
        *("pooler_hidden_size", "pooler_hidden_act", "attention_head_size"),
        *("num_hidden_groups", "inner_group_num", "head_dim", "rope_scaling"),
        *("num_key_value_heads", "rms_norm_eps", "pretraining_tp", "mask_token_id"),
        *("conv_kernel_size", "conv_groups", "conv_act", "causal_mask", "is_causal"),
        # settings of training and of the architecture's code
        *("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"),
        *("dropout", "attention_dropout", "seq_classif_dropout", "qa_dropout"),
        *(
            "embedding_dropout",
            "mlp_dropout",
            "initializer_range",
            "initializer_cutoff_factor",
        ),
        *("classifier_dropout_prob", "pooler_dropout", "cls_dropout", "legacy"),
        *("gradient_checkpointing", "use_cache", "tie_word_embeddings", "tie_weights_"),
        *("chunk_size_feed_forward", "pruned_heads", "torchscript", "use_bfloat16"),
        *("reference_compile", "deterministic_flash_attn", "repad_logits_with_grad"),
        *("sparse_prediction", "sparse_pred_ignore_index", "attn_implementation"),
        # facts about the file, or settings that require other code
        *("_name_or_path", "name_or_path", "transformers_version", "torch_dtype", "dtype"),
        *("auto_map", "quantization_config", "_attn_implementation", "custom_pipelines"),
        *("output_attentions", "output_hidden_states", "return_dict", "use_return_dict"),
        *("_commit_hash", "_attn_implementation_internal", "trust_remote_code"),
        # prumux's own keys
        *("prumux_format", "encoder", "heads_per_layer", "ffn_per_layer", "mux", "source"),
        *("sentence_embedding", "prumux_sentence_head", "question_answering"),
    }
)


def kept_keys(config: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a given config.json that the optimised model's config.json keeps."""
    named = {str(k): v for k, v in config.items()}
    return {k: v for k, v in named.items() if k not in DROPPED and not k.startswith("_")}
