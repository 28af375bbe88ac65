"""ONNX Runtime as an engine: float32, dynamic int8, and static int8 with calibration."""

import errno
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn

from prunus.artifact import export
from prunus.artifact.export import root_cause
from prunus.data import Inputs
from prunus.errors import InputError
from prunus.extras import require_extra
from prunus.quantize.by_row import halves_in_full
from prunus.quantize.job import (
    Job,
    Written,
    excluded_nodes,
    fits_float16,
    given,
    int8_layers,
    logits_alone,
    nodes_of,
    table_names,
)
from prunus.quantize.onnx_reads import compute_what_is_read
from prunus.quantize.onnx_shared import turn_shared_
from prunus.quantize.onnx_tables import SCALE, quantize_tables_
from prunus.quantize.onnx_tokens import scale_by_token_
from prunus.quantize.outliers import outlier_layers
from prunus.quantize.session import Deployed, Session

MODEL_FILE = "model.onnx"
_WORTH = 64  # elements of a constant that a node to cast it is smaller than
# A scale for each output. 7 bits: on CPUs without VNNI, sums of two products of 8 bits saturate.
_WEIGHTS = {"per_channel": True, "reduce_range": True}
LEVELS = 64
"""Of those 7 bits, on either side of zero."""
_LINEAR = ("MatMul", "Gemm", "Attention", "LSTM")
_CONVOLUTION = ("Conv",)


def write(job: Job, folder: Path) -> Written:
    """Export to ONNX, then quantize the file.

    Raises:
        InputError: The network cannot be exported or quantized.
        OSError: The disk takes no more.
    """
    plain = job.deployment.is_float32
    whole = folder / (MODEL_FILE if plain else "float.onnx")
    with logits_alone(job.network) as network:
        export(network, whole, job.inputs, dynamic_length=job.dynamic_length)
    compute_what_is_read(whole)
    notes: tuple[str, ...] = ()
    if plain:
        _finish(whole, halves=False)
    else:
        with _quiet():
            try:
                notes = _quantize(job, whole, folder / MODEL_FILE)
                _finish(folder / MODEL_FILE, halves=job.deployment.rest == "float16")
            except (InputError, OSError):  # the latter of a full disk
                raise
            except _unreadable() as error:  # onnx's own writer of shapes tells of no full disk
                said = "a file was cut short, as on a full disk"
                raise OSError(errno.ENOSPC, said) from error
            except Exception as error:  # its errors have no common base
                raise InputError(
                    f"engine=onnxruntime cannot quantize this network: {root_cause(error)}; use "
                    "engine=openvino, or exclude layers"
                ) from error
        whole.unlink()
        whole.with_name(whole.name + ".data").unlink(missing_ok=True)
    data = MODEL_FILE + ".data"
    files = (MODEL_FILE, data) if (folder / data).exists() else (MODEL_FILE,)
    return Written(files, notes)


def _unreadable() -> type[Exception]:
    """The error of files that were cut short."""
    kind: type[Exception] = require_extra("google.protobuf.message", "onnx").DecodeError
    return kind


def _make_ready_(whole: Path) -> None:
    """Change what onnxruntime before 1.32 stumbles over where it turns the weights of Gemm nodes.

    The shapes that the exporter noted of weights and inner values, which are inferred anew; and
    weights that something else reads.
    """
    onnx = require_extra("onnx", "onnx")
    model = onnx.load(str(whole), load_external_data=False)
    del model.graph.value_info[:]
    turn_shared_(model, whole.parent)
    onnx.save(model, str(whole))


def _quantize(job: Job, whole: Path, target: Path) -> tuple[str, ...]:
    onnx = require_extra("onnx", "onnx")
    deployment, notes = job.deployment, _notes(job)
    if deployment.weights == "int8":
        _make_ready_(whole)
        model = onnx.load(str(whole))
        static = deployment.calibration == "static"
        notes += (_static if static else _dynamic)(job, model, whole, target)
    if deployment.embeddings == "int8":
        model = onnx.load(str(target if deployment.weights == "int8" else whole))
        notes += _tables(job, model)
        onnx.save(model, str(target))
    return notes


