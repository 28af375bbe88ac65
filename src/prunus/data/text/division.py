"""Clean texts in the parts that a network learns from, is searched by and tested on."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from prunus.data.stratify import stratified_draw
from prunus.data.text.clean import clean
from prunus.data.text.copies import text_digest
from prunus.data.text.labelled import LEAST_TEXTS, LabelledTexts
from prunus.data.text.options import TextOptions
from prunus.data.text.sets import Parts
from prunus.errors import DataError, InputError

_TEST_SEED = 20231  # the test split is the same for every seed
MOST_SEARCH = 2000
"""Texts of a search split for which no size is asked."""


@dataclass(frozen=True)
class Texts:
    """Clean texts with the numbers of their classes, int64 ``[texts]``."""

    texts: tuple[str, ...]
    labels: Tensor

    def at(self, positions: Tensor) -> "Texts":
        """Some of them."""
        texts = tuple(self.texts[i] for i in positions.tolist())
        return Texts(texts, self.labels[positions])

    def draw(self, n: int, seed: int) -> "Texts":
        """``n`` of them, every class in proportion."""
        return self.at(stratified_draw(self.labels, n, seed))


@dataclass(frozen=True)
class Division:
    """Texts that no two parts share, as far as copies are left out.

    Attributes:
        train: What is learnt from.
        search: Of a set that has such texts of its own; else they are to be taken from ``train``.
        test: The same for every seed.
        notes: Remarks for people, on what was left out and what was drawn.
    """

    train: Texts
    search: Texts | None
    test: Texts
    notes: tuple[str, ...]


def divide(
    parts: Parts,
    options: TextOptions,
    names: tuple[str, ...],
    name: str,
    *,
    seed: int,
    search_size: int | None,
) -> Division:
    """Clean the texts of a set and divide them.

    Args:
        parts: The texts as they were read.
        options: Says how they are cleaned, and how many are kept.
        names: Of the classes, in the order of their numbers.
        name: Of the set, for errors.
        seed: Draws the search texts of a set that has its own.
        search_size: Their number.

    Raises:
        InputError: More texts are asked for than there are.
        DataError: Too few are left, of all or of a class.
    """
    train, test, notes = _train_and_test(parts, options, names, name)
    notes = list(dict.fromkeys(notes))
    search = None
    if parts.search is not None:
        search, _ = _prepared(parts.search, options, names)
        search, left_out = _apart(search, test.texts, options, "search")
        notes += left_out
        search = _drawn(search, search_size, seed, name)
    train, drawn = _fewer(train, options.train_size, name, apart=search is not None)
    remarks = [note for note in (parts.note, *notes, *drawn) if note]
    return Division(train, search, test, tuple(remarks))


def _train_and_test(
    parts: Parts, options: TextOptions, names: tuple[str, ...], name: str
) -> tuple[Texts, Texts, list[str]]:
    """Clean texts to learn from and to test on, none of them in both, with remarks."""
    train, notes = _prepared(parts.train, options, names)
    _check_left(name, train, names)
    if parts.test is None:
        return *_divided(train, options, name), notes
    test, more = _prepared(parts.test, options, names)
    train, left_out = _apart(train, test.texts, options, "training")
    if left_out:
        given = "its test texts" if options.test_file is None else f"test_file={options.test_file}"
        left = f"training texts that are not in {given}, too"
        _check_left(name, train, names, left, "give others")
    return train, test, [*notes, *more, *left_out]


def _prepared(
    part: LabelledTexts, options: TextOptions, names: Sequence[str]
) -> tuple[Texts, list[str]]:
    """Clean, without texts that are empty or, where asked for, there twice."""
    number = {name: i for i, name in enumerate(names)}
    unknown = next((label for label in part.labels if label not in number), None)
    if unknown is not None:
        raise DataError(f"class '{unknown}' is in the test texts and not in the training texts")
    texts = clean(part.texts, options.cleaning)
    seen: dict[str, str] = {}
    kept: list[int] = []
    empty = twice = otherwise = 0
    for position, (text, label) in enumerate(zip(texts, part.labels, strict=True)):
        digest = text_digest(text)
        if not text.strip():
            empty += 1
        elif options.deduplicate and digest in seen:
            twice += 1
            otherwise += seen[digest] != label
        else:
            seen[digest] = label
            kept.append(position)
    notes = [part.note] if part.note else []
    if twice:
        notes.append(f"{twice} texts that were there twice were left out before splitting")
    if otherwise:
        notes.append(
            f"{otherwise} of them had another class than the first of their kind, which stays"
        )
    if empty:
        notes.append(f"cleaning left nothing of {empty} texts")
    labels = torch.tensor([number[part.labels[i]] for i in kept], dtype=torch.int64)
    return Texts(tuple(texts[i] for i in kept), labels), notes


def _apart(
    others: Texts, test: Sequence[str], options: TextOptions, role: str
) -> tuple[Texts, list[str]]:
    """Training or search texts without those of a test split that has a file of its own."""
    known = {text_digest(text) for text in test} if options.deduplicate else set()
    stays = torch.tensor(
        [text_digest(text) not in known for text in others.texts], dtype=torch.bool
    )
    gone = int((~stays).sum())
    if not gone:
        return others, []
    return others.at(stays.nonzero().flatten()), [
        f"{gone} {role} texts that are test texts, too, were left out"
    ]


def _drawn(texts: Texts, size: int | None, seed: int, name: str) -> Texts:
    """The search texts of a set that has its own."""
    if not texts.texts:
        raise DataError(
            f"{name}: no search text is left that is not a test text, too; give others, or set "
            "deduplicate=false"
        )
    size = min(MOST_SEARCH, len(texts.texts)) if size is None else size
    if not 1 <= size <= len(texts.texts):
        raise InputError(
            f"search_size is {size}: use 1 to {len(texts.texts)}, the search texts of {name}"
        )
    return texts.draw(size, seed)


def _fewer(train: Texts, size: int | None, name: str, *, apart: bool) -> tuple[Texts, list[str]]:
    """As many of the training texts as are asked for; ``apart``: search has texts of its own."""
    if size is None:
        return train, []
    if size > len(train.texts):
        raise InputError(
            f"train_size={size}: {name} has {len(train.texts)} training texts; give no more"
        )
    drawn = f"{size} of the training texts were drawn"
    remark = drawn if apart else f"{drawn}; the search split is a part of them"
    return train.draw(size, _TEST_SEED), [remark]


def _check_left(
    name: str,
    texts: Texts,
    names: Sequence[str],
    left: str = "different texts after cleaning",
    remedy: str = "give others, or set deduplicate=false",
) -> None:
    """Refuse a class of which too little is left, and say what that is and what to do."""
    counts = texts.labels.bincount(minlength=len(names)).tolist()
    rare = min(range(len(names)), key=lambda number: counts[number])
    if counts[rare] < LEAST_TEXTS:
        raise DataError(
            f"{name}: class '{names[rare]}' has {counts[rare]} {left}; every class needs "
            f"{LEAST_TEXTS} at least: {remedy}"
        )


def _divided(texts: Texts, options: TextOptions, name: str) -> tuple[Texts, Texts]:
    """Train and test, every class in proportion; the same for every seed."""
    size = round(options.test_fraction * len(texts.texts))
    if not 1 <= size < len(texts.texts) - 1:
        raise DataError(
            f"{name}: {len(texts.texts)} texts cannot be divided with test_fraction="
            f"{options.test_fraction:g}; give more texts"
        )
    drawn = stratified_draw(texts.labels, size, _TEST_SEED)
    rest = torch.ones(len(texts.texts), dtype=torch.bool)
    rest[drawn] = False
    return texts.at(rest.nonzero().flatten()), texts.at(drawn)
