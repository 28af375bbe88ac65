"""OpenVINO as an engine: float32, float16 and int8 by NNCF with calibration."""

import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from prunus.artifact import export
from prunus.artifact.export import first_line
from prunus.data import Inputs
from prunus.errors import InputError
from prunus.extras import require_extra
from prunus.quantize.job import Job, Written
from prunus.quantize.session import Deployed, Session

MODEL_FILE, WEIGHTS_FILE = "model.xml", "model.bin"
_EXTRA = "openvino"
_COMPUTE = ("MatMul", "Convolution", "GroupConvolution", "LSTMSequence", "LSTMCell")


def write(job: Job, folder: Path) -> Written:
    """Export to ONNX, read that, quantize by NNCF, write OpenVINO's own form.

    Raises:
        InputError: The network cannot be exported, read or quantized.
    """
    openvino = require_extra("openvino", _EXTRA)
    whole = folder / "float.onnx"
    export(job.network, whole, job.inputs, dynamic_length=job.dynamic_length)
    deployment = job.deployment
    try:
        model = openvino.Core().read_model(str(whole))
        with _quiet():
            if not deployment.is_float32 and deployment.weights != "float16":
                model = _quantized(job, model)
        openvino.save_model(
            model, str(folder / MODEL_FILE), compress_to_fp16=deployment.weights == "float16"
        )
    except InputError:
        raise
    except Exception as error:  # its errors have no common base
        raise InputError(
            f"engine=openvino cannot take this network: {first_line(error)}; use "
            "engine=onnxruntime, or exclude layers"
        ) from error
    finally:
        whole.unlink(missing_ok=True)
        whole.with_name(whole.name + ".data").unlink(missing_ok=True)
    return Written((MODEL_FILE, WEIGHTS_FILE), _notes(job))


def _quantized(job: Job, model: Any) -> Any:
    """int8 layers by calibrated ranges, int8 tables as compressed weights."""
    nncf = require_extra("nncf", _EXTRA)
    deployment = job.deployment
    if deployment.embeddings == "int8":
        # Before the rest: quantization leaves tables alone that are compressed already.
        scope = nncf.IgnoredScope(types=list(_COMPUTE), validate=False)
        mode = nncf.CompressWeightsMode.INT8_SYM
        model = nncf.compress_weights(model, mode=mode, ignored_scope=scope)
    if deployment.weights == "int8":
        if not job.calibration:
            raise InputError("calibration is missing: OpenVINO's int8 is measured on real batches")
        names = [node.get_any_name() for node in model.inputs]
        feeds = [_feed(batch, names) for batch in job.calibration]
        kind = {"model_type": nncf.ModelType.TRANSFORMER} if job.dynamic_length else {}
        model = nncf.quantize(
            model,
            nncf.Dataset(feeds),
            subset_size=len(feeds),
            ignored_scope=_ignored(job, nncf, model),
            **kind,
        )
    return model


def _ignored(job: Job, nncf: Any, model: Any) -> Any:
    """Look-ups stay as they are; so do excluded layers."""
    patterns = [
        name
        for name in (node.get_friendly_name() for node in model.get_ops())
        if any(job.deployment.excludes(part) for part in (name, name.strip("/").replace("/", ".")))
    ]
    return nncf.IgnoredScope(types=["Gather"], names=patterns, validate=False)


def _notes(job: Job) -> tuple[str, ...]:
    if job.deployment.weights == "int8" and job.deployment.calibration == "dynamic":
        return ("openvino: ranges of activations are calibrated; it has no dynamic int8",)
    return ()


def _feed(batch: Inputs, names: list[str]) -> dict[str, Any]:
    if isinstance(batch, Tensor):
        return {names[0]: batch.numpy()}
    return {name: tensor.numpy() for name, tensor in batch.items()}


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
        if record.deployment.weights == "float32":
            settings["INFERENCE_PRECISION_HINT"] = "f32"
        if threads is not None:
            settings["INFERENCE_NUM_THREADS"] = threads
        try:
            core = openvino.Core()
            model = core.read_model(str(folder / MODEL_FILE))
            self._inputs = [node.get_any_name() for node in model.inputs]
            self._request = core.compile_model(model, "CPU", settings).create_infer_request()
        except Exception as error:  # its errors have no common base
            raise InputError(
                f"engine=openvino cannot load '{folder}': {first_line(error)}; deploy it again"
            ) from error

    def _names(self) -> list[str]:
        return self._inputs

    def _run(self, feed: dict[str, Tensor]) -> Tensor:
        arrays = {name: np.ascontiguousarray(feed[name].numpy()) for name in self._inputs}
        self._request.infer(arrays)
        return torch.from_numpy(np.array(self._request.get_output_tensor(0).data))
