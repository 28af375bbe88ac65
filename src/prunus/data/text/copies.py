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


_BUT_FOR_CASE = " but for their case, which the tokenizer takes away; lower=true leaves them out"


def known_before(
    tokenizer: TextTokenizer,
    options: TextOptions,
    train: TrainSplit,
    search: SearchSplit,
    test: Sequence[str],
) -> list[str]:
    """Remarks where a network is judged by texts that it has seen: as they are, or in another case.

    They are told and not left out: the splits of data sets, which records are of, stay as they are.

    Args:
        tokenizer: Where it keeps case, texts in another case are not alike.
        options: Where copies may stay, they are told; else there are none but in another case.
        train: Texts to learn from.
        search: Texts to search by.
        test: Texts to test on.
    """
    if options.deduplicate and not tokenizer.ignores_case:
        return []
    seen, how = (
        (_in_another_case, _BUT_FOR_CASE) if options.deduplicate else (_as_they_are, ", too")
    )
    learnt, searched = texts_of(train), texts_of(search)
    counts = {
        "search texts are training": seen(searched, learnt),
        "test texts are training or search": seen(test, [*learnt, *searched]),
    }
    return [f"{count} {what} texts{how}" for what, count in counts.items() if count]


def _as_they_are(texts: Sequence[str], known: Sequence[str]) -> int:
    same = {text_digest(text) for text in known}
    return sum(text_digest(text) in same for text in texts)


def _in_another_case(texts: Sequence[str], known: Sequence[str]) -> int:
    """How many are known but for their case; not those that are known as they are."""
    same = {text_digest(text) for text in known}
    alike = {text_digest(text.lower()) for text in known}
    return sum(
        text_digest(text.lower()) in alike and text_digest(text) not in same for text in texts
    )
