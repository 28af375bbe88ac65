"""Stores normalize, stack and seed; what they cannot take they name."""

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from prunus.data import DatasetStore, Normalizer, SampleStore, TensorStore
from prunus.errors import DataError, InputError


def read(store: TensorStore | DatasetStore, index: int, augment: int | None = None) -> Tensor:
    generator = None if augment is None else torch.Generator().manual_seed(augment)
    inputs, _ = store.read(torch.tensor([index]), generator)
    assert isinstance(inputs, Tensor)
    return inputs


def test_normalization_is_by_channel() -> None:
    images = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 3, 1, 1)
    normalizer = Normalizer((0.5, 0.2, 0.0), (0.5, 1.0, 2.0))
    # (0 - 0.5) / 0.5, (51 / 255 - 0.2) / 1, (1 - 0) / 2
    assert torch.allclose(normalizer(images).flatten(), torch.tensor([-1.0, 0.0, 0.5]), atol=1e-7)


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        ((0.5,), (1.0, 1.0), r"mean \[0\.5\] and std \[1\.0, 1\.0\] differ in length"),
        ((), (), r"differ in length: give one number per channel"),
        (
            (0.5,),
            (0.0,),
            r"std \[0\.0\] has a value that is not above 0 and finite: give positive numbers",
        ),
    ],
)
def test_wrong_constants_are_named(
    mean: tuple[float, ...], std: tuple[float, ...], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        Normalizer(mean, std)


def test_wrong_tensors_are_named() -> None:
    one = Normalizer((0.0,), (1.0,))
    images, labels = torch.zeros(2, 1, 3, 3, dtype=torch.uint8), torch.zeros(2)
    for x, y, normalizer, message in [
        (images.float(), labels, one, r"images are torch\.float32 \[2, 1, 3, 3\]: give uint8"),
        (images[0], labels, one, r"images are torch\.uint8 \[1, 3, 3\]"),
        (images, labels[:1], one, r"\[1\] labels for 2 images"),
        (images, labels, Normalizer((0.0,) * 3, (1.0,) * 3), r"for 3 channels, the images have 1"),
    ]:
        with pytest.raises(InputError, match=message):
            TensorStore(x, y, normalizer, shift=0, flip=False)


def coloured(count: int) -> TensorStore:
    """Images that differ, in three channels."""
    images = torch.arange(count * 48).remainder(251).to(torch.uint8).view(count, 3, 4, 4)
    normalizer = Normalizer((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    return TensorStore(images, torch.arange(count), normalizer, shift=1, flip=True)


class OneDevice(TorchDispatchMode):
    """Refuses operations on tensors of two devices, which CUDA would refuse or wait for."""

    def __torch_dispatch__(self, func: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        assert len({t.device for t in given}) <= 1, func
        return func(*args, **(kwargs or {}))


def test_a_store_on_a_device_computes_there_alone() -> None:
    meta = torch.device("meta")
    placed = coloured(5).placed(torch.tensor([4, 1, 3]), meta)
    assert placed is not None
    for augment in (None, torch.Generator().manual_seed(0)):
        with OneDevice():
            inputs, _ = placed.read(torch.tensor([2, 0]), augment)
        assert isinstance(inputs, Tensor)
        assert (inputs.device, inputs.dtype) == (meta, torch.float32)
        assert inputs.shape == (2, 3, 4, 4)


def test_a_placed_store_holds_the_samples_asked_for_alone() -> None:
    indices, meta = torch.tensor([4, 1, 3]), torch.device("meta")
    placed = coloured(5).placed(indices, meta)
    assert placed is not None
    inputs, labels = placed.read(torch.tensor([2, 0]), None)
    assert isinstance(inputs, Tensor)
    assert inputs.device.type == "meta"
    assert labels.tolist() == [3, 4]
    assert placed.placed(torch.tensor([0]), meta) is None  # there already
    assert coloured(5).placed(indices, torch.device("cpu")) is None


def test_what_takes_too_much_of_a_device_stays_on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (4 * 3 * 48 - 1, 10**9))
    store, cuda, moved = coloured(5), torch.device("cuda", 0), []

    def stay(tensor: Tensor, device: torch.device) -> Tensor:
        moved.append((len(tensor), device))
        return tensor

    monkeypatch.setattr(Tensor, "to", stay)
    assert store.placed(torch.arange(3), cuda) is None  # 3 images of 48 bytes: a quarter and more
    assert moved == []
    assert store.placed(torch.arange(2), cuda) is not None
    assert moved == [(2, cuda)]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_store_on_cuda_reads_the_same() -> None:
    indices = torch.tensor([4, 1, 3])
    store, placed = coloured(5), coloured(5).placed(indices, torch.device("cuda", 0))
    assert placed is not None
    for seed in (None, 0, 1):
        there, here = (
            one.read(at, None if seed is None else torch.Generator().manual_seed(seed))
            for one, at in ((placed, torch.tensor([2, 0])), (store, indices[[2, 0]]))
        )
        assert isinstance(there[0], Tensor) and isinstance(here[0], Tensor)
        assert there[0].is_cuda
        torch.testing.assert_close(there[0].cpu(), here[0], rtol=1e-6, atol=1e-6)
        assert torch.equal(there[1], here[1])


class Noisy:
    """Draws from all three global random states, as users' transforms do."""

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if index >= 3:
            raise IndexError(index)
        noise = torch.rand(()) + random.random() + np.random.rand()  # noqa: NPY002
        return torch.full((2,), index + float(noise) / 10), index % 2


def test_user_transforms_are_seeded_and_global_states_are_restored() -> None:
    store = DatasetStore(Noisy())
    before = (torch.random.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist())  # type: ignore[index]  # noqa: NPY002
    assert torch.equal(read(store, 1), read(store, 1))
    assert torch.equal(read(store, 1, augment=5), read(store, 1, augment=5))
    assert not torch.equal(read(store, 1, augment=5), read(store, 1, augment=6))
    assert store.labels.tolist() == [0, 1, 0]
    after = (torch.random.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist())  # type: ignore[index]  # noqa: NPY002
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]


def test_global_states_are_restored_when_a_transform_fails() -> None:
    class Failing(Noisy):
        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            super().__getitem__(index)
            raise KeyError(index)

    before = (torch.random.get_rng_state(), random.getstate())
    with pytest.raises(DataError, match="raised KeyError: 0"):
        read(DatasetStore(Failing()), 0)
    assert torch.equal(before[0], torch.random.get_rng_state())
    assert before[1] == random.getstate()


def test_augmented_samples_are_used_for_augmentation_alone() -> None:
    plain = [(torch.zeros(1), 0), (torch.ones(1), 1)]
    augmented = [(x + 10, y) for x, y in plain]
    store = DatasetStore(plain, augmented=augmented)
    assert read(store, 1).item() == 1
    assert read(store, 1, augment=0).item() == 11


def test_mappings_become_a_dictionary_of_inputs() -> None:
    rows = [{"ids": torch.tensor([i, i]), "mask": torch.ones(2), "y": i % 2} for i in range(4)]
    store = DatasetStore(rows, label_key="y")
    inputs, labels = store.read(torch.tensor([3, 0]), None)
    assert isinstance(inputs, dict)
    assert inputs["ids"].tolist() == [[3, 3], [0, 0]]
    assert set(inputs) == {"ids", "mask"}
    assert labels.tolist() == [1, 0]
    assert store.input_shape == ()


def test_arrays_become_float32() -> None:
    store = DatasetStore([(np.full(3, 0.5), 1)])
    inputs, labels = store.read(torch.tensor([0]), None)
    assert isinstance(inputs, Tensor)
    assert inputs.dtype == torch.float32
    assert inputs.tolist() == [[0.5, 0.5, 0.5]]
    assert labels.dtype == torch.int64
    assert store.input_shape == (3,)


def test_given_labels_spare_reading_the_samples() -> None:
    class Unreadable:
        def __len__(self) -> int:
            return 2

        def __getitem__(self, index: int) -> Any:
            raise AssertionError("read")

    assert DatasetStore(Unreadable(), labels=[1, 0]).labels.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([torch.zeros(2)], r"sample 0 is a Tensor: give \(input, label\) pairs"),
        ([{"ids": torch.zeros(2)}], r"sample 0 has no 'labels' among ids: set label_key"),
        ([("text", 0)], r"inputs of the data set are str: give tensors"),
        ([(torch.zeros(2), 0), (torch.zeros(3), 0)], r"cannot be stacked \(stack expects each"),
        ([(object(), 0)], r"cannot be stacked \(default_collate"),
    ],
)
def test_wrong_samples_are_named(rows: Sequence[Any], message: str) -> None:
    store = DatasetStore(rows)
    with pytest.raises(DataError, match=message):
        store.read(torch.arange(len(rows)), None)


