"""Buffers that are in no state come back in the data types that they had, which casts may leave out."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from prunus.artifact import load, read_manifest, save
from prunus.errors import InputError
from prunus.recipe.saved import load_network, save_network
from prunus.records import Source
from prunus.zoo import load_source
from tests.artifact.networks import write_file

HALF = torch.bfloat16


def scaled(folder: Path, *, whole: bool) -> tuple[nn.Module, Source]:
    """A network in half precision, its scale of 1.5 in float32 where it is left ``whole``."""
    source = Source(model=f"{write_file(folder)}:scaled", arguments={"scale": 1.5})
    network = load_source(source).to(HALF).eval()
    if whole:
        scale = network.get_buffer("scale")
        scale.data = scale.data.float()
    return network, source


@pytest.mark.parametrize("whole", [True, False])
def test_a_network_in_half_precision_keeps_the_types_of_its_buffers(
    tmp_path: Path, *, whole: bool
) -> None:
    network, source = scaled(tmp_path, whole=whole)
    save(tmp_path / "a", network, source=source)
    loaded = load(tmp_path / "a")
    assert loaded.get_buffer("scale").dtype == (torch.float32 if whole else HALF)
    assert {p.dtype for p in loaded.parameters()} == {HALF}
    kind = "float32" if whole else "bfloat16"
    assert read_manifest(tmp_path / "a").buffers == {"scale": kind}
    x = torch.ones(2, 2, dtype=HALF)
    assert torch.equal(loaded(x), network(x))


def test_a_step_of_a_run_without_a_source_keeps_them_too(tmp_path: Path) -> None:
    network, source = scaled(tmp_path, whole=True)
    save_network(tmp_path / "step", network, [], None, torch.ones(2, 2))
    loaded, _ = load_network(tmp_path / "step", load_source(source))
    assert loaded.get_buffer("scale").dtype == torch.float32
    assert loaded.get_parameter("fc.weight").dtype == HALF


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "artifact.json"
    entries = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in entries.items() if v is not None}))


def test_an_artifact_of_the_first_version_is_cast_as_the_whole_network_was(tmp_path: Path) -> None:
    network, source = scaled(tmp_path, whole=False)
    save(tmp_path / "a", network, source=source)
    edit(tmp_path / "a", version=1, buffers=None)
    assert read_manifest(tmp_path / "a").buffers is None
    assert load(tmp_path / "a").get_buffer("scale").dtype == HALF


def test_what_is_no_data_type_is_told(tmp_path: Path) -> None:
    network, source = scaled(tmp_path, whole=True)
    save(tmp_path / "a", network, source=source)
    edit(tmp_path / "a", buffers={"scale": "nn"})
    with pytest.raises(InputError, match="'scale' was saved as 'nn', which is no data type"):
        load(tmp_path / "a")


def test_a_network_as_its_library_loads_it_in_half_precision_is_saved(tmp_path: Path) -> None:
    """Frequencies of rotary positions stay in float32 there."""
    transformers = pytest.importorskip("transformers")
    sizes = {
        "vocab_size": 50,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "intermediate_size": 24,
        "pad_token_id": 0,
    }
    made = transformers.LlamaForSequenceClassification(transformers.LlamaConfig(**sizes))
    made.save_pretrained(tmp_path / "hf")
    network = type(made).from_pretrained(tmp_path / "hf", dtype=HALF).eval()
    assert network.get_buffer("model.rotary_emb.inv_freq").dtype == torch.float32
    arguments = {"model_type": "llama", "num_labels": 2, "task": "text", **sizes}
    source = Source(model="hf:config", arguments=arguments)
    texts = {"input_ids": torch.randint(1, 50, (2, 6)), "attention_mask": torch.ones(2, 6).long()}
    save(tmp_path / "a", network, source=source, example_inputs=texts)
    loaded = load(tmp_path / "a")
    before, after = ({n: b.dtype for n, b in m.named_buffers()} for m in (network, loaded))
    assert before == after
    with torch.no_grad():
        assert torch.equal(loaded(**texts).logits, network(**texts).logits)
