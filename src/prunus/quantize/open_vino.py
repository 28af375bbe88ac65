"""OpenVINO as an engine: float32, float16 and int8 by NNCF with calibration."""

import io
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from importlib import import_module
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn

from prunus.artifact import export
from prunus.artifact.export import root_cause
from prunus.artifact.place import unwritable
from prunus.errors import InputError
from prunus.extras import require_extra
from prunus.quantize.fixed_shape import requests, require_filled, require_mask
from prunus.quantize.job import (
    Job,
    Written,
    excluded_nodes,
    fits_float16,
    given,
    logits_alone,
    require_in_float16,
    table_names,
)
from prunus.quantize.onnx_reads import compute_what_is_read
from prunus.quantize.session import Deployed, Session

MODEL_FILE, WEIGHTS_FILE = "model.xml", "model.bin"
_WORTH = 512  # elements of a constant that a node to cast it is smaller than
_EXTRA = "openvino"
_RECURRENT = ("LSTMSequence", "LSTMCell", "GRUSequence", "GRUCell", "RNNSequence", "RNNCell")
_COMPUTE = ("MatMul", "Convolution", "GroupConvolution", *_RECURRENT)
_ATTENTION = ("Softmax", "ScaledDotProductAttention")
_NNCF_SILENT = "NNCF_CI"


def write(job: Job, folder: Path) -> Written:
    """Export to ONNX, read that, quantize by NNCF, write OpenVINO's own form.

    Raises:
        InputError: The network cannot be exported, read or quantized.
        OSError: The disk takes no more.
    """
    openvino = require_extra("openvino", _EXTRA)
    whole = folder / "float.onnx"
    with logits_alone(job.network) as network:
        export(network, whole, job.inputs, dynamic_length=job.dynamic_length)
    compute_what_is_read(whole)
    deployment = job.deployment
    if deployment.weights == "float16":
        require_in_float16(job.network, "weights=float32")
    try:
        onnx = require_extra("onnx", "onnx")
        exported = onnx.load(str(whole), load_external_data=False)
        excluded = excluded_nodes(exported, job.network, deployment)
        model = openvino.Core().read_model(str(whole))
        read = [node.get_any_name() for node in model.inputs if node.get_target_inputs()]
        require_mask(read, deployment.shape)
        require_filled(job.network, job.inputs, deployment.shape)
        with _quiet():
            if not deployment.is_float32 and deployment.weights != "float16":
                model = _quantized(job, model, excluded)
        if deployment.rest == "float16":
            _halve_(model, openvino)
        _save(model, folder, halves=deployment.weights == "float16")
    except (InputError, OSError):  # the latter of a full disk
        raise
    except Exception as error:  # its errors have no common base
        raise InputError(
            f"engine=openvino cannot take this network: {root_cause(error)}; use "
            "engine=onnxruntime, or exclude layers"
        ) from error
    finally:
        whole.unlink(missing_ok=True)
        whole.with_name(whole.name + ".data").unlink(missing_ok=True)
    return Written((MODEL_FILE, WEIGHTS_FILE), _notes(job))


def _save(model: Any, folder: Path, *, halves: bool) -> None:
    """Write OpenVINO's own form.

    Raises:
        UnwritableError: The disk is full, which OpenVINO tells of in words of its own.
    """
    openvino = require_extra("openvino", _EXTRA)
    try:
        openvino.save_model(model, str(folder / MODEL_FILE), compress_to_fp16=halves)
    except Exception as error:  # its errors have no common base
        raise unwritable(folder, error) from error


def _quantized(job: Job, model: Any, excluded: list[str]) -> Any:
    """int8 layers by calibrated ranges, int8 tables as compressed weights."""
    nncf = _nncf()
    deployment = job.deployment
    if deployment.weights == "int8":
        names = [node.get_any_name() for node in model.inputs]
        feeds = [given(batch, names) for batch in job.calibration]
        # Its scheme for attention costs other networks accuracy: an LSTM's logits fourfold.
        attends = any(op.get_type_name() in _ATTENTION for op in model.get_ops())
        kind = {"model_type": nncf.ModelType.TRANSFORMER} if attends else {}
        model = nncf.quantize(
            model,
            nncf.Dataset(feeds),
            subset_size=len(feeds),
            ignored_scope=_ignored(nncf, model, excluded),
            # 7 bits for weights: on CPUs without VNNI, sums of two products of 8 bits saturate.
            advanced_parameters=nncf.AdvancedQuantizationParameters(
                overflow_fix=nncf.OverflowFix.ENABLE
            ),
            **kind,
        )
    if deployment.embeddings == "int8":
        # After the rest: a layer that shares a compressed table would multiply its 8 bits, which saturate
        # as above, where now it has 7 of its own.
        scope = nncf.IgnoredScope(
            types=list(_COMPUTE), names=_other_tables(job, model), validate=False
        )
        mode = nncf.CompressWeightsMode.INT8_SYM
        model = nncf.compress_weights(model, mode=mode, ignored_scope=scope)
    return model


