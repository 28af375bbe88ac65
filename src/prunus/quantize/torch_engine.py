"""PyTorch as an engine: a network stored as plain tensors, and built again by its source."""

import copy
from pathlib import Path
from typing import Any, final

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm

from prunus.artifact import load, save
from prunus.artifact.manifest import MANIFEST_FILE, WEIGHTS_FILE, Manifest, read_manifest
from prunus.artifact.rebuild import find_source, rebuild, require_same_outputs
from prunus.artifact.weights import (
    file_sha256,
    fill_,
    read_weights,
    spread_,
    tie_,
    unsaved_types,
    write_tensors,
    write_weights,
)
from prunus.errors import InputError
from prunus.graph import pad_plainly_
from prunus.meter import logits_in
from prunus.meter.predictor import call
from prunus.plan import Plan
from prunus.quantize.job import Job, Written, require_in_float16, trial
from prunus.quantize.options import Deployment
from prunus.quantize.session import Deployed, Session
from prunus.quantize.smoothed import SmoothedLinear, plain_
from prunus.quantize.torch_int8 import fill_int8_, int8_modules, quantized_tensors
from prunus.records import Source

INT8_FILE = "int8.safetensors"
NO_SOURCE = (
    "engine=torch needs the source of the network to build it again; give source=, or use "
    "engine=onnxruntime"
)
_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


def write(job: Job, folder: Path) -> Written:
    """Write tensors, and the source and plans that they are filled into.

    Raises:
        InputError: There is no source, float16 cannot hold a tensor, or this PyTorch has no int8.
        PlanMismatchError: The source builds another network, or another architecture with its tensors.
    """
    if job.source is None:
        raise InputError(NO_SOURCE)
    deployment = job.deployment
    network = copy.deepcopy(job.network).cpu().eval()
    if deployment.is_float32 or deployment.weights in _DTYPES:
        _save(folder, network, job, job.source)
        if deployment.weights == "float16":
            require_in_float16(network, "weights=bfloat16")
        if deployment.weights in _DTYPES:
            write_weights(network.to(_DTYPES[deployment.weights]), folder / WEIGHTS_FILE)
            told: dict[str, Any] = {
                "weights_sha256": file_sha256(folder / WEIGHTS_FILE),
                "buffers": unsaved_types(network),  # cast with the others
            }
            read_manifest(folder).model_copy(update=told).save(folder / MANIFEST_FILE)
        return Written((WEIGHTS_FILE,), _float_notes(job))
    stored = quantized_tensors(network, job)
    _save(folder, _unsmoothed(network), job, job.source)
    (folder / WEIGHTS_FILE).unlink()
    write_tensors(stored, folder / INT8_FILE)
    return Written((INT8_FILE,), _float_notes(job))


def _save(folder: Path, network: nn.Module, job: Job, source: Source) -> None:
    """Write an artifact of the network in float32, whose outputs on the real batch come back."""
    save(folder, network, source=source, plans=job.plans)
    loaded = load(folder)
    pad_plainly_(loaded)  # as the trial does
    require_same_outputs(trial(network), loaded, job.inputs, source.model, "inputs")


def require_own_weights(network: nn.Module, deployment: Deployment) -> None:
    """Refuse layers whose weight is computed on each call: it is none to store, and cannot be copied.

    Raises:
        InputError: Such a layer is to be int8, or keeps a weight with its gradient.
    """
    small = int8_modules(network, deployment)
    for path, layer in network.named_modules(remove_duplicate=False):
        weight = vars(layer).get("weight")  # where it is no parameter
        if isinstance(weight, Tensor) and (path in small or not weight.is_leaf):
            name = f"layer '{path}'" if path else "the network itself"
            raise InputError(
                f"{name} computes its weight on each call, which engine=torch cannot write; "
                f"{_remedy(layer, weight)}"
            )


def _remedy(layer: nn.Module, weight: Tensor) -> str:
    """How a layer's weight becomes one to store, by how it is computed."""
    made = "make it a parameter by torch.nn.utils."
    hooks = layer._forward_pre_hooks.values()
    if any(isinstance(hook, BasePruningMethod) for hook in hooks):
        return f"{made}prune.remove(layer, 'weight')"
    if any(isinstance(hook, SpectralNorm) for hook in hooks):
        return f"{made}remove_spectral_norm(layer)"
    if "weight_g" in layer._parameters:
        return f"{made}remove_weight_norm(layer)"
    # A weight with its gradient cannot be copied, whatever the engine.
    return "hold it as an nn.Parameter" + (", or use engine=onnxruntime" if weight.is_leaf else "")


