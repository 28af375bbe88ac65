"""Texts that are there twice: those that are left out, and those that only the network takes for one."""

import hashlib
from collections.abc import Sequence

from prunus.data.splits import SearchSplit, Split, TrainSplit
from prunus.data.text.options import TextOptions
from prunus.data.text.store import TokenStore
from prunus.data.text.tokenizer import TextTokenizer


def text_digest(text: str) -> str:
    """The same for texts that differ by white space alone."""
    return hashlib.sha256(" ".join(text.split()).encode()).hexdigest()


def texts_of(split: Split) -> list[str]:
    """The texts of a split; none where it holds something else."""
    store = split.samples.store
    known = store.texts if isinstance(store, TokenStore) else ()
    return [known[index] for index in split.samples.indices.tolist()]


def other_case(
    tokenizer: TextTokenizer,
    options: TextOptions,
    train: TrainSplit,
    search: SearchSplit,
    test: Sequence[str],
) -> list[str]:
    """Remarks where a network is judged by texts that it has seen in another case.

    They are told and not left out: the splits of data sets, which records are of, stay as they are.

    Args:
        tokenizer: Where it keeps case, no texts are alike.
        options: Where copies may stay, these are not told either.
        train: Texts to learn from.
        search: Texts to search by.
        test: Texts to test on.
    """
    if not options.deduplicate or not tokenizer.ignores_case:
        return []
    learnt, searched = texts_of(train), texts_of(search)
    counts = {
        "search texts are training": _in_another_case(searched, learnt),
        "test texts are training or search": _in_another_case(test, [*learnt, *searched]),
    }
    return [
        f"{count} {what} texts but for their case, which the tokenizer takes away; lower=true leaves "
        "them out"
        for what, count in counts.items()
        if count
    ]


def _in_another_case(texts: Sequence[str], known: Sequence[str]) -> int:
    """How many are known but for their case; not those that are known as they are."""
    same = {text_digest(text) for text in known}
    alike = {text_digest(text.lower()) for text in known}
    return sum(
        text_digest(text.lower()) in alike and text_digest(text) not in same for text in texts
    )
