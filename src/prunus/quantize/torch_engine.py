"""PyTorch as an engine: int8 by ``torch.ao``, stored as plain tensors and built again by the source."""

import copy
import warnings
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, final

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from prunus.artifact import save
from prunus.artifact.manifest import WEIGHTS_FILE, read_manifest
from prunus.artifact.rebuild import find_source
from prunus.artifact.weights import fill_, read_weights, write_weights
from prunus.errors import InputError
from prunus.graph import cut
from prunus.meter import as_predictor
from prunus.plan import Plan
from prunus.quantize.job import Job, Written
from prunus.quantize.session import Deployed, Session
from prunus.zoo import load_source

INT8_FILE = "int8.safetensors"
_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
_LEVELS = 127


@final
class Int8Embedding(nn.Module):
    """A table of int8 with one scale for each row; rows are float again when they are looked up.

    Args:
        weight: int8 ``[rows, width]``.
        scale: float32 ``[rows]``.
        padding_idx: As of the table it replaces.
    """

    def __init__(self, weight: Tensor, scale: Tensor, padding_idx: int | None = None) -> None:
        super().__init__()
        self.padding_idx = padding_idx
        self.num_embeddings, self.embedding_dim = weight.shape
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)

    @classmethod
    def of(cls, table: Tensor, padding_idx: int | None = None) -> "Int8Embedding":
        """Round every row to 255 levels, symmetric about 0: the error is at most half a level."""
        scale = table.detach().abs().amax(dim=1).clamp(min=torch.finfo(table.dtype).tiny) / _LEVELS
        levels = (table.detach() / scale.unsqueeze(1)).round().clamp(-_LEVELS, _LEVELS)
        return cls(levels.to(torch.int8), scale.float(), padding_idx)

    def forward(self, ids: Tensor) -> Tensor:
        """Rows ``[..., width]``, float32."""
        rows = self.get_buffer("weight")[ids].float()
        return rows * self.get_buffer("scale")[ids].unsqueeze(-1)


def write(job: Job, folder: Path) -> Written:
    """Write tensors, and the source and plans that they are filled into.

    Raises:
        InputError: There is no source, or this PyTorch has no int8.
    """
    if job.source is None:
        raise InputError(
            "engine=torch needs the source of the network to build it again; give source=, or use "
            "engine=onnxruntime"
        )
    deployment = job.deployment
    network = copy.deepcopy(job.network).cpu().eval()
    if deployment.is_float32 or deployment.weights in _DTYPES:
        save(folder, network, source=job.source, plans=job.plans)
        if deployment.weights in _DTYPES:
            write_weights(network.to(_DTYPES[deployment.weights]), folder / WEIGHTS_FILE)
        return Written((WEIGHTS_FILE,), _float_notes(job))
    save(folder, network, source=job.source, plans=job.plans)
    (folder / WEIGHTS_FILE).unlink()
    stored = _quantized_tensors(network, job)
    save_file(stored, folder / INT8_FILE)
    return Written((INT8_FILE,), _float_notes(job))


def _quantized_tensors(network: nn.Module, job: Job) -> dict[str, Tensor]:
    """All tensors of the network, those of quantized layers as int8 with scales.

    A tensor that several layers share is stored once, under its first name; so is its int8 form.
    """
    stored: dict[str, Tensor] = {}
    names: dict[int, str] = {}
    quantized: set[int] = set()
    for path, table in job.tables() if job.deployment.embeddings == "int8" else ():
        own = network.get_submodule(path).get_parameter("weight")
        small = Int8Embedding.of(table.weight, table.padding_idx)
        stored[f"{path}.weight"] = small.get_buffer("weight")
        stored[f"{path}.scale"] = small.get_buffer("scale")
        quantized.add(id(own))
    for path, _ in job.layers() if job.deployment.weights == "int8" else ():
        own = network.get_submodule(path).get_parameter("weight")
        if id(own) in names:
            continue
        levels, scale = _by_channel(own)
        stored[f"{path}.weight"], stored[f"{path}.scale"] = levels, scale
        names[id(own)] = path
        quantized.add(id(own))
    for name, tensor in network.state_dict(keep_vars=True).items():
        if id(tensor) in quantized or id(tensor) in names:
            continue
        names[id(tensor)] = name
        stored[name] = tensor.detach().contiguous()
    return stored


def _by_channel(weight: Tensor) -> tuple[Tensor, Tensor]:
    """int8 ``[out, in]`` and float32 scales ``[out]``, symmetric about 0."""
    scale = weight.detach().abs().amax(dim=1).clamp(min=1e-12) / _LEVELS
    levels = (weight.detach() / scale.unsqueeze(1)).round().clamp(-_LEVELS, _LEVELS)
    return levels.to(torch.int8), scale.float()


