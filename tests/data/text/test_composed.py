"""Texts put together from training texts."""

from collections import Counter
from pathlib import Path

import pytest
import torch

from prunus.data import (
    DataSplits,
    Samples,
    TextOptions,
    TokenStore,
    TrainSplit,
    UnlabeledSplit,
    composed_texts,
    load_data,
)
from prunus.errors import InputError
from tests.data.text.makers import token_store, write_csv


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataSplits:
    folder = tmp_path_factory.mktemp("composed")
    (folder / "more.csv").write_text("text\nwords of another file\n")
    options = TextOptions(unlabeled_file=str(folder / "more.csv"))
    return load_data(f"text:{write_csv(folder / 'a.csv')}", text=options)


def _texts(split: UnlabeledSplit) -> tuple[str, ...]:
    store = split.samples.store
    assert isinstance(store, TokenStore)
    return store.texts


def _training(data: DataSplits) -> tuple[str, ...]:
    store = data.train.alone().samples.store
    assert isinstance(store, TokenStore)
    return store.texts


def test_they_are_made_of_training_words_and_are_new(data: DataSplits) -> None:
    found = _texts(composed_texts(data.train, 30, seed=0))
    training = _training(data)
    words = {word for text in training for word in text.split()}
    longest = max(len(text.split()) for text in training)
    assert len(set(found)) == len(found) == 30
    assert not set(found) & set(training)
    for text in found:
        assert set(text.split()) <= words
        assert len(text.split()) <= longest


def test_a_seed_decides_which(data: DataSplits) -> None:
    first, again, other = (_texts(composed_texts(data.train, 12, seed=s)) for s in (1, 1, 2))
    assert first == again
    assert first != other


def test_a_tenth_of_the_words_is_of_other_texts() -> None:
    """Texts are of 20 words each, so that no two of them fit; those without a new word are left out."""
    own = [" ".join(f"{i}x{j}" for j in range(20)) for i in range(40)]
    samples = Samples("a", token_store(own), torch.arange(40), 2)
    found = _texts(composed_texts(TrainSplit(samples), 200, seed=0))
    homes = [Counter(word.partition("x")[0] for word in text.split()) for text in found]
    strange = sum(20 - max(home.values()) for home in homes) / (20 * 200)
    # Four standard deviations of 4000 coins are 0.019.
    assert strange == pytest.approx(0.1 * 39 / 40 / (1 - 0.9**20), abs=0.019)


def test_one_to_three_texts_follow_each_other_two_most_often() -> None:
    """Of one word each beside a long one, which leaves room: words that are drawn count the texts."""
    own = [*map(str, range(400)), " ".join(["long"] * 3)]
    samples = Samples("a", token_store(own), torch.arange(401), 2)
    found = _texts(composed_texts(TrainSplit(samples), 400, seed=0))
    lengths = Counter(len(text.split()) for text in found if "long" not in text)
    # A text alone is a training text, so that pairs and triples are left: two to one.
    assert set(lengths) == {2, 3}
    total = sum(lengths.values())
    assert lengths[2] == pytest.approx(2 / 3 * total, abs=4 * (total * 2 / 9) ** 0.5)


def test_labels_are_unknown_and_other_texts_come_first(data: DataSplits) -> None:
    split = composed_texts(data.train, 5, seed=0, beside=data.unlabeled)
    assert split.labels.eq(-1).all()
    assert _texts(split)[0] == "words of another file"
    assert len(split) == 6
    inputs, labels = next(iter(split.batches(6)))
    assert isinstance(inputs, dict)
    assert torch.equal(labels, torch.full((6,), -1))


def test_too_many_and_images_are_refused(data: DataSplits) -> None:
    with pytest.raises(
        InputError, match=r"distill_texts=20000: the \d+ training texts of .* ask for"
    ):
        composed_texts(data.train, 20_000, seed=0)
    with pytest.raises(InputError, match="puts texts together, but digits is not of texts"):
        composed_texts(load_data("digits").train, 3, seed=0)


def test_none_is_longer_than_the_longest_training_text(tmp_path: Path) -> None:
    rows = [(f"one{i} two{i}", "ab"[i % 2]) for i in range(60)]
    data = load_data(f"text:{write_csv(tmp_path / 'a.csv', rows)}")
    found = _texts(composed_texts(data.train, 4, seed=0))
    assert {len(text.split()) for text in found} == {2}  # two words replaced, never four in a row
