"""A network with ``nn.TransformerEncoder``, from its file to every engine, with fewer heads."""

from pathlib import Path

import pytest
import torch

from prunus import load
from prunus.candidates import Candidate, Engine, Scoring
from prunus.candidates.setup import Blueprint
from prunus.compute import Compute
from prunus.data import DataSplits
from prunus.graph import relative_difference, trace, without_packing
from prunus.graph.attention import NarrowAttention
from prunus.method import Budget, Context
from prunus.quantize import Deployment, deploy, load_deployed
from prunus.recipe import Prune, available_engines, compress
from prunus.records import Source
from prunus.zoo import load_source
from tests.recipe import texts

OWN = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, vocab_size):
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, 16)
        layer = nn.TransformerEncoderLayer(16, 4, 24, batch_first=True, dropout=0.0)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(16, 2)

    def forward(self, input_ids, attention_mask):
        hidden = self.encoder(self.embedding(input_ids), src_key_padding_mask=attention_mask == 0)
        weight = attention_mask.unsqueeze(-1)
        return self.head((hidden * weight).sum(1) / weight.sum(1))
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataSplits:
    return texts.load(tmp_path_factory.mktemp("texts"))


def own(data: DataSplits, folder: Path, text: str = OWN) -> Source:
    assert data.tokenizer is not None
    (folder / "own.py").write_text(text)
    sizes = {"vocab_size": data.tokenizer.vocab_size}
    return Source(model=f"{folder / 'own.py'}:Net", arguments=sizes)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_an_encoder_of_torch_is_compressed_saved_and_deployed(
    data: DataSplits, tmp_path: Path
) -> None:
    source = own(data, tmp_path)
    options = {"population": 4, "parents": 2, "generations": 1, "images": 24}
    step = Prune(method="genetic", target="params=0.5", options=options)
    done = compress(
        source,
        [step, texts.training(1)],
        data,
        out=tmp_path / "run",
        train_first=texts.training(1).config(fresh=False),
        latency=None,
    )
    heads = [
        module.num_heads for module in done.network.modules() if isinstance(module, NarrowAttention)
    ]
    assert heads
    inputs, _ = next(data.test.batches(8))
    assert isinstance(inputs, dict)
    network = load(tmp_path / "run" / "artifact")
    assert [m.num_heads for m in network.modules() if isinstance(m, NarrowAttention)] == heads
    with torch.no_grad():
        expected = done.network.cpu().eval()(**inputs)
        torch.testing.assert_close(network.eval()(**inputs), expected)
    for engine in available_engines():
        folder = tmp_path / engine
        deploy(
            network,
            folder,
            Deployment(engine=engine),
            inputs=inputs,
            source=source,
            plans=done.plans,
            dynamic_length=True,
        )
        found = load_deployed(folder)(inputs)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize(
    "step",
    [
        Prune(method="scratch", target="macs=0.5"),
        Prune(method="layers", options={"share": 0.5, "order": "every-other"}),
    ],
    ids=["scratch", "layers"],
)
def test_other_methods_take_an_encoder_of_torch(
    step: Prune, data: DataSplits, tmp_path: Path
) -> None:
    done = compress(own(data, tmp_path), [step], data, latency=None)
    assert done.record.cost.params < done.record.dense_cost.params


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_layers_that_the_encoder_reads_past_are_factorized(
    data: DataSplits, tmp_path: Path
) -> None:
    step = Prune(method="svd", options={"rank": 0.25})
    done = compress(own(data, tmp_path), [step], data, out=tmp_path / "run", latency=None)
    shapes = {name: tuple(value.shape) for name, value in done.network.named_parameters()}
    for layer in ("encoder.layers.0", "encoder.layers.1"):  # rank 4 of 16
        assert shapes[f"{layer}.linear1.0.weight"] == (4, 16)
        assert shapes[f"{layer}.linear1.1.weight"] == (24, 4)
        assert shapes[f"{layer}.linear2.0.weight"] == (4, 24)
        assert shapes[f"{layer}.linear2.1.weight"] == (16, 4)
    inputs, _ = next(data.test.batches(8))
    assert isinstance(inputs, dict)
    network = load(tmp_path / "run" / "artifact").eval()
    with_kernels_off = done.network.cpu().eval()(**inputs).detach()  # gradients are on
    with torch.no_grad():
        torch.testing.assert_close(network(**inputs), with_kernels_off)


AVERAGED = OWN.replace("(hidden * weight).sum(1) / weight.sum(1)", "hidden.mean(1)")


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_a_search_compares_networks_that_treat_their_padding_alike(
    data: DataSplits, tmp_path: Path
) -> None:
    """Torch zeroes what is padded in the dense network alone, and this one reads it."""
    source = own(data, tmp_path, AVERAGED)
    network = load_source(source)
    inputs, _ = next(data.train.batches(8))
    assert isinstance(inputs, dict)
    found = trace(network, inputs)
    context = Context(
        network=network,
        trace=found,
        budget=Budget.parse("macs=0.5"),
        seed=0,
        train=data.train,
        search=data.search,
        compute=Compute(precision="float32", threads=1),
    )
    with Engine.open(context, Scoring(images=24)) as engine:
        (dense,) = engine.score([Candidate({})])
    assert dense.kl < 1e-6
    plain = without_packing(network)
    assert plain is not network
    Blueprint.of(plain, source, (), inputs).build()  # by workers, who build it from its source
    with torch.no_grad():
        assert relative_difference(plain(**inputs), network(**inputs)) > 0.01
