"""Splits: drawn in proportion, disjoint, the same for a seed; a look at test is counted."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from prunus.data import (
    DataSplits,
    Normalizer,
    Samples,
    SearchSplit,
    TensorStore,
    TestSplit,
    TextTokenizer,
    TokenStore,
    TrainSplit,
    UnlabeledSplit,
    carve_search,
)
from prunus.data.stratify import stratified_draw
from prunus.errors import DataError, InputError


def store(labels: list[int], side: int = 2) -> TensorStore:
    """Images whose every pixel is their position."""
    images = torch.arange(len(labels), dtype=torch.uint8).view(-1, 1, 1, 1)
    images = images.expand(-1, 1, side, side).contiguous()
    normalizer = Normalizer((0.0,), (1 / 255,))
    return TensorStore(images, torch.tensor(labels), normalizer, shift=1, flip=False)


def samples(labels: list[int], num_classes: int = 3, side: int = 2) -> Samples:
    return Samples("toy", store(labels, side), torch.arange(len(labels)), num_classes)


def positions(
    split: TrainSplit | SearchSplit | TestSplit, generator: torch.Generator | None = None
) -> list[int]:
    found: list[int] = []
    for inputs, _ in split.batches(4, generator=generator):
        assert isinstance(inputs, Tensor)
        found += inputs[:, 0, 0, 0].round().int().tolist()
    return found


LABELS = st.lists(st.integers(0, 4), min_size=2, max_size=60)


@given(labels=LABELS, share=st.floats(0, 1), seed=st.integers(0, 99))
def test_every_class_gets_its_share_within_one_sample(
    labels: list[int], share: float, seed: int
) -> None:
    n = round(share * len(labels))
    drawn = stratified_draw(torch.tensor(labels), n, seed).tolist()
    assert len(drawn) == n
    assert drawn == sorted(set(drawn))
    for label in set(labels):
        quota = n * labels.count(label) / len(labels)
        assert abs(sum(labels[i] == label for i in drawn) - quota) < 1


@given(labels=LABELS, share=st.floats(0, 1), seed=st.integers(0, 99))
def test_search_and_the_rest_partition_train(labels: list[int], share: float, seed: int) -> None:
    labels = [*labels, labels[0]]  # one class, at least, that can spare a sample
    train = TrainSplit(samples(labels, 5))
    n = min(len(labels) - len(set(labels)), max(1, round(share * len(labels))))
    rest, search = carve_search(train, n, seed)
    assert sorted(positions(rest) + positions(search)) == list(range(len(labels)))
    assert (len(search), len(train)) == (n, len(labels))
    assert {labels[i] for i in positions(rest)} == set(labels)
    again = carve_search(train, n, seed)
    assert positions(again[1]) == positions(search)


def test_equal_classes_take_turns_where_there_are_fewer_samples_than_classes() -> None:
    labels = torch.arange(120) % 40
    drawn = [labels[stratified_draw(labels, 15, seed)].tolist() for seed in range(20)]
    assert all(len(set(classes)) == 15 for classes in drawn)
    assert {label for classes in drawn for label in classes} == set(range(40))


def test_more_samples_than_there_are_cannot_be_drawn() -> None:
    with pytest.raises(InputError, match="n_samples=5: at most 2 samples can be drawn"):
        stratified_draw(torch.tensor([0, 0, 1, 1, 2]), 5, 0, leave=1)


def test_the_only_sample_of_a_class_is_left_to_train() -> None:
    labels = [*range(9), *[9] * 90]
    for seed in range(3):
        rest, search = carve_search(TrainSplit(samples(labels, 10)), 20, seed)
        assert search.labels.tolist() == [9] * 20
        assert rest.labels.unique().tolist() == list(range(10))


def test_a_search_split_needs_a_sample_that_a_class_can_spare() -> None:
    with pytest.raises(DataError, match="one sample of each class: give at least one more"):
        carve_search(TrainSplit(samples([2, 0, 1])), 1, 0)


def test_another_seed_carves_another_search_split() -> None:
    train = TrainSplit(samples([0, 1, 2] * 20))
    assert positions(carve_search(train, 15, 0)[1]) != positions(carve_search(train, 15, 1)[1])


@pytest.mark.parametrize("n", [0, 6, -1])
def test_carving_leaves_both_with_samples(n: int) -> None:
    with pytest.raises(InputError, match=rf"search_size is {n}: use 1 to 4, out of train's 6"):
        carve_search(TrainSplit(samples([0, 1] * 3)), n, 0)


def test_batches_hold_every_sample_once_in_order_or_shuffled() -> None:
    split = TrainSplit(samples([0, 1, 2] * 5))
    assert [len(labels) for _, labels in split.batches(4)] == [4, 4, 4, 3]
    assert positions(split) == list(range(15))
    shuffled = positions(split, generator=torch.Generator().manual_seed(1))
    assert shuffled != list(range(15))
    assert sorted(shuffled) == list(range(15))
    assert shuffled == positions(split, generator=torch.Generator().manual_seed(1))


def test_labels_follow_their_inputs() -> None:
    labels = [0, 2, 1, 1, 0, 2, 2]
    split = TrainSplit(samples(labels))
    for inputs, found in split.batches(3, generator=torch.Generator().manual_seed(2)):
        assert isinstance(inputs, Tensor)
        assert found.tolist() == [labels[int(i)] for i in inputs[:, 0, 0, 0].round()]
    assert split.labels.tolist() == labels


def test_batches_leave_the_global_random_state() -> None:
    split = TrainSplit(samples([0, 1, 2] * 5))
    before = torch.random.get_rng_state()
    list(split.batches(4, generator=torch.Generator().manual_seed(1), augment=True))
    split.subset(3, 0)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_subset_keeps_proportions_and_role() -> None:
    subset = SearchSplit(samples([0] * 10 + [1] * 20 + [2] * 30)).subset(12, seed=0)
    assert isinstance(subset, SearchSplit)
    assert torch.bincount(subset.labels).tolist() == [2, 4, 6]
    with pytest.raises(InputError, match=r"subset of 61 samples of the search split: use 1 to 60"):
        SearchSplit(samples([0, 1, 2] * 20)).subset(61, seed=0)


def test_a_split_on_a_device_keeps_its_order_role_and_count() -> None:
    whole = samples([0, 1, 2, 0, 1, 2])
    split = TestSplit(Samples("toy", whole.store, torch.tensor([5, 0, 3]), 3))
    there = split.on(torch.device("meta"))
    assert len(there.samples.store.labels) == 3  # the others are not in its memory
    orders = [
        [
            labels.tolist()
            for _, labels in one.batches(2, generator=torch.Generator().manual_seed(1))
        ]
        for one in (split, there)
    ]
    assert orders[0] == orders[1]
    assert (there.role, split.evaluations) == ("test", 2)
    assert split.on(torch.device("cpu")).samples is split.samples


def test_test_counts_every_pass_begun_and_those_of_its_subsets() -> None:
    test = TestSplit(samples([0, 1, 2] * 3))
    waiting = test.batches(4)
    assert test.evaluations == 0
    next(waiting)
    assert test.evaluations == 1
    list(waiting)
    assert test.evaluations == 1
    list(test.subset(3, 0).batches(2))
    assert test.evaluations == 2
    assert len(test) == 9
    assert test.input_shape == (1, 2, 2)
    assert test.evaluations == 2


def test_wrong_calls_are_named() -> None:
    train, test = TrainSplit(samples([0, 1, 2])), TestSplit(samples([0, 1, 2]))
    with pytest.raises(InputError, match=r"batch_size is 0: use at least 1"):
        train.batches(0)
    with pytest.raises(InputError, match=r"augment is set without a generator"):
        train.batches(1, augment=True)
    with pytest.raises(InputError, match=r"augment is set on the test split: only train"):
        test.batches(1, augment=True, generator=torch.Generator())
    with pytest.raises(DataError, match=r"toy: a split has no samples"):
        TrainSplit(samples([]))
    with pytest.raises(DataError, match=r"the train split has a label outside 0 to 1: set num_cl"):
        list(TrainSplit(samples([0, 1, 2], num_classes=2)).batches(3))


def test_splits_that_do_not_belong_together_are_refused() -> None:
    whole = samples([0, 1, 2] * 4)
    train, search = carve_search(TrainSplit(whole), 3, 0)
    test = TestSplit(samples([0, 1, 2]))
    assert DataSplits("toy", train, search, test, 3).input_shape == (1, 2, 2)
    with pytest.raises(DataError, match=r"toy: 3 samples are in train and in search"):
        DataSplits("toy", TrainSplit(whole), search, test, 3)
    seen = Samples("toy", whole.store, train.samples.indices[:2], 3)
    with pytest.raises(DataError, match=r"toy: 2 samples are in train and in test; make the two"):
        DataSplits("toy", train, search, TestSplit(seen), 3)
    seen = Samples("toy", whole.store, search.samples.indices, 3)
    with pytest.raises(DataError, match=r"toy: 3 samples are in search and in test"):
        DataSplits("toy", train, search, TestSplit(seen), 3)
    with pytest.raises(DataError, match=r"the test split has 4 classes, the data set 3"):
        DataSplits("toy", train, search, TestSplit(samples([0], num_classes=4)), 3)
    with pytest.raises(DataError, match=r"inputs of the test split are \[1, 5, 5\], of train"):
        DataSplits("toy", train, search, TestSplit(samples([0], side=5)), 3)


def test_splits_of_one_store_are_parted() -> None:
    shared = store([0, 1, 2] * 4)
    parts = [Samples("toy", shared, torch.arange(k, 12, 3), 3) for k in range(3)]
    test = TestSplit(parts[2])
    data = DataSplits("toy", TrainSplit(parts[0]), SearchSplit(parts[1]), test, 3)
    found = [positions(data.train), positions(data.search), positions(data.test)]
    assert found == [list(range(k, 12, 3)) for k in range(3)]
    for split in (data.train, data.search, data.test):
        assert len(split.samples.store.labels) == 4
    assert test.evaluations == data.test.evaluations == 1


def text_samples(lengths: list[int], name: str = "toy") -> Samples:
    """Texts of so many pieces each: words of one piece, framed by two."""
    tokenizer = TextTokenizer.train_wordpiece(["a b c"], 64)
    texts = [" ".join("a" * (length - 2)) for length in lengths]
    labels = torch.arange(len(lengths)) % 3
    return Samples(name, TokenStore(texts, labels, tokenizer, 64), torch.arange(len(lengths)), 3)


PIECES = st.lists(st.integers(2, 40), min_size=1, max_size=60)


@given(lengths=PIECES, size=st.integers(1, 9), seed=st.integers(0, 99), shuffled=st.booleans())
def test_a_position_tells_which_sample_of_the_split_was_read(
    lengths: list[int], size: int, seed: int, shuffled: bool
) -> None:
    split = TrainSplit(text_samples(lengths))
    generator = torch.Generator().manual_seed(seed) if shuffled else None
    seen: list[int] = []
    for places, inputs, labels in split.placed_batches(size, generator=generator):
        assert isinstance(inputs, dict)
        assert torch.equal(labels, split.labels[places])
        assert inputs["attention_mask"].sum(1).tolist() == [lengths[i] for i in places.tolist()]
        seen += places.tolist()
    assert sorted(seen) == list(range(len(lengths)))
    assert shuffled or seen == sorted(seen)


def test_positions_are_of_the_split_and_not_of_the_store() -> None:
    whole = samples([0, 1, 2, 0, 1, 2])
    part = TrainSplit(Samples("toy", whole.store, torch.tensor([5, 1, 3]), 3))
    ((places, inputs, labels),) = part.placed_batches(4)
    assert isinstance(inputs, Tensor)
    assert places.tolist() == [0, 1, 2]
    assert inputs[:, 0, 0, 0].round().int().tolist() == [5, 1, 3]
    assert labels.tolist() == [2, 1, 0]


@given(lengths=PIECES, size=st.integers(1, 9))
def test_by_length_the_short_come_first_and_equals_keep_their_order(
    lengths: list[int], size: int
) -> None:
    split = SearchSplit(text_samples(lengths))
    batches = split.placed_batches(size, by_length=True)
    places = [i for batch, _, _ in batches for i in batch.tolist()]
    assert places == sorted(range(len(lengths)), key=lambda i: (lengths[i], i))


def test_shuffled_texts_come_in_batches_of_similar_length_in_mixed_order() -> None:
    drawn = torch.randint(2, 41, (410,), generator=torch.Generator().manual_seed(0)).tolist()
    split = TrainSplit(text_samples(drawn))

    def shapes(seed: int) -> list[tuple[int, ...]]:
        generator = torch.Generator().manual_seed(seed)
        found = []
        for inputs, _ in split.batches(20, generator=generator):
            assert isinstance(inputs, dict)
            found.append(tuple(inputs["input_ids"].shape))
        return found

    first = shapes(1)
    assert first == shapes(1) != shapes(2)
    assert [n for n, _ in first] == [20] * 20 + [10]  # what fills no batch comes last
    widths = [width for _, width in first[:-1]]
    assert widths != sorted(widths)
    # 400 sorted texts of 2 to 40 pieces in 20 batches: a batch spans about 2 lengths, so the padding
    # is at most some 10 %; batches drawn at random are nearly half padding.
    assert sum(20 * width for width in widths) < 1.1 * sum(drawn)


def test_samples_without_labels_are_read_and_a_label_is_refused() -> None:
    texts = text_samples([3, 4, 5])
    store = texts.store
    assert isinstance(store, TokenStore)
    hidden = TokenStore(store.texts, torch.full((3,), -1), store.tokenizer, 64)
    split = UnlabeledSplit(Samples("toy", hidden, torch.arange(3), 3))
    assert split.role == "unlabeled"
    ((_, labels),) = split.batches(4)
    assert labels.tolist() == [-1, -1, -1]
    with pytest.raises(DataError, match="the unlabeled split has a label; mark all with -1"):
        list(UnlabeledSplit(texts).batches(4))
    with pytest.raises(DataError, match="train split has a label outside 0 to 2"):
        list(TrainSplit(Samples("toy", hidden, torch.arange(3), 3)).batches(4))
    with pytest.raises(InputError, match="only train is augmented"):
        split.batches(4, generator=torch.Generator(), augment=True)


def test_images_cannot_be_spelled_in_other_pieces() -> None:
    tokenizer = TextTokenizer.train_wordpiece(["a b c"], 64)
    with pytest.raises(InputError, match="are no texts: .* load texts with load_data"):
        TrainSplit(samples([0, 1, 2])).spelled(tokenizer)
