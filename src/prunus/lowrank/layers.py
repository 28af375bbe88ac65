"""Which layers of a network can be factorized, and how often each runs."""

import copy
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

from prunus.graph import Inputs, call, call_parts_, first_sample, held_connections, pad_plainly_
from prunus.method import require_layers

Kind = type[nn.Linear] | type[nn.Conv2d] | type[nn.Embedding]


@dataclass(frozen=True, eq=False)
class Layer:
    """A layer that a chain of thinner ones can take the place of.

    Attributes:
        path: In the network.
        module: A ``Linear``, ``Conv2d`` or ``Embedding``.
        inputs: Positions (tokens, pixels) that one sample brings to it, over all its calls.
        outputs: Positions that leave it.
    """

    path: str
    module: nn.Module
    inputs: int
    outputs: int

    @property
    def weight(self) -> Tensor:
        """Its weight, without gradient."""
        weight = self.module.get_parameter("weight")
        return weight.detach()

    @property
    def bias(self) -> Tensor | None:
        """Its bias, where it has one."""
        found = self.module._parameters.get("bias")
        return None if found is None else found.detach()


@dataclass(frozen=True)
class Selection:
    """Layers to factorize in the order of the network, and why others stay whole."""

    layers: tuple[Layer, ...]
    notes: tuple[str, ...]


def select_layers(
    network: nn.Module,
    example: Inputs,
    kinds: Sequence[Kind],
    *,
    ignore: Sequence[str],
    classifier: bool,
    held: Collection[str] = (),
) -> Selection:
    """Find the layers of some kinds that can be factorized.

    A layer stays whole where it does not run, shares weight or bias with another, holds connections at
    zero, has groups or a kernel of 1x1, or where another module reads its weight instead of calling it.

    Args:
        network: Not touched.
        example: Inputs that it runs on; the first sample is used.
        kinds: Of layers, exactly: subclasses compute something else.
        ignore: Globs of paths that stay whole.
        classifier: Whether the layer that runs last is one of them.
        held: Paths that stay whole whatever ``ignore`` says.

    Raises:
        InputError: A glob matches no layer of these kinds.
    """
    own, sample = copy.deepcopy(network).eval(), first_sample(example)
    call_parts_(own)  # as a cut along a plan does
    pad_plainly_(own)
    every = {n: m for n, m in own.named_modules() if type(m) in kinds}
    require_layers(ignore, every, "factorize")
    positions, last = _positions(own, sample)
    bound = _tied(own) | {n.rpartition(".")[0] for n in held_connections(own)}
    layers, notes = [], []
    for path, module in every.items():
        if path in held or any(fnmatchcase(path, pattern) for pattern in ignore):
            continue
        reason = _whole(path, module, positions, bound)
        if path == last and not classifier:
            reason = "is the last layer"
        if reason:
            notes.append(f"'{path}' stays whole: it {reason}")
        else:
            layers.append(Layer(path, network.get_submodule(path), *positions[path]))
    if nn.Conv2d in kinds:
        notes += _other_convolutions(own, ignore, held)
    read = _read_by_others(own, sample, [layer.path for layer in layers])
    notes += [f"'{path}' stays whole: another module reads its weight" for path in sorted(read)]
    return Selection(tuple(la for la in layers if la.path not in read), tuple(notes))


def _whole(
    path: str, module: nn.Module, positions: dict[str, tuple[int, int]], bound: set[str]
) -> str:
    """Why a layer cannot be factorized; empty where it can."""
    if path not in positions:
        return "does not run on the example"
    if path in bound:
        return "shares its weight or bias with another module, or holds connections at zero"
    if not isinstance(module._parameters.get("weight"), nn.Parameter):
        return "computes its weight from other tensors"
    if isinstance(module, nn.Conv2d) and module.groups != 1:
        return f"has groups={module.groups}"
    if isinstance(module, nn.Conv2d) and module.weight[0, 0].numel() == 1:
        return "has a kernel of 1x1, which leaves nothing between two 1x1 kernels"
    if isinstance(module, nn.Embedding) and module.max_norm is not None:
        return "renormalizes its rows (max_norm)"
    return ""


def _other_convolutions(
    network: nn.Module, ignore: Sequence[str], held: Collection[str]
) -> list[str]:
    """Notes on convolutions of other kinds, where the user has not left them out.

    Subclasses of ``nn.Conv2d`` are of another kind: they may compute something else.
    """
    return [
        f"'{path}' stays whole: only 2-D convolutions are factorized (nn.Conv2d)"
        for path, module in network.named_modules()
        if isinstance(module, nn.modules.conv._ConvNd) and type(module) is not nn.Conv2d
        if path not in held and not any(fnmatchcase(path, pattern) for pattern in ignore)
    ]


def _tied(network: nn.Module) -> set[str]:
    """Modules of whose tensors one is another module's, too, under whatever name."""
    named = list(network.named_modules())
    users = Counter(id(p) for _, m in named for p in m._parameters.values() if p is not None)
    return {n for n, m in named if any(users[id(p)] > 1 for p in m._parameters.values())}


def _positions(network: nn.Module, sample: Inputs) -> tuple[dict[str, tuple[int, int]], str]:
    """Positions in and out of every layer that runs, and the linear or convolution that ran last."""
    found: dict[str, tuple[int, int]] = {}
    order: list[str] = []

    def note(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: Any, output: Any) -> None:
            given = next(v for v in (*args, *kwargs.values()) if isinstance(v, Tensor))
            inputs, outputs = found.get(path, (0, 0))
            count = _image_positions if isinstance(module, nn.Conv2d) else _row_positions
            found[path] = (inputs + count(given), outputs + count(output))
            if not isinstance(module, nn.Embedding):
                order.append(path)

        return hook

    handles = [
        module.register_forward_hook(note(path), with_kwargs=True)
        for path, module in network.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d | nn.Embedding)
    ]
    call(network, sample)
    for handle in handles:
        handle.remove()
    return found, order[-1] if order else ""


def _row_positions(tensor: Tensor) -> int:
    """Of ``[..., features]``; ids of an embedding have no features, and are never multiplied."""
    return tensor.numel() // tensor.shape[-1] if tensor.is_floating_point() else tensor.numel()


def _image_positions(tensor: Tensor) -> int:
    """Of ``[(n,) channels, height, width]``."""
    return tensor.numel() // tensor.shape[-3]


class _Stand(nn.Module):
    """A layer behind a module that has no weight, as a chain of layers has none."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.layer(*args, **kwargs)


def _read_by_others(network: nn.Module, sample: Inputs, paths: Sequence[str]) -> set[str]:
    """Layers without whose weight at its place the network does not run."""
    if _runs(network, sample, paths):
        return set()
    return {path for path in paths if not _runs(network, sample, [path])}


def _runs(network: nn.Module, sample: Inputs, paths: Sequence[str]) -> bool:
    stands = [(parent, name, parent._modules[name]) for parent, name in _places(network, paths)]
    try:
        for parent, name, layer in stands:
            if layer is not None:
                parent._modules[name] = _Stand(layer)
        call(network, sample)
    except (AttributeError, TypeError):
        return False
    finally:
        for parent, name, layer in stands:
            parent._modules[name] = layer
    return True


def _places(network: nn.Module, paths: Sequence[str]) -> list[tuple[nn.Module, str]]:
    """Every parent and name under which the modules stand."""
    wanted = {id(network.get_submodule(path)) for path in paths}
    return [
        (parent, name)
        for parent in network.modules()
        for name, child in parent._modules.items()
        if id(child) in wanted
    ]
