"""Layers and tables of int8 in PyTorch, by ``torch.ao``, and the plain tensors that they are stored as."""

import warnings
from collections.abc import Mapping
from importlib import import_module
from types import ModuleType
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from prunus.errors import InputError, PlanMismatchError
from prunus.graph import call_parts_, pad_plainly_
from prunus.quantize.by_row import by_row
from prunus.quantize.job import Job, fits_float16, int8_layers, int8_tables
from prunus.quantize.options import Deployment
from prunus.quantize.smoothed import FACTORS, SmoothedLinear
from prunus.records import multiplies_bytes

_HOOKS = (
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
)


@final
class Int8Embedding(nn.Module):
    """A table of int8 with one scale for each row; rows are float again when they are looked up.

    Args:
        levels: int8 ``[rows, width]``.
        scale: float32 ``[rows]``.
        padding_idx: As of the table it replaces.
    """

    def __init__(self, levels: Tensor, scale: Tensor, padding_idx: int | None = None) -> None:
        super().__init__()
        self.padding_idx = padding_idx
        self.num_embeddings, self.embedding_dim = levels.shape
        # Not as ``weight``: what reads that past the layer would take levels for numbers.
        self.register_buffer("levels", levels)
        self.register_buffer("scale", scale)

    @classmethod
    def of(cls, table: Tensor, padding_idx: int | None = None) -> "Int8Embedding":
        """Round every row to 255 levels, symmetric about 0: the error is at most half a level."""
        return cls(*by_row(table), padding_idx)

    def forward(self, ids: Tensor) -> Tensor:
        """Rows ``[..., width]``, float32.

        Raises:
            IndexError: An id is below 0, or has no row.
        """
        rows = functional.embedding(ids, self.get_buffer("levels")).float()
        return rows * functional.embedding(ids, self.get_buffer("scale").unsqueeze(-1))


def int8_modules(network: nn.Module, deployment: Deployment) -> dict[str, nn.Module]:
    """All that is quantized, by path: the same where it is written and where it is built again."""
    return {**int8_tables(network, deployment), **int8_layers(network, deployment)}


def quantized_tensors(network: nn.Module, job: Job) -> dict[str, Tensor]:
    """All tensors of the network, those of quantized layers as int8 with scales.

    A tensor that several layers share is stored once, under its first name; so is its int8 form.
    """
    small = int8_modules(network, job.deployment)
    halves = job.deployment.rest == "float16"
    stored: dict[str, Tensor] = {}
    for path in _owners(small).values():
        levels, scale = by_row(small[path].get_parameter("weight"), halves=halves)
        stored[f"{path}.weight"], stored[f"{path}.scale"] = levels, scale
        if isinstance(layer := small[path], SmoothedLinear):  # powers of 2, which float16 holds
            stored[f"{path}.{FACTORS}"] = layer.input_factors.half()
    for name, tensor in _float_tensors(network, small).items():
        value = tensor.detach().clone().contiguous()
        stored[name] = value.half() if halves and fits_float16(value) else value
    return stored


def fill_int8_(network: nn.Module, stored: Mapping[str, Tensor], deployment: Deployment) -> None:
    """Put stored tensors into a float network, int8 layers in the place of its own.

    Raises:
        PlanMismatchError: They are of another network.
    """
    small = int8_modules(network, deployment)
    owners, floats = _owners(small), _float_tensors(network, small)
    factors = {f"{path}.{FACTORS}" for path in owners.values()} - set(floats)
    weights = {f"{path}.weight": small[path].get_parameter("weight") for path in owners.values()}
    scales = {f"{path}.scale": weights[f"{path}.weight"][:, 0] for path in owners.values()}
    _require_same(
        {**weights, **scales, **floats}, {n: t for n, t in stored.items() if n not in factors}
    )
    with torch.no_grad():
        for name, tensor in floats.items():
            tensor.copy_(stored[name])
    built: dict[int, nn.Module] = {}
    for path, module in small.items():
        owner = owners[id(module.get_parameter("weight"))]
        if id(module) not in built:
            layer = _int8(module, stored[f"{owner}.weight"], stored[f"{owner}.scale"].float())
            name = f"{owner}.{FACTORS}"
            if name in factors and name in stored:
                layer = _Scaled(layer, stored[name].float())
            built[id(module)] = _hooked(layer, module)
        parent, _, leaf = path.rpartition(".")
        setattr(network.get_submodule(parent), leaf, built[id(module)])
    call_parts_(network)  # int8 layers have no tensor of that name
    pad_plainly_(network)


