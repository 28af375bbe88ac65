"""Texts put together from training texts: more for a teacher to speak about where there are no others."""

import random

import torch

from prunus.data.splits import Samples, TrainSplit, UnlabeledSplit
from prunus.data.text.store import TokenStore
from prunus.errors import InputError

_PARTS = (1, 2, 2, 3)  # how many training texts follow each other, drawn evenly from these
_REPLACED = 0.1  # of the words
_TRIES = 50  # for each text that is asked for


def composed_texts(
    train: TrainSplit, n: int, *, seed: int, beside: UnlabeledSplit | None = None
) -> UnlabeledSplit:
    """One to three training texts after each other, a tenth of the words from other training texts.

    None is longer than the longest training text, a training text itself, or there twice. They are
    nonsense with words in natural neighborhoods; their labels are not known, and a teacher's logits are
    all that is learned on them. Word replacement is that of Tang et al., "Distilling Task-Specific
    Knowledge from BERT into Simple Neural Networks", 2019, section 3.3, without their tagger.

    Args:
        train: Labels are not looked at.
        n: Texts to put together.
        seed: Decides which.
        beside: Other texts without labels, which the split holds, too.

    Raises:
        InputError: The split is not of texts, or they are too few or too short for ``n`` others.
    """
    store = train.alone().samples.store
    if not isinstance(store, TokenStore):
        raise InputError(f"distill_texts={n} puts texts together, but {train.name} is not of texts")
    words = [text.split() for text in store.texts]
    longest = max(len(text) for text in words)
    draw = random.Random(seed)
    seen = {" ".join(text) for text in words}
    found: list[str] = []
    for _ in range(_TRIES * n):
        if len(found) == n:
            break
        parts = [draw.choice(words) for _ in range(draw.choice(_PARTS))]
        text = " ".join(
            _another(draw, words, word) if draw.random() < _REPLACED else word
            for part in parts
            for word in part
        )
        if text and text not in seen and sum(len(part) for part in parts) <= longest:
            seen.add(text)
            found.append(text)
    if len(found) < n:
        raise InputError(
            f"distill_texts={n}: the {len(words)} training texts of {train.name} give {len(found)} "
            "different ones; ask for fewer"
        )
    return _split(train, store, found, beside)


def _another(draw: random.Random, words: list[list[str]], word: str) -> str:
    """A word as often as the training texts hold it; the same one where an empty text is drawn."""
    text = draw.choice(words)
    return draw.choice(text) if text else word


def _split(
    train: TrainSplit, store: TokenStore, texts: list[str], beside: UnlabeledSplit | None
) -> UnlabeledSplit:
    others = None if beside is None else beside.alone().samples.store
    if isinstance(others, TokenStore):
        texts = [*others.texts, *texts]
    labels = torch.full((len(texts),), -1, dtype=torch.int64)
    whole = TokenStore(texts, labels, store.tokenizer, store.max_length)
    samples = Samples(train.name, whole, torch.arange(len(texts)), train.num_classes)
    return UnlabeledSplit(samples)
