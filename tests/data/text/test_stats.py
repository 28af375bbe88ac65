"""Length statistics: what a greatest length cuts off, counted before anything is cut."""

from pathlib import Path

import pytest
import torch

from prunus.data import (
    DataSplits,
    LengthStatistics,
    Samples,
    SearchSplit,
    TestSplit,
    TextStatistics,
    TextTokenizer,
    TokenStore,
    TrainSplit,
    UnlabeledSplit,
    length_statistics,
    load_data,
)
from prunus.errors import InputError
from tests.data.text.makers import tiny_tokenizer


def _samples(texts: list[str], tokenizer: TextTokenizer, max_length: int) -> Samples:
    store = TokenStore(texts, torch.arange(len(texts)) % 2, tokenizer, max_length)
    return Samples("toy", store, torch.arange(len(texts)), 2)


def _splits(*, unlabeled: bool = False) -> DataSplits:
    """Train texts of 3, 4, ..., 22 pieces (1 to 20 words of one piece, framed by two more)."""
    tokenizer = tiny_tokenizer()
    assert tokenizer.encode(["a"], 9) == [[2, tokenizer.encode(["a"], 9)[0][1], 3]]
    train = [" ".join("a" * n) for n in range(1, 21)]
    more = UnlabeledSplit(
        Samples(
            "toy",
            TokenStore(["a a"], torch.tensor([-1]), tokenizer, 10),
            torch.arange(1),
            2,
        )
    )
    return DataSplits(
        "toy",
        TrainSplit(_samples(train, tokenizer, 10)),
        SearchSplit(_samples(["a", "a a a"], tokenizer, 10)),
        TestSplit(_samples(["a", "\u4e2d a"], tokenizer, 10)),
        2,
        tokenizer=tokenizer,
        unlabeled=more if unlabeled else None,
    )


def test_lengths_by_hand() -> None:
    data = _splits()
    found = length_statistics(data)
    # The 10th of 20 lengths 3 to 22 is 12, the 19th is 21; 11 to 22 are longer than 10.
    assert found.train == LengthStatistics(
        texts=20, median=12, p95=21, longest=22, share_cut=12 / 20, unknown_share=0.0
    )
    assert found.search == LengthStatistics(
        texts=2, median=3, p95=5, longest=5, share_cut=0.0, unknown_share=0.0
    )
    # [CLS] a [SEP] and [CLS] [UNK] a [SEP]: one of seven.
    assert found.test == LengthStatistics(
        texts=2, median=3, p95=4, longest=4, share_cut=0.0, unknown_share=1 / 7
    )
    assert (found.max_length, found.unlabeled) == (10, None)
    assert data.tokenizer is not None
    assert found.vocab_size == data.tokenizer.vocab_size


def test_unlabeled_texts_are_measured_too() -> None:
    found = length_statistics(_splits(unlabeled=True)).unlabeled
    assert found is not None
    assert (found.texts, found.median, found.longest) == (1, 4, 4)


def test_lengths_are_no_look_at_the_test_split() -> None:
    data = _splits()
    length_statistics(data)
    assert data.test.evaluations == 0


def test_the_record_comes_back_from_its_file(tmp_path: Path) -> None:
    found = length_statistics(_splits(unlabeled=True))
    found.save(tmp_path / "lengths.json")
    assert TextStatistics.load(tmp_path / "lengths.json") == found


def test_images_have_no_lengths() -> None:
    with pytest.raises(InputError, match="'digits' holds no texts"):
        length_statistics(load_data("digits"))
