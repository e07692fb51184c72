"""Configs as they are published: what is read of them, and parity at their width.

Written from memory of the models' pages, since no checkpoint was at hand. Layers and words of
the vocabulary are fewer, to save time.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from prumux.optimizer.model.hf_checkpoint import read_config
from tests.helpers.family_checks import HEADS, Head, check_parity, given

WHOLE = os.environ.get("PRUMUX_MATRIX") == "1"
FEWER: dict[str, Any] = {"vocab_size": 500, "pad_token_id": 0}
_MODERNBERT: dict[str, Any] = {
    "model_type": "modernbert",
    "attention_bias": False,
    "classifier_activation": "gelu",
    "classifier_bias": False,
    "classifier_pooling": "mean",
    "decoder_bias": True,
    "deterministic_flash_attn": False,
    "global_attn_every_n_layers": 3,
    "global_rope_theta": 160000.0,
    "hidden_activation": "gelu",
    "hidden_size": 768,
    "initializer_cutoff_factor": 2.0,
    "intermediate_size": 1152,
    "layer_norm_eps": 1e-05,
    "local_attention": 128,
    "local_rope_theta": 10000.0,
    "max_position_embeddings": 8192,
    "mlp_bias": False,
    "norm_bias": False,
    "norm_eps": 1e-05,
    "num_attention_heads": 12,
    "num_hidden_layers": 4,
    "position_embedding_type": "absolute",
    "sparse_prediction": False,
    **{"bos_token_id": 1, "cls_token_id": 1, "eos_token_id": 2, "sep_token_id": 2},
}
CONFIGS: dict[str, dict[str, Any]] = {
    "ModernBERT-base": _MODERNBERT | {"classifier_pooling": "cls"},
    "gte-modernbert-base": _MODERNBERT,
    "ettin-encoder-32m": _MODERNBERT
    | {
        "causal_mask": False,
        "is_causal": False,
        "hidden_size": 384,
        "intermediate_size": 576,
        "num_attention_heads": 6,
        "local_rope_theta": 160000.0,
        "max_position_embeddings": 7999,
        "position_embedding_type": "sans_pos",
        "tie_word_embeddings": True,
    },
    "deberta-v3-base": {
        "model_type": "deberta-v2",
        "hidden_act": "gelu",
        "hidden_size": 768,
        "intermediate_size": 3072,
        "max_position_embeddings": 512,
        "relative_attention": True,
        "position_buckets": 256,
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
        "pos_att_type": "p2c|c2p",
        "layer_norm_eps": 1e-7,
        "max_relative_positions": -1,
        "position_biased_input": False,
        "num_attention_heads": 12,
        "num_hidden_layers": 2,
        "type_vocab_size": 0,
    },
    "albert-base-v2": {
        "model_type": "albert",
        "classifier_dropout_prob": 0.1,
        "down_scale_factor": 1,
        "embedding_size": 128,
        "gap_size": 0,
        "hidden_act": "gelu_new",
        "hidden_size": 768,
        "inner_group_num": 1,
        "intermediate_size": 3072,
        "layer_norm_eps": 1e-12,
        "max_position_embeddings": 512,
        "net_structure_type": 0,
        "num_attention_heads": 12,
        "num_hidden_groups": 1,
        "num_hidden_layers": 2,
        "num_memory_blocks": 0,
        "type_vocab_size": 2,
    },
    "nomic-embed-text-v1.5": {
        "model_type": "nomic_bert",
        "hidden_act": "silu",
        "hidden_size": 768,
        "intermediate_size": 3072,
        "layer_norm_eps": 1e-12,
        "max_position_embeddings": 2048,
        "num_attention_heads": 12,
        "num_hidden_layers": 2,
        "rope_parameters": {"rope_theta": 1000.0, "rope_type": "default"},
        "type_vocab_size": 2,
    },
    "gte-multilingual-base": {
        "model_type": "gte",
        "hidden_act": "gelu",
        "hidden_size": 768,
        "intermediate_size": 3072,
        "layer_norm_eps": 1e-12,
        "max_position_embeddings": 8192,
        "num_attention_heads": 12,
        "num_hidden_layers": 2,
        "rope_parameters": {"rope_theta": 160000.0, "rope_type": "default"},
        "type_vocab_size": 1,
    },
}
CONFIGS["EuroBERT-210m"] = {
    "model_type": "eurobert",
    "attention_bias": False,
    "classifier_pooling": "late",
    "hidden_act": "silu",
    "hidden_size": 768,
    "intermediate_size": 3072,
    "max_position_embeddings": 8192,
    "mlp_bias": False,
    "num_attention_heads": 12,
    "num_hidden_layers": 2,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_theta": 250000,
    **{"bos_token_id": 1, "eos_token_id": 2, "mask_token_id": 3},
}
LENGTHS = {"ModernBERT-base": 600, "gte-modernbert-base": 200, "ettin-encoder-32m": 600}
"""Beyond half a window of 64, and beyond 512; others 512, DeBERTa's most is 600."""


def named(name: str) -> tuple[str, dict[str, Any]]:
    """Model type and config of a published model, smaller."""
    found = CONFIGS[name] | FEWER
    return found["model_type"], {k: x for k, x in found.items() if k != "model_type"}


@pytest.mark.parametrize("name", CONFIGS)
def test_the_published_config_is_that_of_transformers(name: str, tmp_path: Path) -> None:
    """As transformers writes it again, with other keys, it gives the same sizes."""
    model_type, sizes = named(name)
    sizes |= {"hidden_size": 24, "num_attention_heads": 2, "intermediate_size": 20}
    _, model = given(tmp_path, model_type, HEADS[0], **sizes)
    of = {"architectures": ["XForSequenceClassification"], "num_labels": 3, **sizes}
    _, encoder, _ = read_config(of | {"model_type": model_type})
    assert (model.encoder.token_types, encoder.token_types) in {(0, 0), (2, 2), (0, 1)}
    assert encoder.constants == model.encoder.constants
    assert (encoder.pooling, encoder.head) == (model.encoder.pooling, model.encoder.head)
    assert (encoder.activation, encoder.norm_eps) == (
        model.encoder.activation,
        model.encoder.norm_eps,
    )


@pytest.mark.slow
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("name", CONFIGS if WHOLE else ["ettin-encoder-32m"])
def test_the_same_as_transformers_at_its_width(name: str, head: Head, tmp_path: Path) -> None:
    model_type, sizes = named(name)
    length = LENGTHS.get(name, 600 if model_type == "deberta-v2" else 512)
    check_parity(tmp_path, model_type, head, length, spread=0.01, **sizes)
