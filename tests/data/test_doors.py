"""What is wrong with data is told where it is given, and not by a look after the training."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    Subset,
    TensorDataset,
)

from prunus.data import (
    CustomOptions,
    DataSplits,
    Samples,
    SearchSplit,
    TestSplit,
    TokenStore,
    TrainSplit,
    UnlabeledSplit,
    from_datasets,
    load_data,
)
from prunus.data import folder as image_folders
from prunus.data.custom import _taken
from prunus.errors import DataError, InputError
from tests.data.test_splits import samples, text_samples

Pair = tuple[torch.Tensor, ...]


def pairs(n: int, classes: int = 3) -> TensorDataset:
    return TensorDataset(torch.arange(n).float().view(-1, 1), torch.arange(n) % classes)


# --- samples in two roles -----------------------------------------------------------------------


WHOLE = pairs(300)
INNER = Subset(WHOLE, range(100, 300))  # its position k is 100 + k of the whole
JOINED: ConcatDataset[Pair] = ConcatDataset([pairs(10), INNER, Subset(WHOLE, [0, 1])])


@pytest.mark.parametrize(
    ("train", "test", "shared"),
    [
        (Subset(WHOLE, range(200)), Subset(WHOLE, range(150, 300)), 50),
        (WHOLE, Subset(WHOLE, range(250, 300)), 50),
        (Subset(WHOLE, range(250)), WHOLE, 250),
        (Subset(WHOLE, range(120)), Subset(INNER, range(30)), 20),
        (Subset(WHOLE, range(299)), Subset(WHOLE, [-1, -2, 298]), 1),
        (Subset(WHOLE, range(100)), Subset(WHOLE, torch.arange(90, 110)), 10),  # type: ignore[arg-type]
        (JOINED, Subset(WHOLE, range(1, 150)), 51),
        (Subset(JOINED, [9, 10, 11, -1]), Subset(WHOLE, [1, 100, 9]), 2),
        (ConcatDataset([WHOLE, pairs(5)]), ConcatDataset([pairs(5), Subset(WHOLE, [7])]), 1),
        (Subset(WHOLE, list(torch.arange(9))), Subset(WHOLE, np.arange(8, 20)), 1),  # type: ignore[arg-type]
    ],
)
def test_parts_of_one_data_set_that_overlap_are_refused(
    train: Dataset[Pair], test: Dataset[Pair], shared: int
) -> None:
    said = rf"custom: {shared} samples are in train and in test; make the two disjoint, as torch"
    with pytest.raises(DataError, match=said):
        from_datasets(train, test)  # type: ignore[arg-type]


def test_every_two_roles_are_told_apart() -> None:
    parts = [Subset(WHOLE, range(start, start + 100)) for start in (0, 100, 200)]
    data = from_datasets(parts[0], parts[2], search=parts[1])
    assert (len(data.train), len(data.search), len(data.test)) == (100, 100, 100)
    near = Subset(WHOLE, range(110, 210))
    with pytest.raises(DataError, match="10 samples are in train and in search; make"):
        from_datasets(parts[2], parts[0], search=near)
    with pytest.raises(DataError, match="90 samples are in search and in test; make"):
        from_datasets(parts[0], parts[1], search=near)
    # What is augmented is train again; but it must not be more than that.
    again = CustomOptions(augmented_train=parts[0])
    assert len(from_datasets(parts[0], parts[1], options=again).test) == 100
    with pytest.raises(DataError, match="90 samples are in augmented_train and in test"):
        from_datasets(parts[0], parts[1], options=CustomOptions(augmented_train=near))


def test_parts_of_other_data_sets_are_taken() -> None:
    same = range(150)
    assert len(from_datasets(Subset(WHOLE, same), Subset(pairs(300), same)).test) == 150
    apart = from_datasets(JOINED, Subset(WHOLE, range(2, 100)))
    assert len(apart.train) + len(apart.search) == 212


class Keyed(Dataset[Pair]):
    """Samples under names."""

    def __getitem__(self, index: Any) -> Pair:
        return torch.zeros(1), torch.tensor(int(index[1:]) % 2)


def test_keys_that_are_no_numbers_are_compared_too() -> None:
    whole = Keyed()
    train = Subset(whole, [f"a{k}" for k in range(8)])  # type: ignore[misc]
    apart = Subset(whole, ["a8", "a9"])  # type: ignore[list-item]
    assert len(from_datasets(train, apart).test) == 2
    with pytest.raises(DataError, match="1 samples are in train and in test"):
        from_datasets(train, Subset(whole, ["a7", "a8"]))  # type: ignore[list-item]


class Streamed(IterableDataset[Pair]):
    """Samples in their order alone, though their number is known."""

    def __iter__(self) -> Iterator[Pair]:
        return iter([(torch.zeros(1), torch.tensor(0))] * 4)

    def __len__(self) -> int:
        return 4


def test_what_has_no_positions_is_refused_in_one_line() -> None:
    loader: Any = DataLoader(pairs(12), 4)
    with pytest.raises(InputError, match=r"^test is a DataLoader, .* the DataLoader's \.dataset$"):
        from_datasets(WHOLE, loader)
    with pytest.raises(InputError, match=r"^search is a DataLoader"):
        from_datasets(WHOLE, pairs(9), search=loader)
    for wrong in (Streamed(), iter([1])):
        with pytest.raises(InputError, match=r"^train \(\w+\) has no samples by position \(__get"):
            from_datasets(wrong, pairs(9))  # type: ignore[arg-type]
    options = CustomOptions(augmented_train=loader)
    with pytest.raises(InputError, match="augmented_train is a DataLoader"):
        from_datasets(WHOLE, pairs(9), options=options)


# --- labels -------------------------------------------------------------------------------------


def test_a_class_that_train_lacks_is_told_at_once() -> None:
    with pytest.raises(DataError, match=r"the test split has a label outside 0 to 2: set num_cl"):
        from_datasets(pairs(30), pairs(8, classes=4))
    with pytest.raises(DataError, match=r"the search split has a label outside 0 to 2"):
        from_datasets(pairs(30), pairs(9), search=pairs(8, classes=4))
    options = CustomOptions(num_classes=4)
    data = from_datasets(pairs(30), pairs(8, classes=4), options=options)
    assert data.test.evaluations == 0  # a look at labels is none at what a network says


def test_labels_of_all_splits_are_looked_at() -> None:
    good = [0, 1, 2]
    for at, role in enumerate(("train", "search", "test")):
        labels = [good, good, good]
        labels[at] = [0, 3, 1]
        train, search, test = (samples(each) for each in labels)
        with pytest.raises(DataError, match=rf"the {role} split has a label outside 0 to 2"):
            DataSplits("toy", TrainSplit(train), SearchSplit(search), TestSplit(test), 3)


def test_samples_without_labels_have_none() -> None:
    parts = [text_samples([3, 4, 5]) for _ in range(3)]
    store = text_samples([3, 4, 5]).store
    assert isinstance(store, TokenStore)

    def made(labels: torch.Tensor) -> DataSplits:
        more = TokenStore(store.texts, labels, store.tokenizer, 64)
        unlabeled = UnlabeledSplit(Samples("toy", more, torch.arange(3), 3))
        splits = TrainSplit(parts[0]), SearchSplit(parts[1]), TestSplit(parts[2])
        return DataSplits("toy", *splits, 3, unlabeled=unlabeled)

    assert made(torch.full((3,), -1)).unlabeled is not None
    with pytest.raises(DataError, match="the unlabeled split has a label; mark all with -1"):
        made(torch.tensor([-1, 0, -1]))


# --- images -------------------------------------------------------------------------------------


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    for part in ("train", "val", "test"):
        for name in ("ant", "bee"):
            (tmp_path / part / name).mkdir(parents=True)
            for k in range(4):
                pixels = random.integers(0, 255, (60, 60, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / part / name / f"{k}.jpg")
    return tmp_path


def break_off(file: Path) -> None:
    """As a download does."""
    file.write_bytes(file.read_bytes()[: file.stat().st_size * 3 // 4])


@pytest.mark.parametrize("part", ["val", "test"])
def test_an_image_that_broke_off_is_told_before_a_training(photos: Path, part: str) -> None:
    data = load_data(f"imagefolder:{photos}", image_size=16)
    assert data.test.evaluations == 0
    break_off(photos / part / "bee" / "3.jpg")
    with pytest.raises(DataError, match=rf"{part}/bee/3\.jpg' is no readable image \(OSError\)"):
        load_data(f"imagefolder:{photos}", image_size=16)


def test_some_images_of_many_are_decoded(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_folders, "_DECODED", 3)
    break_off(photos / "test" / "ant" / "1.jpg")  # of eight, 0, 3 and 6 are
    assert len(load_data(f"imagefolder:{photos}", image_size=16).test) == 8
    break_off(photos / "test" / "bee" / "2.jpg")
    with pytest.raises(DataError, match=r"bee/2\.jpg' is no readable image"):
        load_data(f"imagefolder:{photos}", image_size=16)


def test_a_search_split_is_not_drawn_from_samples_that_are_there_twice() -> None:
    whole = pairs(60)
    twice = Subset(whole, [*range(40), *range(10)])
    test = Subset(whole, range(50, 60))
    with pytest.raises(DataError, match="10 of train's positions are there already"):
        from_datasets(twice, test)
    joined: ConcatDataset[Pair] = ConcatDataset(
        [Subset(whole, range(40)), pairs(3), Subset(whole, range(38, 42))]
    )
    with pytest.raises(DataError, match="2 of train's positions are there already"):
        from_datasets(joined, test)
    data = from_datasets(twice, test, search=Subset(whole, range(40, 50)))
    assert (len(data.train), len(data.search)) == (50, 10)


class Counted(int):
    """An end of a part that counts how often it is compared with a place."""

    comparisons = 0

    def __gt__(self, place: int) -> bool:
        Counted.comparisons += 1
        return int(self) > place

    __hash__ = int.__hash__


def test_a_place_is_looked_up_among_many_parts_by_halving() -> None:
    joined: ConcatDataset[Pair] = ConcatDataset([pairs(4) for _ in range(255)])
    joined.cumulative_sizes = [Counted(end) for end in joined.cumulative_sizes]
    Counted.comparisons = 0
    taken = _taken(joined)
    assert [[*places] for places in taken.values()] == [[0, 1, 2, 3]] * 255
    assert 0 < Counted.comparisons <= 8 * 1020  # 2^8 = 256 gaps between and beside 255 ends


# --- arguments ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mean": [77.8], "std": [95.9]}, r"mean \[77.8\] is not within 0 to 1.*divide"),
        ({"mean": [0.3], "std": [float("nan")]}, r"std \[nan\] has a value that is not above 0"),
        ({"mean": [float("nan")], "std": [0.3]}, r"mean \[nan\] is not within 0 to 1"),
        ({"mean": 0.5, "std": 0.5}, "mean is 0.5 and std is 0.5: give a list for each"),
        ({"search_size": 2.5}, "search_size is 2.5: give a whole number"),
        ({"seed": 1.5}, "seed is 1.5: give a whole number, 0 or more"),
        ({"seed": -1}, "seed is -1: give a whole number, 0 or more"),
    ],
)
def test_arguments_that_cannot_be_used_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_data("digits", **arguments)


def test_a_name_that_is_no_text_and_a_size_that_is_no_number_are_named() -> None:
    wrong: Any = Path("a.csv")
    with pytest.raises(InputError, match="give the name of a data set as text"):
        load_data(wrong)
    size: Any = "5"
    with pytest.raises(InputError, match="search_size is '5': give a whole number"):
        from_datasets(pairs(10), pairs(5), search_size=size)


def test_numbers_of_numpy_are_numbers() -> None:
    seed: Any = np.int64(3)
    assert len(from_datasets(pairs(10), pairs(5), search_size=seed, seed=seed).search) == 3


class Named(Dataset[dict[str, Any]]):
    """Samples as mappings of what is given, and a label."""

    def __init__(self, **inputs: Any) -> None:
        self.inputs = inputs

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**self.inputs, "labels": index % 2}


@pytest.mark.parametrize(
    ("inputs", "kind"),
    [
        ({"input_ids": torch.zeros(3), "text": "hello"}, "'text' of the data set are str"),
        ({"input_ids": [1, 2, 3]}, "'input_ids' of the data set are list: .*set_format"),
    ],
)
def test_inputs_by_name_that_are_no_tensors_are_named(inputs: dict[str, Any], kind: str) -> None:
    with pytest.raises(DataError, match=kind):
        from_datasets(Named(**inputs), Named(**inputs))


def test_inputs_by_name_become_float32_as_others_do() -> None:
    data = from_datasets(Named(x=np.ones(3), ids=torch.ones(2, dtype=torch.int64)), Named(x=1))
    inputs, _ = next(data.train.batches(2))
    assert isinstance(inputs, dict)
    assert {name: each.dtype for name, each in inputs.items()} == {
        "x": torch.float32,
        "ids": torch.int64,
    }


def test_given_labels_that_are_not_those_of_the_samples_are_told() -> None:
    wrong = [(i + (i == 7)) % 3 for i in range(30)]
    data = from_datasets(pairs(30), pairs(5), options=CustomOptions(train_labels=wrong))
    with pytest.raises(DataError, match="train_labels has 2 for sample 7, whose own label is 1"):
        list(data.train.batches(30)), list(data.search.batches(30))


def test_the_default_search_split_leaves_every_class_a_sample() -> None:
    data = from_datasets(pairs(110, classes=100), pairs(5))
    assert (len(data.train), len(data.search)) == (100, 10)
    assert len(data.train.labels.unique()) == 100