def _tables(job: Job, model: Any) -> tuple[str, ...]:
    """Round look-ups of words by row; notes on tables that are not, or not everywhere."""
    deployment = job.deployment
    tables = table_names(job.network, deployment)
    every = frozenset[str]().union(*tables.values())
    written = quantize_tables_(model, every, halves=deployment.rest == "float16")
    both = (
        f"'{name}' is a layer in float32, too: the file holds both forms of it"
        for name, is_read in written.items()
        if is_read
    )
    left = (
        f"table '{path}' stays in float32: the exported network looks no row up in it"
        for path, names in tables.items()
        if names.isdisjoint(written)
    )
    return tuple(f"onnxruntime: {note}" for note in (*both, *left))


def _static(job: Job, model: Any, whole: Path, target: Path) -> tuple[str, ...]:
    """Layers with the ranges of their inputs; those that read outliers with a scale for each token."""
    quantization = require_extra("onnxruntime.quantization", "onnx")
    by_token = _scale_outliers_by_token_(job, model, whole)
    quantization.quantize_static(
        str(whole),
        str(target),
        _Reader(job.calibration, [node.name for node in model.graph.input]),
        quant_format=quantization.QuantFormat.QDQ,
        op_types_to_quantize=["MatMul", "Gemm", *_CONVOLUTION],
        nodes_to_exclude=[*_left_out(job, model), *_without_weights(model)],
        **_WEIGHTS,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
        # Their sums leave the kernels in float32: what reads them next computes in it. Those of a
        # convolution do not.
        extra_options={"OpTypesToExcludeOutputQuantization": ["MatMul", "Gemm"]},
    )
    return by_token


def _without_weights(model: Any) -> list[str]:
    """Names of products of two computed matrices, as in attention: in float32, as with dynamic ranges."""
    graph = model.graph
    constants = {one.name for one in graph.initializer}
    for node in graph.node:  # a weight that is turned or cast first is one as well
        if node.input and all(name in constants for name in node.input if name):
            constants.update(node.output)
    return [
        node.name
        for node in graph.node
        if node.op_type == "MatMul" and constants.isdisjoint(node.input)
    ]


def _dynamic(job: Job, model: Any, whole: Path, target: Path) -> tuple[str, ...]:
    """Layers whose inputs get their scale at run time: one for all, or one for each token."""
    quantization = require_extra("onnxruntime.quantization", "onnx")
    onnx = require_extra("onnx", "onnx")
    deployment = job.deployment
    quantization.quantize_dynamic(
        str(whole),
        str(target),
        # Dynamic int8 of a convolution is slower than float32; with known ranges it is faster.
        op_types_to_quantize=list(_LINEAR),
        nodes_to_exclude=_left_out(job, model),
        **_WEIGHTS,
        weight_type=quantization.QuantType.QInt8,
        extra_options={"MatMulConstBOnly": True},
    )
    if deployment.activations == "tensor":
        return ()
    products: set[str] | None = None
    by_token: tuple[str, ...] = ()
    if deployment.activations == "auto":
        layers = outlier_layers(job.network, deployment, job.calibration)
        if not layers:
            return ()
        products = {f"{name}_quant" for name in _products(model, layers)}
        by_token = _told(job, layers, "the scale of the largest")
    quantized = onnx.load(str(target))
    scale_by_token_(quantized, products)
    onnx.save(quantized, str(target))
    return by_token


def _products(model: Any, layers: list[str]) -> list[str]:
    """Names of layers' matrix products, also as the library names them once it splits biases off."""
    names = nodes_of(model, set(layers).__contains__)
    return [*names, *(f"{name}_MatMul" for name in names)]


def _told(job: Job, layers: list[str], otherwise: str) -> tuple[str, ...]:
    every = len(int8_layers(job.network, job.deployment))
    told = (
        f"{len(layers)} of {every} linear layers read outliers, for which {otherwise} is too coarse"
    )
    return (f"onnxruntime: {told}: they get a scale for each token at run time",)


def _scale_outliers_by_token_(job: Job, model: Any, whole: Path) -> tuple[str, ...]:
    """Make layers dynamic that no fixed range suits, in the file; a note where there are any."""
    layers = outlier_layers(job.network, job.deployment, job.calibration)
    if not layers:
        return ()
    quantization = require_extra("onnxruntime.quantization", "onnx")
    onnx = require_extra("onnx", "onnx")
    quantization.quantize_dynamic(
        str(whole),
        str(whole),
        op_types_to_quantize=["MatMul", "Gemm"],
        nodes_to_quantize=_products(model, layers),
        **_WEIGHTS,
        weight_type=quantization.QuantType.QInt8,
        extra_options={"MatMulConstBOnly": True},
    )
    mixed = onnx.load(str(whole))
    scale_by_token_(mixed)
    onnx.save(mixed, str(whole))
    return _told(job, layers, "a fixed range")


