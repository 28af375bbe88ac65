"""Bytes of the safetensors file that a network is saved in, by formula."""

import json
from collections.abc import Mapping
from math import prod
from types import MappingProxyType

# What every file of weights says of itself; transformers asks for it.
FILE_METADATA: Mapping[str, str] = MappingProxyType({"format": "pt"})


def header_bytes(shapes: Mapping[str, tuple[int, ...]], widths: Mapping[str, int]) -> int:
    """Length of a file's head: eight bytes, then JSON, padded to a multiple of eight.

    Types are taken to have the longest name there is: a few bytes too many at most.

    Args:
        shapes: Of the tensors, by name.
        widths: Bytes of one element, by name; names without a width are not in the file.
    """
    head: dict[str, object] = {"__metadata__": dict(FILE_METADATA)}
    end = 0
    # Widest elements first, then by name: the order in which safetensors lays them out.
    for name in sorted(widths, key=lambda name: (-widths[name], name)):
        start, end = end, end + widths[name] * prod(shapes[name])
        head[name] = {"dtype": "BF16", "shape": list(shapes[name]), "data_offsets": [start, end]}
    return 8 + -(-len(json.dumps(head, separators=(",", ":")).encode()) // 8) * 8


def file_bytes(shapes: Mapping[str, tuple[int, ...]], widths: Mapping[str, int]) -> int:
    """Bytes of the whole file, at most: the head and the tensors."""
    data = sum(width * prod(shapes[name]) for name, width in widths.items())
    return header_bytes(shapes, widths) + data
