"""Networks for texts: their sizes by formula, the same logits whatever the padding, what can be cut."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from prunus.artifact import export, verify_export
from prunus.errors import InputError
from prunus.graph import certify, cut, trace
from prunus.meter import measure_cost
from prunus.records import Source
from prunus.zoo import build, is_text, load_source, normalization, reads_text, zoo_names

NAMES = ("bert_tiny", "bilstm", "textcnn")
SMALL: dict[str, dict[str, Any]] = {
    "bert_tiny": {"hidden": 32, "layers": 2, "max_length": 64},
    "bilstm": {"embedding": 12, "hidden": 8},
    "textcnn": {"embedding": 12, "hidden": 8},
}


def made(name: str) -> nn.Module:
    return build(name, vocab_size=50, **SMALL[name]).eval()


def texts(samples: int, length: int, seed: int = 0) -> dict[str, Tensor]:
    ids = torch.randint(5, 50, (samples, length), generator=torch.Generator().manual_seed(seed))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def logits(network: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        found = network(**inputs)
    return found if isinstance(found, Tensor) else found.logits


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=20, deadline=None)
@given(length=st.integers(1, 12), padding=st.integers(1, 20), seed=st.integers(0, 99))
def test_padding_does_not_show_in_the_logits(
    name: str, length: int, padding: int, seed: int
) -> None:
    network, inputs = made(name), texts(2, length, seed)
    longer = {key: nn.functional.pad(value, (0, padding)) for key, value in inputs.items()}
    assert torch.allclose(logits(network, longer), logits(network, inputs), atol=1e-5)


def test_parameters_are_those_of_the_formulas() -> None:
    def params(name: str, **arguments: Any) -> int:
        return sum(p.numel() for p in build(name, **arguments).parameters())

    v, e, h = 30_522, 80, 80
    # Two LSTMs of four gates with two biases each, and a layer on maximum and mean of both.
    assert params("bilstm", vocab_size=v) == v * e + 2 * 4 * (e * h + h * h + 2 * h) + 4 * h * 2 + 2
    # Filters of 3, 4 and 5 tokens.
    assert params("textcnn", vocab_size=v) == v * 128 + 12 * 128 * 100 + 300 + 300 * 2 + 2
    d, layers = 128, 2
    attention, forward = 4 * (d * d + d), d * 4 * d + 4 * d + 4 * d * d + d
    tables = (v + 512 + 2) * d + 2 * d
    bert = tables + layers * (attention + forward + 4 * d) + d * d + d + 2 * d + 2
    assert params("bert_tiny", vocab_size=v) == bert


def test_macs_of_the_lstm_are_counted_by_hand() -> None:
    network = build("bilstm", vocab_size=50, embedding=12, hidden=8).eval()
    cost = measure_cost(network, texts(1, 7))
    # 7 steps of two directions, four gates each; a layer of 4 * 8 to 2.
    assert cost.macs == 7 * 2 * 4 * 8 * (12 + 8) + 32 * 2
    assert cost.uncounted == ()


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_builds_the_same_network_and_leaves_the_global_state(name: str) -> None:
    state = torch.get_rng_state()
    one, two = (build(name, vocab_size=50, seed=3, **SMALL[name]) for _ in range(2))
    other = build(name, vocab_size=50, seed=4, **SMALL[name])
    assert torch.equal(torch.get_rng_state(), state)
    pairs = [(one.state_dict(), two.state_dict()), (one.state_dict(), other.state_dict())]
    same = [all(torch.equal(a[k], b[k]) for k in a) for a, b in pairs]
    assert same == [True, False]


@pytest.mark.parametrize("name", NAMES)
def test_half_of_what_can_be_cut_is_cut_and_certified_or_refused_by_name(name: str) -> None:
    network, inputs = made(name), texts(4, 9)
    found = trace(network, inputs)
    choice = {}
    for group in found.cuttable:
        keep = torch.arange(group.units) < max(group.min_units, group.units // 2)
        choice[group.name] = keep.numpy()
    assert choice
    if name == "bilstm":  # what LSTMs read, and their own units
        assert list(choice) == ["embedding", "layers.0.ahead", "layers.0.back"]
    plan = found.plan(choice)
    assert certify(network, found, plan, inputs).passed
    assert logits(cut(network, plan).eval(), inputs).shape == (4, 2)


@pytest.mark.parametrize("name", NAMES)
def test_exported_networks_take_any_batch_and_length(name: str, tmp_path: Path) -> None:
    network = made(name)
    export(network, tmp_path / "n.onnx", texts(2, 9), dynamic_length=True)
    for samples, length in ((1, 7), (3, 33)):
        inputs = texts(samples, length)
        inputs["attention_mask"][-1, 4:] = 0
        inputs["input_ids"][-1, 4:] = 0
        assert verify_export(tmp_path / "n.onnx", network, inputs) < 1e-5


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({}, "argument 'vocab_size' of model 'bilstm' is missing"),
        ({"vocab_size": 3}, "argument 'vocab_size' of model 'bilstm' is 3"),
        ({"vocab_size": 50, "pad_id": 50}, "must be below vocab_size=50"),
        ({"vocab_size": 50, "depth": 2}, "argument 'depth'.*the arguments are vocab_size"),
    ],
)
def test_arguments_that_cannot_be_used_are_named(arguments: dict[str, int], said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        build("bilstm", **arguments)
    assert "\n" not in str(caught.value)


def test_names_of_networks_for_texts() -> None:
    assert {name for name in zoo_names() if is_text(name)} == {*NAMES, "bert_small"}
    assert normalization("textcnn") == ((), ())
    assert reads_text(Source(model="bilstm"))
    assert not reads_text(Source(model="resnet20"))
    assert not reads_text(Source(model="mine.py:build"))


def test_a_config_alone_builds_a_network_with_random_weights() -> None:
    sizes = {"vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 1}
    sizes |= {"num_attention_heads": 2, "intermediate_size": 32, "max_position_embeddings": 16}
    source = Source(model="hf:config", arguments={"model_type": "bert", "num_classes": 3, **sizes})
    assert reads_text(source)
    one, two = load_source(source), load_source(source)
    assert logits(one, texts(2, 5)).shape == (2, 3)
    assert torch.equal(logits(one, texts(2, 5)), logits(two, texts(2, 5)))
    with pytest.raises(InputError, match="needs the argument model_type"):
        load_source(Source(model="hf:config", arguments=sizes))


def test_an_encoder_without_a_head_gets_the_same_new_one_every_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=60,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
    )
    encoder = transformers.BertModel(config).eval()
    encoder.save_pretrained(tmp_path)
    capsys.readouterr()
    source = Source(model=f"hf:{tmp_path}", arguments={"num_classes": 4})
    state = torch.get_rng_state()
    one, two = load_source(source), load_source(source)
    assert torch.equal(torch.get_rng_state(), state)
    assert reads_text(source)
    table = one.get_parameter("bert.embeddings.word_embeddings.weight")
    assert torch.equal(table, encoder.get_parameter("embeddings.word_embeddings.weight"))
    assert one.get_parameter("classifier.weight").shape == (4, 16)
    assert torch.equal(
        one.get_parameter("classifier.weight"), two.get_parameter("classifier.weight")
    )
    printed = capsys.readouterr()
    assert printed.out == printed.err == ""  # neither a bar nor a note on the new head
