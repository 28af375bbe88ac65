"""Texts that are one to the network, by hand."""

import torch

from prunus.data import Samples, SearchSplit, TextOptions, TrainSplit
from prunus.data.text.copies import known_before
from tests.data.text.makers import tiny_tokenizer, token_store


def _samples(*texts: str) -> Samples:
    return Samples("a", token_store(texts), torch.arange(len(texts)), 2)


def test_copies_as_they_are_do_not_count_as_those_in_another_case() -> None:
    """A set with search texts of its own may share some with train, and says so itself."""
    train, search = _samples("a Day", "two"), _samples("a Day", "A  day", "four", "FIVE")
    told = known_before(
        tiny_tokenizer(),
        TextOptions(),
        TrainSplit(train),
        SearchSplit(search),
        ["five", "TWO", "six"],
    )
    assert [remark.partition(" texts but")[0] for remark in told] == [
        "1 search texts are training",
        "2 test texts are training or search",
    ]