def test_wrong_data_sets_are_named() -> None:
    rows = [(torch.zeros(1), 0)]
    with pytest.raises(DataError, match=r"the data set is empty"):
        DatasetStore([])
    with pytest.raises(InputError, match=r"augmented has 2 samples, the data set 1"):
        DatasetStore(rows, augmented=rows * 2)
    with pytest.raises(InputError, match=r"2 labels for 1 samples: give one per sample"):
        DatasetStore(rows, labels=[0, 1])
    with pytest.raises(InputError, match=r"dataset \(generator\) has no length: give a map-style"):
        DatasetStore(row for row in rows)  # type: ignore[arg-type]  # the mistake itself


class _Undivided(SampleStore):
    """A store of a user's own, which knows how to read and no more."""

    @property
    def labels(self) -> torch.Tensor:
        return torch.arange(6) % 2

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (1,)

    def read(
        self, indices: torch.Tensor, augment: torch.Generator | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return indices[:, None].float(), self.labels[indices]


def test_a_part_of_any_store_holds_its_own_samples() -> None:
    part = _Undivided().take(torch.tensor([4, 1]))
    inputs, labels = part.read(torch.tensor([1, 0]), None)
    assert isinstance(inputs, torch.Tensor)
    assert inputs.flatten().tolist() == [1.0, 4.0]
    assert labels.tolist() == [1, 0]
    assert part.labels.tolist() == [0, 1]
    with pytest.raises(IndexError):
        part.read(torch.tensor([2]), None)
