"""What int8 products of the encoder's layers take on this processor, for all tokens and with nothing else.

No engine needs all of them: the last layer's output projection and feed-forward part are computed for
the token that is read alone, where an engine looks for that (``onnx_reads``). That is three quarters of a
layer's products, a sixteenth of twelve layers'.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import files
import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper
from sizes import LENGTH, REPEATS, WARMUP, inputs_of, subjects
from torch import Tensor, nn

from prunus.meter import measure_latencies
from prunus.records import Environment

NETWORKS = ("dense", "pruning by half")


def measure(file: Path) -> None:
    """Bare products of bytes in ONNX Runtime, by turns with the dense network in PyTorch's float32.

    Nothing is measured where the record is there.
    """
    if file.exists():
        return
    threads = torch.get_num_threads()
    made = {name: subjects()[name]().network for name in NETWORKS}
    shapes = {name: _shapes(network) for name, network in made.items()}
    named: dict[str, Any] = {"float32": (made["dense"], inputs_of(made["dense"], 1))}
    for name in NETWORKS:
        named[f"products of {name}"] = (_products(shapes[name], threads), _bytes(shapes[name]))
    engines = {name: "torch" if name == "float32" else "onnxruntime" for name in named}
    times = measure_latencies(
        named, batch=1, warmup=WARMUP, repeats=REPEATS, threads=threads, engine=engines
    )
    record = {
        "sequence": LENGTH,
        "multiply_adds": {n: LENGTH * sum(k * m for k, m in s) for n, s in shapes.items()},
        "latencies": {name: found.model_dump(mode="json") for name, found in times.items()},
        "environment": Environment.capture(threads).model_dump(mode="json"),
    }
    files.write(file, record)


def _shapes(network: nn.Module) -> list[tuple[int, int]]:
    """Inputs and outputs of every linear layer of the encoder."""
    return [
        (module.in_features, module.out_features)
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear) and ".encoder." in name
    ]


def _bytes(shapes: list[tuple[int, int]]) -> dict[str, Tensor]:
    """Activations for every width that is read."""
    generator = torch.Generator().manual_seed(0)
    widths = sorted({read for read, _ in shapes})
    size = {f"x{w}": (LENGTH, w) for w in widths}
    return {
        name: torch.randint(256, shape, dtype=torch.uint8, generator=generator)
        for name, shape in size.items()
    }


def _products(shapes: list[tuple[int, int]], threads: int) -> Callable[[Any], Tensor]:
    """A session of products alone, weights of 7 bits packed beforehand."""
    draw = np.random.default_rng(0)
    nodes, constants, outputs = [], [], []
    for number, (read, made) in enumerate(shapes):
        weight = draw.integers(-64, 64, (read, made), dtype=np.int8)
        constants.append(numpy_helper.from_array(weight, f"w{number}"))
        names = [f"x{read}", f"w{number}", "zero_x", "zero_w"]
        nodes.append(helper.make_node("MatMulInteger", names, [f"y{number}"]))
        outputs.append(
            helper.make_tensor_value_info(f"y{number}", TensorProto.INT32, [LENGTH, made])
        )
    constants.append(numpy_helper.from_array(np.array(128, np.uint8), "zero_x"))
    constants.append(numpy_helper.from_array(np.array(0, np.int8), "zero_w"))
    given = [
        helper.make_tensor_value_info(name, TensorProto.UINT8, list(value.shape))
        for name, value in _bytes(shapes).items()
    ]
    graph = helper.make_graph(nodes, "products", given, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )

    # Results stay where they are: fresh memory for all of them would take as long as the products.
    binding = session.io_binding()
    for name, value in _bytes(shapes).items():
        binding.bind_cpu_input(name, value.numpy())
    results = {f"y{n}": np.empty((LENGTH, made), np.int32) for n, (_, made) in enumerate(shapes)}
    for name, place in results.items():
        held = (name, "cpu", 0, np.int32, place.shape, place.ctypes.data)
        binding.bind_output(*held)

    def run(_: dict[str, Tensor]) -> Tensor:
        session.run_with_iobinding(binding)
        return torch.from_numpy(results["y0"])

    return run
