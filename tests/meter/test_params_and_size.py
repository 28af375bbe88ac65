"""Parameters and bytes: each stored value once."""

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from prunus.errors import InputError
from prunus.meter import (
    count_nonzero_params,
    count_params,
    file_size_bytes,
    format_bytes,
    measure_cost,
    path_size_bytes,
)


def tied() -> tuple[nn.Linear, nn.Linear]:
    first, second = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
    nn.init.ones_(first.weight)
    second.weight = first.weight
    return first, second


def test_params_by_formula_without_buffers() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 5))
    assert count_params(network) == (8 * 3 * 9 + 8) + (8 + 8) + (8 * 5 + 5)


def test_tied_params_count_once() -> None:
    first, second = tied()
    assert count_params(nn.Sequential(first, second)) == 16
    # Another parameter object on the same memory is tied too; on meta no two are by accident.
    second.weight = nn.Parameter(first.weight.data)
    assert count_params(nn.Sequential(first, second)) == 16
    with torch.device("meta"):
        assert count_params(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))) == 12


def test_a_matrix_and_its_transpose_on_one_memory_count_once() -> None:
    coder, decoder = nn.Linear(3, 4, bias=False), nn.Linear(4, 3, bias=False)
    decoder.weight = nn.Parameter(coder.weight.t())
    assert count_params(nn.Sequential(coder, decoder)) == 12
    flat = nn.Module()
    flat.weight = nn.Parameter(coder.weight.detach().view(-1))
    assert count_params(nn.Sequential(coder, flat)) == 12
    # Two halves of one matrix are no copies of each other.
    halves = nn.Module()
    halves.first = nn.Parameter(coder.weight.detach()[:2])
    halves.second = nn.Parameter(coder.weight.detach()[2:])
    assert count_params(halves) == 12


def test_nonzero_params() -> None:
    first, second = tied()
    with torch.no_grad():
        first.weight[0, :3] = 0
        first.weight[1, 0] = -0.0
    assert count_nonzero_params(nn.Sequential(first, second)) == 12
    with pytest.raises(InputError, match="meta device"):
        count_nonzero_params(nn.Linear(2, 2, device="meta"))


def test_file_size_is_that_of_the_written_file(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file(network.state_dict(), path, metadata={"format": "pt"})
    assert file_size_bytes(network) == path.stat().st_size == path_size_bytes(path)
    half = nn.Linear(1000, 100, bias=False).half()
    assert 200_000 < file_size_bytes(half) < 200_200


TYPES = [
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
    *(torch.float8_e4m3fn, torch.float8_e5m2),
]


@given(
    st.lists(
        st.tuples(
            st.text("abé_", min_size=1, max_size=3),
            st.sampled_from(TYPES),
            st.lists(st.integers(0, 12), max_size=3),
        ),
        max_size=6,
        unique_by=lambda one: one[0],
    )
)
def test_file_size_is_to_the_byte_that_of_any_types_and_shapes(
    tensors: list[tuple[str, torch.dtype, list[int]]],
) -> None:
    network = nn.Module()
    for name, dtype, shape in tensors:
        network.register_buffer(name, torch.zeros(shape).to(dtype))
    raw = safetensors.torch.save(network.state_dict(), metadata={"format": "pt"})
    assert file_size_bytes(network) == len(raw)


def test_tied_tensors_are_stored_once() -> None:
    first, second = tied()
    assert file_size_bytes(nn.Sequential(first, second)) == file_size_bytes(nn.Sequential(first))


def test_size_refuses_what_a_file_cannot_hold() -> None:
    class Extra(nn.Linear):
        def get_extra_state(self) -> Any:
            return {"scale": 1}

        def set_extra_state(self, state: Any) -> None:
            return

    with pytest.raises(InputError, match=r"'_extra_state' of type dict"):
        file_size_bytes(Extra(2, 2))
    with pytest.raises(InputError, match=r"'weight' is on the meta device"):
        file_size_bytes(nn.Linear(2, 2, device="meta"))


def test_size_of_a_folder_is_the_sum_of_its_files(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "a").write_bytes(b"x" * 10)
    (tmp_path / "deep" / "b").write_bytes(b"x" * 32)
    assert path_size_bytes(tmp_path) == 42
    with pytest.raises(InputError, match="does not exist"):
        path_size_bytes(tmp_path / "none")


def test_a_megabyte_has_a_million_bytes() -> None:
    assert format_bytes(1_500_000) == "1.50 MB"


def test_cost_holds_every_measure() -> None:
    layer = nn.Conv2d(2, 4, 3, bias=False)
    network = nn.Sequential(layer, nn.Flatten(), nn.Linear(36, 5))
    for parameter in network.parameters():
        nn.init.ones_(parameter)
    with torch.no_grad():
        layer.weight[:, 0] = 0
    cost = measure_cost(network, torch.zeros(1, 2, 5, 5))
    convolution, linear = 9 * 4 * 2 * 9, 36 * 5
    assert cost.macs == convolution + linear
    assert cost.effective_macs == convolution // 2 + linear
    assert cost.params == 4 * 2 * 9 + 36 * 5 + 5
    assert cost.nonzero_params == 4 * 9 + 36 * 5 + 5
    assert cost.size_bytes == file_size_bytes(network)
    assert cost.uncounted == ()
    assert measure_cost(network, torch.zeros(1, 2, 5, 5), size=False).size_bytes is None