def _owners(small: Mapping[str, nn.Module]) -> dict[int, str]:
    """The path under which a weight is stored, by its identity: that of its first layer."""
    owners: dict[int, str] = {}
    for path, module in small.items():
        owners.setdefault(id(module.get_parameter("weight")), path)
    return owners


def _float_tensors(network: nn.Module, small: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """All that is not quantized, shared tensors under their first name; no factors of smoothed layers.

    A weight that a quantized layer shares with one in float is here too.
    """
    factors = {f"{p}.{FACTORS}" for p, layer in small.items() if isinstance(layer, SmoothedLinear)}
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in network.state_dict(keep_vars=True).items():
        path, _, leaf = name.rpartition(".")
        if (leaf == "weight" and path in small) or name in factors or id(tensor) in seen:
            continue
        seen.add(id(tensor))
        found[name] = tensor
    return found


def _require_same(wanted: Mapping[str, Tensor], stored: Mapping[str, Tensor]) -> None:
    """Refuse stored tensors of other names or shapes than those that the source has a place for."""
    said = "the source of a deployment builds another network than the one deployed: "
    remedy = "deploy again with the source that builds it"
    if differing := sorted(set(wanted) ^ set(stored)):
        raise PlanMismatchError(f"{said}'{differing[0]}' is in one alone; {remedy}")
    for name, tensor in wanted.items():
        if tensor.shape != stored[name].shape:
            shapes = f"{list(tensor.shape)} in it and was {list(stored[name].shape)}"
            raise PlanMismatchError(f"{said}'{name}' is {shapes}; {remedy}")


def _hooked(layer: nn.Module, module: nn.Module) -> nn.Module:
    """The layer, with the hooks of the module that it replaces: what these do to inputs and outputs stays."""
    for hooks in _HOOKS:  # not copies, so that the handle of a hook removes it here, too
        setattr(layer, hooks, getattr(module, hooks))
    return layer


def _int8(module: nn.Module, levels: Tensor, scale: Tensor) -> nn.Module:
    if isinstance(module, nn.Embedding):
        return Int8Embedding(levels, scale, module.padding_idx)
    bias = module._parameters["bias"]
    return dynamic_linear(levels, scale, None if bias is None else bias.detach())


class _Scaled(nn.Module):
    """An int8 layer whose inputs are multiplied by factors first; see ``SmoothedLinear``."""

    def __init__(self, layer: nn.Module, factors: Tensor) -> None:
        super().__init__()
        self.layer = layer
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.register_buffer(FACTORS, factors)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # as in the layer that it was
        """Outputs ``[..., out]`` of inputs ``[..., in]``."""
        out: Tensor = self.layer(input * self.get_buffer(FACTORS))
        return out


def dynamic_linear(levels: Tensor, scale: Tensor, bias: Tensor | None) -> nn.Module:
    """A linear layer that computes in int8, its inputs quantized as they come.

    Inputs get all 8 bits on CPUs with VNNI; elsewhere 7, as ``torch.ao`` gives them everywhere, so that
    sums of two products fit 16 bits.

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
        kind = _eight_bits(layers) if multiplies_bytes() else layers.Linear
        layer: nn.Module = kind(levels.shape[1], levels.shape[0], bias_=bias is not None)
        layer.set_weight_bias(weight, bias)  # type: ignore[operator]
    return layer


def _eight_bits(layers: ModuleType) -> Any:
    """The library's layer, whose inputs are rounded to 8 bits in the place of 7."""

    class Linear(layers.Linear):  # type: ignore[misc, name-defined]  # known at run time alone
        def forward(self, x: Tensor) -> Tensor:
            packed = self._packed_params._packed_params
            out: Tensor = torch.ops.quantized.linear_dynamic(x, packed, reduce_range=False)
            return out

    return Linear