def _finish(file: Path, *, halves: bool) -> None:
    """Leave out what only the exporter's reader needs; store large float constants as float16.

    Those are cast where they are read, once, when the engine loads them. What rules that fuse kernels
    look for stays, and so do scales of which one is too small for all of float16's digits.
    """
    if file.with_name(file.name + ".data").exists():
        return  # larger than a file of this form may be
    onnx = require_extra("onnx", "onnx")
    model = onnx.load(str(file))
    graph = model.graph
    for node in graph.node:
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
    del graph.value_info[:]  # shapes between nodes, which the engine finds itself
    scales = {name for node in graph.node if "Linear" in node.op_type for name in node.input}
    casts = []
    for constant in graph.initializer if halves else ():
        values = torch.from_numpy(onnx.numpy_helper.to_array(constant).copy())
        name = constant.name
        kept = name in scales or name.endswith(SCALE)
        if kept or values.numel() < _WORTH or not fits_float16(values):
            continue
        if name.endswith("_scale") and not halves_in_full(values):
            continue
        half = onnx.numpy_helper.from_array(values.half().numpy(), f"{name}.float16")
        constant.CopyFrom(half)
        cast = onnx.helper.make_node("Cast", [half.name], [name], to=onnx.TensorProto.FLOAT)
        casts.append(cast)
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    onnx.save(model, str(file))


def _left_out(job: Job, model: Any) -> list[str]:
    """Nodes of excluded layers, which stay in float."""
    excluded = excluded_nodes(model, job.network, job.deployment)
    # The library splits biases off, under another name.
    return [*excluded, *(f"{name}_MatMul" for name in excluded)]


def _notes(job: Job) -> tuple[str, ...]:
    if job.deployment.weights != "int8":
        return ()
    kinds = tuple(job.network.modules())
    notes = []
    if any(isinstance(module, nn.modules.conv._ConvTransposeNd) for module in kinds):
        notes.append("onnxruntime: transposed convolutions stay in float32")
    if job.deployment.calibration == "static":
        if any(isinstance(module, nn.RNNBase) for module in kinds):
            notes.append("onnxruntime: recurrent layers stay in float32 with static ranges")
        return tuple(notes)
    if any(isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d) for module in kinds):
        note = "convolutions stay in float32 with dynamic ranges, which would make them slower"
        notes.append(f"onnxruntime: {note}; calibration=static quantizes them")
    others = {
        type(m).__name__ for m in kinds if isinstance(m, nn.RNNBase) and not isinstance(m, nn.LSTM)
    }
    if others:
        names = ", ".join(sorted(others))
        notes.append(f"onnxruntime: {names} stay in float32: of recurrent layers LSTMs have int8")
    return tuple(notes)


class _Reader:
    """Batches as ONNX Runtime's calibration reads them."""

    def __init__(self, batches: tuple[Inputs, ...], names: list[str]) -> None:
        self._feeds: Iterator[dict[str, Any]] = iter([given(batch, names) for batch in batches])

    def get_next(self) -> dict[str, Any] | None:
        """The next batch, or None."""
        return next(self._feeds, None)

    def set_range(self, start_index: int, end_index: int) -> None:
        """Part of the reader's contract; batches are few enough to be read in one go."""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self._feeds


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the library's advice on pre-processing."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


@final
class OnnxSession(Session):
    """An ONNX Runtime session on the CPU."""

    def __init__(self, folder: Path, record: Deployed, threads: int | None) -> None:
        super().__init__(folder, record)
        runtime = require_extra("onnxruntime", "onnx")
        options = runtime.SessionOptions()
        options.log_severity_level = 3  # errors alone
        if threads is not None:
            options.intra_op_num_threads = threads
            options.inter_op_num_threads = 1
        try:
            self._session = runtime.InferenceSession(
                str(folder / MODEL_FILE), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # its errors have no common base
            raise InputError(
                f"engine=onnxruntime cannot load '{folder}': {root_cause(error)}; deploy it again"
            ) from error
        self._inputs = [node.name for node in self._session.get_inputs()]

    def _names(self) -> list[str]:
        return self._inputs

    def _run(self, feed: dict[str, Tensor]) -> Tensor:
        arrays = {name: np.ascontiguousarray(feed[name].cpu().numpy()) for name in self._inputs}
        return torch.from_numpy(self._session.run(None, arrays)[0])
