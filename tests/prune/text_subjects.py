"""Networks for texts small enough to follow by hand, and texts as numbers of pieces."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prunus.data import Samples, SearchSplit, TrainSplit
from prunus.graph import Inputs, trace
from prunus.method import Budget, Context
from prunus.zoo import build
from tests.train.fakes import FloatStore

PIECES = 40
FALLBACK = frozenset({0, 1, 2, 3, 4})  # special pieces, and characters
TRAIN = ((2, 10, 10, 11, 3), (2, 10, 12, 3))
SEARCH = ((2, 11, 30, 3),)
"""Piece 10 is there three times, 11 twice, 12 and 30 once; of special ones 2 and 3."""


def bert_tiny(layers: int = 1) -> nn.Module:
    return build("bert_tiny", vocab_size=PIECES, hidden=16, layers=layers, max_length=16, seed=1)


def textcnn() -> nn.Module:
    return build("textcnn", vocab_size=PIECES, embedding=6, hidden=4, seed=1)


def bilstm() -> nn.Module:
    return build("bilstm", vocab_size=PIECES, embedding=6, hidden=4, seed=1)


def roberta() -> nn.Module:
    """Its padding is piece 1, its positions count from there."""
    transformers = pytest.importorskip("transformers")
    config = transformers.RobertaConfig(
        vocab_size=PIECES,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=18,
        type_vocab_size=1,
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=2,
        num_labels=2,
    )
    return seeded(transformers.RobertaForSequenceClassification, config)


def seeded(kind: Callable[[Any], Any], config: Any) -> nn.Module:
    """A network of transformers with weights of one seed; the global random state is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = kind(config)
    assert isinstance(network, nn.Module)
    return network.eval()


NETWORKS: dict[str, tuple[Callable[[], nn.Module], int, int]] = {
    "bert_tiny": (bert_tiny, 0, 16),
    "textcnn": (textcnn, 0, 6),
    "bilstm": (bilstm, 0, 6),
    "roberta": (roberta, 1, 16),
}
"""Name to maker, number of the padding, width of the table."""


def inputs(texts: Sequence[Sequence[int]], padding: int = 0) -> dict[str, Tensor]:
    """Texts padded on the right to the longest."""
    longest = max(len(text) for text in texts)
    ids = torch.tensor([[*text, *[padding] * (longest - len(text))] for text in texts])
    mask = torch.tensor([[1] * len(text) + [0] * (longest - len(text)) for text in texts])
    return {"input_ids": ids, "attention_mask": mask}


def samples(
    texts: Sequence[Sequence[int]], padding: int = 0, labels: Tensor | None = None
) -> Samples:
    """Texts with classes 0 and 1 by turns, or those given."""
    if labels is None:
        labels = torch.arange(len(texts)) % 2
    lengths = torch.tensor([len(text) for text in texts])
    store = FloatStore(inputs(texts, padding), labels, lengths)
    return Samples("texts", store, torch.arange(len(texts)), 2)


def context(
    network: nn.Module, example: Inputs, target: str = "params=1.0", padding: int = 0, **fields: Any
) -> Context:
    """All that a method is given; texts as above."""
    given: dict[str, Any] = {
        "train": TrainSplit(samples(TRAIN, padding)),
        "search": SearchSplit(samples(SEARCH, padding)),
        "fallback_pieces": FALLBACK,
        **fields,
    }
    found = trace(network, example, verify=False)  # what is in question here is what is decided
    return Context(network, found, Budget.parse(target), seed=0, **given)


def logits(network: nn.Module, example: dict[str, Tensor]) -> Tensor:
    """Of a network in eval mode."""
    with torch.no_grad():
        found = network.eval()(**example)
    return found if isinstance(found, Tensor) else found.logits
