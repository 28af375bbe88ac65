"""A BERT of random weights against the formula, fused attention against eager."""

import pytest
import torch
from torch import Tensor

from prunus.meter import count_macs

transformers = pytest.importorskip("transformers")

LAYERS, WIDTH, HEADS, HIDDEN, TOKENS = 2, 24, 3, 40, 9


def encoded() -> dict[str, Tensor]:
    ones = torch.ones(1, TOKENS, dtype=torch.long)
    return {"input_ids": ones, "attention_mask": ones.clone()}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_bert_follows_the_formula_whatever_its_attention(attention: str) -> None:
    config = transformers.BertConfig(
        vocab_size=31,
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=HIDDEN,
        max_position_embeddings=16,
        attn_implementation=attention,
    )
    counted = count_macs(transformers.BertModel(config), encoded())
    projections = 4 * TOKENS * WIDTH**2
    products = 2 * TOKENS**2 * WIDTH
    feed_forward = 2 * TOKENS * WIDTH * HIDDEN
    pooler = WIDTH**2
    assert counted.macs == LAYERS * (projections + products + feed_forward) + pooler
    assert counted.effective_macs == counted.macs
    assert counted.by_module["pooler.dense"] == pooler
    assert counted.by_module["encoder.layer.1.intermediate.dense"] == TOKENS * WIDTH * HIDDEN
    assert counted.uncounted == ()