def _unsmoothed(network: nn.Module) -> nn.Module:
    """The same layers as the source builds: what says which network this is, not what it says."""
    for layer in network.modules():
        if isinstance(layer, SmoothedLinear):
            plain_(layer)
    return network


def _float_notes(job: Job) -> tuple[str, ...]:
    if job.deployment.weights != "int8":
        return ()
    kinds = {_known_as(m) for m in job.network.modules() if _multiplies_in_float(m)}
    if not kinds:
        return ()
    names = ", ".join(sorted(kinds))
    return (f"torch: {names} stay in float32: dynamic int8 is for linear layers",)


def _known_as(layer: nn.Module) -> str:
    """What its users call a layer: attention and its projection have other names inside."""
    attends = isinstance(layer, nn.MultiheadAttention | NonDynamicallyQuantizableLinear)
    return nn.MultiheadAttention.__name__ if attends else type(layer).__name__


def _multiplies_in_float(layer: nn.Module) -> bool:
    """Whether a layer multiplies by matrices of its own, and int8 is not for it.

    Subclasses of linear layers are among these: what they compute besides is not known.
    """
    if isinstance(layer, nn.RNNBase | nn.RNNCellBase | nn.MultiheadAttention):
        return True
    if type(layer) in (nn.Linear, SmoothedLinear) or isinstance(
        layer, nn.Embedding | nn.LayerNorm | nn.RMSNorm
    ):
        return False
    if isinstance(layer, parametrize.ParametrizationList):
        return False  # told by the layer that it is of
    own = [(name, p) for name, p in layer._parameters.items() if p is not None]
    matrices = any(p.ndim == 2 or (name == "weight" and p.ndim > 1) for name, p in own)
    return matrices or parametrize.is_parametrized(layer)


@final
class TorchSession(Session):
    """A network of PyTorch, on the CPU, in eval mode."""

    def __init__(self, folder: Path, record: Deployed, threads: int | None) -> None:
        super().__init__(folder, record)
        self._threads = threads
        manifest = read_manifest(folder)
        plans = [Plan.load(folder / name) for name in manifest.plans]

        def fill(network: nn.Module) -> None:
            _fill_(network, folder, record, manifest)

        # In eval mode, and called as it is: a predictor's walk over all modules would be timed with it.
        self.network = rebuild(find_source(manifest, folder), manifest, plans, fill)

    @property
    def floats(self) -> torch.dtype:
        """Those of its weights."""
        return _DTYPES.get(self.record.deployment.weights, torch.float32)

    def _names(self) -> list[str]:
        return ["input"]

    def __call__(self, inputs: Any, /) -> Tensor:
        """Logits ``[samples, classes]``, float32.

        Raises:
            InputError: The network cannot run on the inputs.
        """
        before = torch.get_num_threads()
        if self._threads is not None and self._threads != before:
            torch.set_num_threads(self._threads)
        try:
            return self._run(self.cast(inputs)).float()
        except InputError:
            raise
        except Exception as error:  # a user's forward may raise anything
            raise self._refused(error) from error
        finally:
            if self._threads is not None and self._threads != before:
                torch.set_num_threads(before)

    def _run(self, feed: Any) -> Tensor:
        with torch.no_grad():
            return logits_in(call(self.network, feed))


def _fill_(network: nn.Module, folder: Path, record: Deployed, manifest: Manifest) -> None:
    deployment, ties = record.deployment, manifest.ties
    if INT8_FILE in record.files:
        tie_(network.float(), ties)
        spread_(network)
        fill_int8_(network, load_file(folder / INT8_FILE), deployment)
        return
    if deployment.weights in _DTYPES:
        network.to(_DTYPES[deployment.weights])
    tensors = read_weights(folder / WEIGHTS_FILE, record.files[WEIGHTS_FILE], ties)
    fill_(network, tensors, ties, manifest.buffers)
