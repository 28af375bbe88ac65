"""The config of a Hugging Face network stays true where one number still can be."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from prunus.graph import cut, trace

transformers = pytest.importorskip("transformers")


def small_bert() -> tuple[Any, dict[str, torch.Tensor]]:
    config = transformers.BertConfig(
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=40,
        vocab_size=50,
    )
    network = transformers.BertForSequenceClassification(config).eval()
    return network, {"input_ids": torch.randint(0, 50, (2, 7))}


def test_sizes_that_all_layers_share_are_in_the_config() -> None:
    network, inputs = small_bert()
    found = trace(network, inputs, verify=False)
    keep = {}
    for group in found.cuttable:
        n = {24: 18, 4: 3, 40: 30}[group.units]
        keep[group.name] = np.arange(group.units) < n
    small: Any = cut(network, found.plan(keep))
    config = small.config
    assert (config.hidden_size, config.num_attention_heads) == (18, 3)
    assert config.intermediate_size == 30
    attention = small.bert.encoder.layer[0].attention.self
    assert (attention.num_attention_heads, attention.all_head_size) == (3, 18)
    assert (network.config.hidden_size, network.config.num_attention_heads) == (24, 4)
    assert network.bert.config is network.config


def test_a_size_on_which_layers_differ_stays() -> None:
    network, inputs = small_bert()
    found = trace(network, inputs, verify=False)
    name = next(g.name for g in found.cuttable if g.units == 40)
    small: Any = cut(network, found.plan({name: np.arange(40) < 30}))
    assert small.config.intermediate_size == 40
    assert small.config is network.config or small.config.hidden_size == 24


def test_a_model_inside_is_saved_with_the_sizes_that_it_has(tmp_path: Path) -> None:
    """Saved on its own, it comes back: its config was the dense one's, and its weights did not fit."""
    network, inputs = small_bert()
    found = trace(network, inputs, verify=False)
    halves = {g.name: np.arange(g.units) % 2 == 0 for g in found.cuttable}
    small: Any = cut(network, found.plan(halves)).eval()
    small.bert.save_pretrained(tmp_path)
    back = transformers.BertModel.from_pretrained(tmp_path).eval()
    assert (back.config.hidden_size, back.config.num_attention_heads) == (12, 2)
    with torch.no_grad():
        torch.testing.assert_close(
            back(**inputs).last_hidden_state, small.bert(**inputs).last_hidden_state
        )
    assert network.bert.config is network.config and network.config.hidden_size == 24


def test_a_model_with_a_config_of_its_own_keeps_it() -> None:
    network, inputs = small_bert()
    network.bert.config = transformers.BertConfig(**network.config.to_dict())
    found = trace(network, inputs, verify=False)
    halves = {g.name: np.arange(g.units) % 2 == 0 for g in found.cuttable}
    small: Any = cut(network, found.plan(halves))
    assert small.config.hidden_size == 12
    assert small.bert.config.hidden_size == 24
