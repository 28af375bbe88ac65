"""How long the texts of a data set are: what a greatest length cuts off, what cannot be spelled."""

import torch

from prunus.data.roles import DataSplits
from prunus.data.splits import Split
from prunus.data.text.store import TokenStore
from prunus.data.text.tokenizer import unknown_share
from prunus.errors import InputError
from prunus.plan import Record

_NO_LIMIT = 2**31 - 1


class LengthStatistics(Record):
    """Lengths of one split's texts in pieces, the special ones included, before anything is cut.

    Attributes:
        texts: In the split.
        median: Half of the texts are at most so long; the lower of two middle ones.
        p95: 95 % of the texts are at most so long, by nearest rank.
        longest: Pieces of the longest text.
        share_cut: Share of the texts that are longer than ``max_length``.
        unknown_share: Share of all pieces that stand for what the vocabulary cannot spell.
    """

    texts: int
    median: int
    p95: int
    longest: int
    share_cut: float
    unknown_share: float


class TextStatistics(Record):
    """Lengths of the texts of every split.

    Attributes:
        max_length: Most pieces of a text that a network is given.
        vocab_size: Pieces of the tokenizer.
        train: Of the training texts.
        search: Of those that decisions are made on.
        test: Of those that numbers are reported on.
        unlabeled: Of the texts without labels, where there are some.
    """

    max_length: int
    vocab_size: int
    train: LengthStatistics
    search: LengthStatistics
    test: LengthStatistics
    unlabeled: LengthStatistics | None = None


def length_statistics(data: DataSplits) -> TextStatistics:
    """Measure the lengths of all texts. No labels are read: it is no look at the test split.

    Raises:
        InputError: The data set is one of images, or of one's own without texts.
    """
    if data.tokenizer is None or data.max_length is None:
        raise InputError(f"'{data.name}' holds no texts: lengths are measured of texts alone")
    return TextStatistics(
        max_length=data.max_length,
        vocab_size=data.tokenizer.vocab_size,
        train=_of_split(data.train),
        search=_of_split(data.search),
        test=_of_split(data.test),
        unlabeled=None if data.unlabeled is None else _of_split(data.unlabeled),
    )


def _of_split(split: Split) -> LengthStatistics:
    store = split.samples.store.take(split.samples.indices)
    if not isinstance(store, TokenStore):
        raise InputError(
            f"the {split.role} split of '{split.name}' holds no texts: load them with load_data"
        )
    pieces = store.tokenizer.encode(store.texts, _NO_LIMIT)
    lengths = torch.tensor([len(one) for one in pieces]).sort().values
    return LengthStatistics(
        texts=len(lengths),
        median=int(lengths[_rank(50, len(lengths))]),
        p95=int(lengths[_rank(95, len(lengths))]),
        longest=int(lengths[-1]),
        share_cut=float((lengths > store.max_length).double().mean()),
        unknown_share=unknown_share(store.tokenizer, pieces),
    )


def _rank(percent: int, n: int) -> int:
    """Position of a percentile among ``n`` sorted values by nearest rank, ceil(percent n / 100)."""
    return -(-percent * n // 100) - 1
