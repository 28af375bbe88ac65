"""Load texts in three splits: a file of one's own, the embedded docstrings, or a shared set by name."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prunus.data.roles import DataSplits, carve_search
from prunus.data.splits import (
    Samples,
    SearchSplit,
    TestSplit,
    TrainSplit,
    UnlabeledSplit,
)
from prunus.data.stratify import stratified_draw
from prunus.data.text.clean import clean
from prunus.data.text.copies import other_case, text_digest, texts_of
from prunus.data.text.docstrings import docstrings
from prunus.data.text.options import TextOptions
from prunus.data.text.store import TokenStore
from prunus.data.text.table import (
    LEAST_TEXTS,
    WHOLE_NUMBER,
    LabelledTexts,
    labelled_rows,
    read_labelled,
    read_texts,
)
from prunus.data.text.tokenizer import TextTokenizer
from prunus.errors import DataError, InputError, first_line
from prunus.extras import require_extra

FILE, HUB = "text:", "hfdata:"
NAMES = ("docstrings", "sst2", "sms", "ru_toxic")
_TEST_SEED = 20231  # the test split is the same for every seed
_NO_LIMIT = 2**31 - 1
_SST2_SEARCH = 2000
_HUB_TESTS = ("test", "validation", "dev")
_NOT_TOLD = "-1"  # the label of texts whose classes a benchmark keeps to itself, as GLUE does

_IDLE = ("test_file", "text_column", "label_column", "encoding")
_IDLE_OF = {FILE: (), HUB: ("test_file", "encoding"), "sst2": (*_IDLE, "test_fraction")}
"""Settings that a set of texts has no use for; of the other sets ``_IDLE``."""


@dataclass(frozen=True)
class _Parts:
    """Texts of a data set before they are split further; a search part where the set has its own."""

    train: LabelledTexts
    test: LabelledTexts | None = None
    search: LabelledTexts | None = None
    note: str = ""


def is_text_data(name: str) -> bool:
    """Whether a name is that of a set of texts."""
    return name in NAMES or name.startswith((FILE, HUB))


def load_text(
    name: str,
    options: TextOptions,
    *,
    tokenizer: TextTokenizer | None,
    seed: int,
    search_size: int | None,
) -> DataSplits:
    """Texts in three splits; the metric is F1.

    Args:
        name: ``text:FILE``, ``docstrings``, ``sst2``, ``sms``, ``ru_toxic`` or ``hfdata:NAME``.
        options: How texts are read.
        tokenizer: Of the network; where there is none, one is trained on the training texts.
        seed: Decides which texts of train become search.
        search_size: Texts of the search split; a fifth of train by default, at most 2000.

    Raises:
        InputError: The name is unknown or an option cannot be used.
        DataError: The data is missing or broken.
    """
    _require_used(name, options)
    parts = _read(name, options)
    _require_undivided(name, parts, options)
    names = _class_names(name, parts)
    train, test, notes = _train_and_test(parts, options, names, name)
    notes = [note for note in (parts.note, *dict.fromkeys(notes)) if note]
    search = None
    if parts.search is not None:
        search, _ = _prepared(parts.search, options, names)
        search, left_out = _apart(search, test.texts, options, "search")
        notes += left_out
        search = _drawn(search, search_size, seed, name)
    train, drawn = _fewer(train, options.train_size, name, apart=search is not None)
    notes += drawn
    if tokenizer is None:
        tokenizer = TextTokenizer.train_wordpiece(train.texts, options.vocab_size)
    else:
        notes += _not_trained(tokenizer, options)
        options = options.model_copy(update={"vocab_size": tokenizer.vocab_size})

    def samples(part: "_Texts") -> Samples:
        store = TokenStore(part.texts, part.labels, tokenizer, options.max_length)
        return Samples(name, store, torch.arange(len(part.texts)), len(names))

    trains = TrainSplit(samples(train))
    if search is None:
        trains, searches = _searched(trains, search_size, seed)
    else:
        searches = SearchSplit(samples(search))
    judged = [*test.texts, *texts_of(searches)]
    unlabeled = _unlabeled(name, options, tokenizer, len(names), judged)
    found = {"train": trains.labels, "search": searches.labels, "test": test.labels}
    limits = {
        "a larger train_size": options.train_size,
        "a smaller test_fraction": options.test_fraction if parts.test is None else None,
        "a smaller search_size": search_size if search is None else None,
    }
    _require_learnt(name, names, found, limits)
    notes += [*_absent(names, found), *other_case(tokenizer, options, trains, searches, test.texts)]
    return DataSplits(
        name=name,
        train=trains,
        search=searches,
        test=TestSplit(samples(test)),
        num_classes=len(names),
        note="; ".join([*notes, *_cut_off(trains, options.max_length)]),
        metric="f1",
        class_names=names,
        unlabeled=unlabeled,
        tokenizer=tokenizer,
        text=options,
    )


def _absent(names: Sequence[str], labels: dict[str, Tensor]) -> list[str]:
    """Remarks on classes so rare that their share of a split rounds to none: scores miss them."""
    return [
        f"the {role} split has no text of class '{names[number]}'"
        for role, given in labels.items()
        for number, count in enumerate(given.bincount(minlength=len(names)).tolist())
        if not count
    ]


def _searched(train: TrainSplit, size: int | None, seed: int) -> tuple[TrainSplit, SearchSplit]:
    """Train without its search split, a fifth where no size is asked for, and that split."""
    fifth = min(_SST2_SEARCH, max(1, len(train) // 5))
    return carve_search(train, fifth if size is None else size, seed)


def _require_learnt(
    name: str,
    names: Sequence[str],
    labels: Mapping[str, Tensor],
    limits: Mapping[str, float | None],
) -> None:
    """Refuse a class that is searched by or tested on, and of which there is nothing to learn from.

    Args:
        name: Of the data.
        names: Of the classes.
        labels: By the role of their split.
        limits: What leaves fewer texts to learn from where it is given, by the words for a better value.

    Raises:
        DataError: There is one.
    """
    counts = {role: given.bincount(minlength=len(names)).tolist() for role, given in labels.items()}
    for number, missed in enumerate(names):
        roles = [role for role in ("search", "test") if counts[role][number]]
        if roles and not counts["train"][number]:
            better = [f"{words} (now {now})" for words, now in limits.items() if now is not None]
            raise DataError(
                f"{name}: class '{missed}' has {' and '.join(roles)} texts, and none to train on; give "
                f"{' or '.join([*better, 'more texts of it'])}"
            )


def _not_trained(tokenizer: TextTokenizer, options: TextOptions) -> list[str]:
    """A remark where a size is asked for of a vocabulary that is there already.

    It is no mistake: a recipe of a training that is done says the size that was asked for then.
    """
    asked, size = options.vocab_size, tokenizer.vocab_size
    if asked == size or not options.is_changed("vocab_size"):
        return []
    return [
        f"vocab_size={asked} is not used: the network brings its own tokenizer of {size} tokens"
    ]


def _cut_off(train: TrainSplit, max_length: int) -> list[str]:
    """A remark where texts are longer than what a network is given of them."""
    store, indices = train.samples.store, train.samples.indices
    if not isinstance(store, TokenStore):  # pragma: no cover - texts lie in no other
        return []
    full = indices[store.lengths[indices] >= max_length].tolist()
    whole = store.tokenizer.encode([store.texts[i] for i in full], _NO_LIMIT) if full else []
    longer = sum(len(pieces) > max_length for pieces in whole)
    if not longer:
        return []
    share = longer / len(indices)
    return [f"{share:.1%} of the training texts are cut off after max_length={max_length} tokens"]


def _require_used(name: str, options: TextOptions) -> None:
    """Refuse settings that a set would pass by: its texts would be others than those asked for.

    Raises:
        InputError: One is given, and the set does not take it.
    """
    kind = next((scheme for scheme in (FILE, HUB) if name.startswith(scheme)), name)
    idle = _IDLE_OF.get(kind, _IDLE)
    read = ("text_column", "encoding") if options.unlabeled_file is not None else ()
    for setting in idle:
        if options.is_changed(setting) and setting not in read:
            takes = ", ".join(key for key in TextOptions.model_fields if key not in idle)
            raise InputError(
                f"{setting}={getattr(options, setting)}: data '{name}' does not take it, but {takes}; "
                "leave it out, or give a file of your own: text:FILE"
            )
    cleaning = options.cleaning
    if cleaning.language != "en" and not (cleaning.stop_words or cleaning.lemmas):
        raise InputError(
            f"language={cleaning.language}: it says whose stop words and lemmas, and neither is asked "
            "for; give stop_words=true or lemmas=true with it, or leave it out"
        )
    paths = [name.removeprefix(FILE), options.test_file, options.unlabeled_file]
    kinds = {Path(path).suffix.lower() for path in paths if path is not None}
    if options.is_changed("encoding") and kind == FILE and kinds == {".parquet"}:
        raise InputError(
            f"encoding={options.encoding}: a parquet file has one of its own; leave it out"
        )


def _require_undivided(name: str, parts: _Parts, options: TextOptions) -> None:
    """Refuse a share of test texts where they are a part of their own.

    Raises:
        InputError: One is given.
    """
    if parts.test is not None and options.is_changed("test_fraction"):
        where = name if options.test_file is None else f"test_file='{options.test_file}'"
        raise InputError(
            f"test_fraction={options.test_fraction:g}: the test texts are those of {where}, and none "
            "are taken from the training texts; leave it out"
        )


def _train_and_test(
    parts: _Parts, options: TextOptions, names: tuple[str, ...], name: str
) -> tuple["_Texts", "_Texts", list[str]]:
    """Clean texts to learn from and to test on, none of them in both, with remarks."""
    train, notes = _prepared(parts.train, options, names)
    _check_left(name, train, names)
    if parts.test is None:
        return *_divided(train, options, name), notes
    test, more = _prepared(parts.test, options, names)
    train, left_out = _apart(train, test.texts, options, "training")
    _check_left(name, train, names)
    return train, test, [*notes, *more, *left_out]


@dataclass(frozen=True)
class _Texts:
    """Clean texts with the numbers of their classes, int64 ``[texts]``."""

    texts: tuple[str, ...]
    labels: Tensor

    def at(self, positions: Tensor) -> "_Texts":
        """Some of them."""
        texts = tuple(self.texts[i] for i in positions.tolist())
        return _Texts(texts, self.labels[positions])

    def draw(self, n: int, seed: int) -> "_Texts":
        """``n`` of them, every class in proportion."""
        return self.at(stratified_draw(self.labels, n, seed))


def _prepared(
    part: LabelledTexts, options: TextOptions, names: Sequence[str]
) -> tuple[_Texts, list[str]]:
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
    return _Texts(tuple(texts[i] for i in kept), labels), notes


def _apart(
    others: _Texts, test: Sequence[str], options: TextOptions, role: str
) -> tuple[_Texts, list[str]]:
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


def _drawn(texts: _Texts, size: int | None, seed: int, name: str) -> _Texts:
    """The search texts of a set that has its own."""
    if not texts.texts:
        raise DataError(
            f"{name}: no search text is left that is not a test text, too; give others, or set "
            "deduplicate=false"
        )
    size = min(_SST2_SEARCH, len(texts.texts)) if size is None else size
    if not 1 <= size <= len(texts.texts):
        raise InputError(
            f"search_size is {size}: use 1 to {len(texts.texts)}, the search texts of {name}"
        )
    return texts.draw(size, seed)


def _fewer(train: _Texts, size: int | None, name: str, *, apart: bool) -> tuple[_Texts, list[str]]:
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


def _check_left(name: str, texts: _Texts, names: Sequence[str]) -> None:
    """Refuse a class of which cleaning and leaving out copies left too little."""
    counts = texts.labels.bincount(minlength=len(names)).tolist()
    rare = min(range(len(names)), key=lambda number: counts[number])
    if counts[rare] < LEAST_TEXTS:
        raise DataError(
            f"{name}: class '{names[rare]}' has {counts[rare]} different texts after cleaning; every "
            f"class needs {LEAST_TEXTS} at least, or set deduplicate=false"
        )


def _divided(texts: _Texts, options: TextOptions, name: str) -> tuple[_Texts, _Texts]:
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


def _class_names(name: str, parts: _Parts) -> tuple[str, ...]:
    """Names in order: whole numbers by size, others by name."""
    names = sorted(set(parts.train.labels))  # a set has an order of its own in every process
    missing = [label for label in names if label.lower() == "nan"]
    numbers = [label for label in names if label not in missing]
    whole = all(WHOLE_NUMBER.fullmatch(label) for label in numbers)
    if missing and numbers and whole:
        raise DataError(
            f"labels of '{name}' are whole numbers and '{missing[0]}', which marks a missing one: leave "
            "those rows out, or give every class a name"
        )
    # Of any length, which int does not read.
    return tuple(sorted(names, key=Decimal if whole and not missing else None))


def _unlabeled(
    name: str,
    options: TextOptions,
    tokenizer: TextTokenizer,
    classes: int,
    judged: Sequence[str],
) -> UnlabeledSplit | None:
    """Texts for the teacher alone; what test and search hold is not seen there either."""
    if options.unlabeled_file is None:
        return None
    texts = clean(read_texts(Path(options.unlabeled_file), options), options.cleaning)
    known = {text_digest(text) for text in judged}
    texts = [t for t in dict.fromkeys(texts) if t.strip() and text_digest(t) not in known]
    if not texts:
        raise DataError(
            f"unlabeled_file='{options.unlabeled_file}' has no text that is not a test text, too; give "
            "others, or leave it out"
        )
    labels = torch.full((len(texts),), -1, dtype=torch.int64)
    store = TokenStore(texts, labels, tokenizer, options.max_length)
    return UnlabeledSplit(Samples(name, store, torch.arange(len(texts)), classes))


def _read(name: str, options: TextOptions) -> _Parts:
    if name.startswith(FILE):
        return _files(Path(name.removeprefix(FILE)), options)
    if name.startswith(HUB):
        return _hub(name.removeprefix(HUB), options)
    readers: dict[str, Callable[[], _Parts]] = {
        "docstrings": lambda: _Parts(docstrings()),
        "sst2": _sst2,
        "sms": lambda: _Parts(_shared("SMSSpamCollection.tsv.xz", "column 2", "column 1")),
        "ru_toxic": lambda: _Parts(_shared("ru_toxic_labeled.csv.xz", "comment", "toxic")),
    }
    if name not in readers:
        raise InputError(
            f"data '{name}' is unknown: use {', '.join(NAMES)}, text:FILE or hfdata:NAME"
        )
    return readers[name]()


def _files(path: Path, options: TextOptions) -> _Parts:
    test = None
    if options.test_file is not None:
        test = read_labelled(Path(options.test_file), options, divided=False)
    return _Parts(read_labelled(path, options), test)


def _sst2() -> _Parts:
    def part(which: str) -> LabelledTexts:
        return _shared(f"sst2_{which}.tsv.xz", "sentence", "label")

    note = "the search split shares phrases with train: decisions on it are optimistic"
    return _Parts(part("train"), part("test"), part("val"), note)


def _shared(file: str, text: str, label: str) -> LabelledTexts:
    root = os.environ.get("PRUNUS_DATA")
    path = Path(root or "") / "text" / file
    if not root or not path.is_file():
        raise DataError(
            f"'text/{file}' is not in the folder that PRUNUS_DATA names ({root or 'not set'}); set "
            "it, or give a file of your own: text:FILE"
        )
    return read_labelled(path, TextOptions(text_column=text, label_column=label, drop_empty=True))


def _hub(name: str, options: TextOptions) -> _Parts:
    """A data set of Hugging Face: by name, or a local folder of files."""
    datasets = require_extra("datasets", "text")
    try:
        found = datasets.load_dataset(name)
    except Exception as error:  # the library raises many kinds
        reason = first_line(error)
        raise DataError(
            f"data set '{name}' cannot be loaded: {reason}; check its name, or give text:FILE"
        ) from error
    if "train" not in found:
        raise DataError(f"data set '{name}' has no split 'train', but {', '.join(found)}")
    train = _hub_part(name, found["train"], options)
    for split in _HUB_TESTS:
        if split in found:
            test = _hub_part(name, found[split], options, divided=False)
            if set(test.labels) != {_NOT_TOLD}:
                return _Parts(train, test)
    return _Parts(train)


def _hub_part(name: str, rows: Any, options: TextOptions, *, divided: bool = True) -> LabelledTexts:
    """Through the same checks as a file of the user's."""
    columns = tuple(rows.column_names)
    cells = [[row[column] for column in columns] for row in rows]
    return labelled_rows(f"hfdata:{name}", columns, cells, options, divided=divided)
