"""A digest tells samples from others by every label, and by every input that lies in memory."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from prunus.data import (
    DatasetStore,
    Normalizer,
    SampleStore,
    TensorStore,
    TextTokenizer,
    TokenStore,
    tensors_digest,
)
from prunus.data.folder import FolderStore
from prunus.errors import DataError

N = 200  # more than the samples whose inputs are read where they are not in memory
EVERY = torch.arange(N)
LABELS = EVERY % 3
TOKENIZER = TextTokenizer.train_wordpiece(["a b c d"], 64)


def test_names_shapes_types_and_values_count() -> None:
    """The text before the bytes is the name, the shape and the type; names go by their order."""
    one, two = torch.tensor([[1, 2]], dtype=torch.uint8), torch.zeros(1)
    said = b"a[1]torch.float32" + bytes(4) + b"b[1, 2]torch.uint8" + bytes([1, 2])
    assert tensors_digest({"b": one, "a": two}) == hashlib.sha256(said).hexdigest()


def images(changed: int | None) -> TensorStore:
    pixels = torch.zeros(N, 1, 2, 2, dtype=torch.uint8)
    if changed is not None:
        pixels[changed, 0, 1, 1] = 1
    return TensorStore(pixels, LABELS, Normalizer((0.5,), (0.5,)), shift=0, flip=False)


def texts(changed: int | None) -> TokenStore:
    words = ["a b c"] * N
    if changed is not None:
        words[changed] = "a b d"
    return TokenStore(words, LABELS, TOKENIZER, 64)


@pytest.mark.parametrize("make", [images, texts])
@given(st.integers(0, N - 1))
def test_one_changed_input_in_memory_is_seen_where_it_is_asked_for(
    make: Callable[[int | None], SampleStore], changed: int
) -> None:
    plain, other = make(None), make(changed)
    assert plain.digest(EVERY) != other.digest(EVERY)
    without = EVERY[changed != EVERY]
    assert plain.digest(without) == other.digest(without)
    part = other.take(without)
    assert part.digest(torch.arange(N - 1)) == other.digest(without)


def labelled(labels: Tensor) -> list[SampleStore]:
    pixels = torch.zeros(N, 1, 2, 2, dtype=torch.uint8)
    norm = Normalizer((0.5,), (0.5,))
    numbers = labels.tolist()
    return [
        TensorStore(pixels, labels, norm, shift=0, flip=False),
        TokenStore(["a"] * N, labels, TOKENIZER, 64),
        DatasetStore([(torch.zeros(3), number) for number in numbers]),
        DatasetStore([(torch.zeros(3), number) for number in numbers]).take(EVERY),
    ]


@given(st.integers(0, N - 1))
def test_one_changed_label_is_seen_in_every_store(changed: int) -> None:
    labels = LABELS.clone()
    labels[changed] = (labels[changed] + 1) % 3
    for plain, other in zip(labelled(LABELS), labelled(labels), strict=True):
        assert plain.digest(EVERY) != other.digest(EVERY)


def test_the_normalization_counts() -> None:
    pixels = torch.zeros(N, 1, 2, 2, dtype=torch.uint8)
    stores = [
        TensorStore(pixels, LABELS, Normalizer((mean,), (0.5,)), shift=0, flip=False)
        for mean in (0.5, 0.4)
    ]
    assert stores[0].digest(EVERY) != stores[1].digest(EVERY)


def test_a_data_set_elsewhere_is_known_by_64_inputs_spread_evenly() -> None:
    read: list[int] = []

    class Counting:
        def __len__(self) -> int:
            return N

        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            read.append(index)
            return torch.full((3,), float(index)), index % 3

    store = DatasetStore(Counting(), labels=LABELS.tolist())
    read.clear()
    store.digest(EVERY)
    assert sorted(set(read)) == [k * N // 64 for k in range(64)]


def test_a_folder_is_known_by_names_and_sizes_of_all_files(tmp_path: Path) -> None:
    def written(odd: int | None = None, name: str = "000.png") -> FolderStore:
        files = [tmp_path / "ant" / f"{k:03d}.png" for k in range(N)]
        for k, file in enumerate(files):
            file.parent.mkdir(exist_ok=True)
            noise = np.random.default_rng(k).integers(
                0, 255, (4 + (k == odd), 4, 3), dtype=np.uint8
            )
            Image.fromarray(noise).save(file)
        files[0] = files[0].rename(files[0].with_name(name))
        return FolderStore(files, LABELS, Normalizer((0.5,) * 3, (0.5,) * 3), 4)

    plain = written().digest(EVERY)
    assert written().digest(EVERY) == plain  # however late it was written
    between = 1  # its content is not read: 64 of 200 are, every third or so
    assert between not in [k * N // 64 for k in range(64)]
    assert written(odd=between).digest(EVERY) != plain
    assert written(name="renamed.png").digest(EVERY) != plain
    store = written()
    (tmp_path / "ant" / "001.png").unlink()
    with pytest.raises(DataError, match=r"001\.png' is gone .*: put it back"):
        store.digest(EVERY)
