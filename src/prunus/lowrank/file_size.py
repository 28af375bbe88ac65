"""Bytes of the file that a factorized network is saved in."""

import json
from collections.abc import Sequence

from prunus.graph import Trace
from prunus.lowrank.blocks import Block, Ranks, elements


def file_bytes(trace: Trace, chosen: Sequence[tuple[Block, Ranks]]) -> int:
    """Bytes of the safetensors file, at most: types are taken to have the longest name there is.

    Args:
        trace: Of the network before.
        chosen: Blocks that are factorized, with their ranks.
    """
    stored = {name: (trace.shape.tensors[name], width) for name, width in trace.stored.items()}
    for block, ranks in chosen:
        like = trace.stored[f"{block.layers[0].path}.weight"]
        for name in block.dense_shapes:
            stored.pop(name, None)
        stored.update({name: (shape, like) for name, shape in block.shapes(ranks).items()})
    head, end = {}, 0
    # Widest elements first, then by name: the order in which safetensors lays them out.
    for name, (shape, width) in sorted(stored.items(), key=lambda item: (-item[1][1], item[0])):
        start, end = end, end + width * elements({name: shape})
        head[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [start, end]}
    return 8 + -(-len(json.dumps(head, separators=(",", ":")).encode()) // 8) * 8 + end