def _halve_(model: Any, openvino: Any) -> None:
    """Store large float constants as float16, cast where they are read.

    ``compress_to_fp16`` would do so, but leaves models alone that NNCF has quantized. What belongs to
    quantized tensors, their scales and ranges, stays.
    """
    opset = import_module("openvino.opset13")
    for constant in [op for op in model.get_ops() if op.get_type_name() == "Constant"]:
        if constant.get_element_type() != openvino.Type.f32 or constant.data.size < _WORTH:
            continue
        readers = list(constant.output(0).get_target_inputs())
        if any(_dequantizes(reader.get_node()) for reader in readers):
            continue
        if fits_float16(torch.from_numpy(constant.data.copy())):
            half = opset.constant(
                constant.data.astype(np.float16), name=constant.get_friendly_name()
            )
            cast = opset.convert(half, "f32")
            for reader in readers:
                reader.replace_source_output(cast.output(0))


def _dequantizes(node: Any) -> bool:
    """Whether a node makes integers float again, or rounds to them."""
    sources = [node.input(i).get_source_output().get_node() for i in range(node.get_input_size())]
    integers = ("i8", "u8", "i4", "u4")
    return node.get_type_name() == "FakeQuantize" or any(
        source.get_type_name() == "Convert"
        and source.input(0).get_element_type().get_type_name() in integers
        for source in sources
    )


def _nncf() -> Any:
    """NNCF, told before it is imported to send no usage statistics."""
    before = os.environ.get(_NNCF_SILENT)
    os.environ[_NNCF_SILENT] = "1"
    try:
        return require_extra("nncf", _EXTRA)
    finally:
        if before is None:
            del os.environ[_NNCF_SILENT]
        else:
            os.environ[_NNCF_SILENT] = before


def _other_tables(job: Job, model: Any) -> list[str]:
    """Look-ups of other tables than words."""
    words = frozenset().union(*table_names(job.network, job.deployment).values())
    return [
        op.get_friendly_name()
        for op in model.get_ops()
        if op.get_type_name() == "Gather"
        and op.input(0).get_source_output().get_node().get_friendly_name() not in words
    ]


def _ignored(nncf: Any, model: Any, excluded: list[str]) -> Any:
    """Look-ups and recurrent layers stay as they are; so do excluded layers.

    NNCF does not see the weights of recurrent layers, whose gates OpenVINO puts in another order:
    it would round their inputs for nothing.
    """
    # OpenVINO keeps the names of ONNX's nodes, and splits off biases.
    names = {name + part for name in excluded for part in ("", "/WithoutBiases")}
    found = [n for n in (op.get_friendly_name() for op in model.get_ops()) if n in names]
    return nncf.IgnoredScope(types=["Gather", *_RECURRENT], names=found, validate=False)


def _notes(job: Job) -> tuple[str, ...]:
    if job.deployment.weights != "int8":
        return ()
    notes = []
    if job.deployment.calibration == "dynamic":
        notes.append("openvino: ranges of activations are calibrated; it has no dynamic int8")
    if any(isinstance(module, nn.RNNBase) for module in job.network.modules()):
        notes.append("openvino: recurrent layers stay in float32, their weights are not found")
    return tuple(notes)


def _fixed(model: Any, shape: tuple[int, ...]) -> dict[str, list[int]]:
    """Shapes of all inputs, whose free dimensions are the samples and, of texts, the length."""
    found = {}
    for node in model.inputs:
        sizes = list(node.get_partial_shape())
        found[node.get_any_name()] = [
            shape[i] if size.is_dynamic else size.get_length() for i, size in enumerate(sizes)
        ]
    return found


@contextmanager
def _quiet() -> Iterator[None]:
    """Without NNCF's progress bars and notes."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(disabled)


@final
class OpenVinoSession(Session):
    """A compiled model on the CPU, tuned for the time of one request."""

    def __init__(self, folder: Path, record: Deployed, threads: int | None) -> None:
        super().__init__(folder, record)
        openvino = require_extra("openvino", _EXTRA)
        settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"}
        if record.deployment.weights != "float16":
            # Else it computes what is not int8 in bfloat16 where the processor can.
            settings["INFERENCE_PRECISION_HINT"] = "f32"
        if threads is not None:
            settings["INFERENCE_NUM_THREADS"] = threads
        try:
            core = openvino.Core()
            model = core.read_model(str(folder / MODEL_FILE))
            self._inputs = [node.get_any_name() for node in model.inputs]
            if record.deployment.shape is not None:
                model.reshape(_fixed(model, record.deployment.shape))
            self._request = core.compile_model(model, "CPU", settings).create_infer_request()
        except Exception as error:  # its errors have no common base
            raise InputError(
                f"engine=openvino cannot load '{folder}': {root_cause(error)}; deploy it again"
            ) from error

    def _names(self) -> list[str]:
        return self._inputs

    def _run(self, feed: dict[str, Tensor]) -> Tensor:
        shape = self.record.deployment.shape
        if shape is None:
            return self._infer(feed)
        read = {name: feed[name] for name in self._inputs}
        filled = requests(read, shape, self.record.padding)
        return torch.cat([self._infer(request)[:count] for request, count in filled])

    def _infer(self, feed: dict[str, Tensor]) -> Tensor:
        arrays = {name: np.ascontiguousarray(feed[name].cpu().numpy()) for name in self._inputs}
        self._request.infer(arrays)
        return torch.from_numpy(np.array(self._request.get_output_tensor(0).data))