def _float_notes(job: Job) -> tuple[str, ...]:
    notes = []
    if job.deployment.weights == "int8":
        kinds = {
            type(m).__name__
            for m in job.network.modules()
            if isinstance(m, nn.RNNBase | nn.modules.conv._ConvNd)
        }
        if kinds:
            notes.append(
                f"torch: {', '.join(sorted(kinds))} stay in float32: dynamic int8 is for linear layers"
            )
    return tuple(notes)


@final
class TorchSession(Session):
    """A network of PyTorch, on the CPU, in eval mode."""

    def __init__(self, folder: Path, record: Deployed, threads: int | None) -> None:
        super().__init__(folder, record)
        self._threads = threads
        manifest = read_manifest(folder)
        source = find_source(manifest, folder).model_copy(update={"weights": None})
        if source.model.partition(":")[0] in ("hf", "timm", "torchvision"):
            arguments = {**source.arguments, "pretrained": False}
            source = source.model_copy(update={"arguments": arguments})
        network = load_source(source)
        for plan in (Plan.load(folder / name) for name in manifest.plans):
            network = cut(network, plan)
        deployment = record.deployment
        if (folder / INT8_FILE).exists():
            _fill_int8_(network, load_file(folder / INT8_FILE))
        else:
            if deployment.weights in _DTYPES:
                network = network.to(_DTYPES[deployment.weights])
            sha256 = record.files[WEIGHTS_FILE]
            fill_(
                network,
                read_weights(folder / WEIGHTS_FILE, sha256, manifest.ties),
                manifest.ties,
            )
        self.network = network.eval()
        self._predict = as_predictor(self.network)

    def _names(self) -> list[str]:
        return ["input"]

    def __call__(self, inputs: Any, /) -> Tensor:
        """Logits ``[samples, classes]``, float32."""
        before = torch.get_num_threads()
        if self._threads is not None and self._threads != before:
            torch.set_num_threads(self._threads)
        try:
            return self._predict(self._cast(inputs)).float()
        finally:
            if self._threads is not None and self._threads != before:
                torch.set_num_threads(before)

    def _cast(self, inputs: Any) -> Any:
        dtype = _DTYPES.get(self.record.deployment.weights)
        if dtype is not None and isinstance(inputs, Tensor) and inputs.is_floating_point():
            return inputs.to(dtype)
        return inputs

    def _run(self, feed: dict[str, Tensor]) -> Tensor:
        return self._predict(feed)


def _fill_int8_(network: nn.Module, stored: Mapping[str, Tensor]) -> None:
    """Put stored tensors into a float network, int8 layers in the place of its own."""
    scales = {name.removesuffix(".scale") for name in stored if name.endswith(".scale")}
    shared: dict[int, str] = {}
    replaced: set[str] = set()
    for path, module in list(network.named_modules()):
        weight = getattr(module, "weight", None)
        owner = shared.get(id(weight), path)
        if owner not in scales or not isinstance(weight, Tensor):
            continue
        shared[id(weight)] = owner
        levels, scale = stored[f"{owner}.weight"], stored[f"{owner}.scale"]
        if isinstance(module, nn.Embedding):
            small: nn.Module = Int8Embedding(levels, scale, module.padding_idx)
        else:
            bias = stored.get(f"{path}.bias")
            small = dynamic_linear(levels, scale, bias)
        parent, _, leaf = path.rpartition(".")
        setattr(network.get_submodule(parent), leaf, small)
        replaced.add(path)
    own = network.state_dict(keep_vars=True)
    with torch.no_grad():
        for name, value in stored.items():
            path = name.rpartition(".")[0]
            if path in scales or path in replaced:
                continue
            own[name].copy_(value)


def dynamic_linear(levels: Tensor, scale: Tensor, bias: Tensor | None) -> nn.Module:
    """A linear layer that computes in int8, its inputs quantized as they come.

    The only place that knows ``torch.ao.quantization``, which PyTorch means to delete.

    Args:
        levels: int8 ``[out, in]``.
        scale: float32 ``[out]``.
        bias: float32 ``[out]``.

    Raises:
        InputError: This PyTorch no longer has it.
    """
    try:
        layers = import_module("torch.ao.nn.quantized.dynamic")
    except ImportError as error:
        raise InputError(
            f"torch {torch.__version__} has no torch.ao.nn.quantized.dynamic any more; use "
            "engine=onnxruntime for int8"
        ) from error
    with warnings.catch_warnings():
        # Quantized tensors are deprecated: what goes with them goes with the module above.
        warnings.filterwarnings(
            "ignore", message=r"[\s\S]*quantized tensor creation", category=UserWarning
        )
        weight = torch._make_per_channel_quantized_tensor(
            levels, scale.double(), torch.zeros(len(scale), dtype=torch.int64), 0
        )
        layer: nn.Module = layers.Linear(levels.shape[1], levels.shape[0], bias_=bias is not None)
        layer.set_weight_bias(weight, bias)  # type: ignore[operator]
    return layer
