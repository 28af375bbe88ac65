"""Load texts in three splits: a file of one's own, the embedded docstrings, or a shared set by name."""

from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path

import torch
from torch import Tensor

from prunus.data.roles import DataSplits, absent, carve_search
from prunus.data.splits import (
    Samples,
    SearchSplit,
    TestSplit,
    TrainSplit,
    UnlabeledSplit,
)
from prunus.data.stratify import spare
from prunus.data.text.clean import clean
from prunus.data.text.copies import known_before, text_digest, texts_of
from prunus.data.text.division import MOST_SEARCH, Texts, divide
from prunus.data.text.labelled import WHOLE_NUMBER, read_texts
from prunus.data.text.options import TextOptions
from prunus.data.text.sets import FILE, HUB, Parts, read_parts
from prunus.data.text.store import TokenStore
from prunus.data.text.tokenizer import TextTokenizer
from prunus.errors import DataError, InputError

_NO_LIMIT = 2**31 - 1

_IDLE = ("test_file", "text_column", "label_column", "encoding")
_IDLE_OF = {FILE: (), HUB: ("test_file", "encoding"), "sst2": (*_IDLE, "test_fraction")}
"""Settings that a set of texts has no use for; of the other sets ``_IDLE``."""


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
    parts = read_parts(name, options)
    _require_undivided(name, parts, options)
    names = _class_names(name, parts)
    texts = divide(parts, options, names, name, seed=seed, search_size=search_size)
    notes = list(texts.notes)
    if tokenizer is None:
        tokenizer = TextTokenizer.train_wordpiece(texts.train.texts, options.vocab_size)
    else:
        notes += _not_trained(tokenizer, options)
        options = options.model_copy(update={"vocab_size": tokenizer.vocab_size})

    def samples(part: Texts) -> Samples:
        store = TokenStore(part.texts, part.labels, tokenizer, options.max_length)
        return Samples(name, store, torch.arange(len(part.texts)), len(names))

    trains = TrainSplit(samples(texts.train))
    if texts.search is None:
        trains, searches = _searched(trains, search_size, seed)
    else:
        searches = SearchSplit(samples(texts.search))
    judged = [*texts.test.texts, *texts_of(searches)]
    unlabeled = _unlabeled(name, options, tokenizer, len(names), judged)
    found = {"train": trains.labels, "search": searches.labels, "test": texts.test.labels}
    limits = {
        "a larger train_size": options.train_size,
        "a smaller test_fraction": options.test_fraction if parts.test is None else None,
    }
    _require_learnt(name, names, found, limits)
    notes += [
        *absent(found, [f"'{each}'" for each in names], "text"),
        *known_before(tokenizer, options, trains, searches, texts.test.texts),
    ]
    return DataSplits(
        name=name,
        train=trains,
        search=searches,
        test=TestSplit(samples(texts.test)),
        num_classes=len(names),
        note="; ".join([*notes, *_cut_off(trains, options.max_length)]),
        metric="f1",
        class_names=names,
        unlabeled=unlabeled,
        tokenizer=tokenizer,
        text=options,
    )


def _searched(train: TrainSplit, size: int | None, seed: int) -> tuple[TrainSplit, SearchSplit]:
    """Train without its search split, a fifth where no size is asked for, and that split."""
    fifth = max(1, min(MOST_SEARCH, len(train) // 5, spare(train.labels)))
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


def _require_undivided(name: str, parts: Parts, options: TextOptions) -> None:
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


def _class_names(name: str, parts: Parts) -> tuple[str, ...]:
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
