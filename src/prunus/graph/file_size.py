"""Bytes of the safetensors file that a network is saved in, by formula."""

import json
from collections.abc import Mapping
from math import prod
from types import MappingProxyType

# What every file of weights says of itself; transformers asks for it.
FILE_METADATA: Mapping[str, str] = MappingProxyType({"format": "pt"})


def header_bytes(
    shapes: Mapping[str, tuple[int, ...]],
    widths: Mapping[str, int],
    types: Mapping[str, tuple[int, str]] | None = None,
) -> int:
    """Length of a file's head: eight bytes, then JSON, padded to a multiple of eight.

    Args:
        shapes: Of the tensors, by name.
        widths: Bytes of one element, by name; names without a width are not in the file.
        types: Place in the file's order of types, and name of the type, by name of the tensor.
            Without them types are taken to have the longest name there is, and to lie by width: a few
            bytes too many at most.
    """
    head: dict[str, object] = {"__metadata__": dict(FILE_METADATA)}
    laid = {name: (-width, "BF16") for name, width in widths.items()} if types is None else types
    end = 0
    # By type, then by name: the order in which safetensors lays them out.
    for name in sorted(widths, key=lambda name: (laid[name][0], name)):
        start, end = end, end + widths[name] * prod(shapes[name])
        head[name] = {
            "dtype": laid[name][1],
            "shape": list(shapes[name]),
            "data_offsets": [start, end],
        }
    text = json.dumps(head, separators=(",", ":"), ensure_ascii=False)
    return 8 + -(-len(text.encode()) // 8) * 8


def file_bytes(
    shapes: Mapping[str, tuple[int, ...]],
    widths: Mapping[str, int],
    types: Mapping[str, tuple[int, str]] | None = None,
) -> int:
    """Bytes of the whole file, at most, or with ``types`` exactly: the head and the tensors."""
    data = sum(width * prod(shapes[name]) for name, width in widths.items())
    return header_bytes(shapes, widths, types) + data
