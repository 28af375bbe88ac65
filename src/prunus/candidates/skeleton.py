"""A network whose tensors are swapped for slices: candidates run on it without any copy.

The structure is copied once; the dense parameters are shared and never written to. Buffers are copies,
made anew where a forward has written to them: no candidate finds what another left. Loading a plan puts
gathered slices (views, where what stays is contiguous) in their places, sets the numbers that
shapes depend on, and takes back what the last plan did. No re-trace, no deep copy.
"""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from prunus.graph import pad_plainly_
from prunus.graph.attention import free_heads_
from prunus.graph.cut import kept_slices, network_shape, set_attributes_, sync_sizes_
from prunus.graph.difference import same_values
from prunus.graph.kept import may_keep, refresh_
from prunus.plan import Plan, SetAttribute

Forward = Callable[..., Any]
Watcher = Callable[[str, Forward, tuple[Any, ...], dict[str, Any]], Any]


class Skeleton:
    """Runs one candidate after the other on slices of one network's tensors.

    Args:
        network: The dense network; not touched, and not to be changed while this lives.
        channels_last: Keep 4-D tensors in that layout.

    Attributes:
        module: The network to call, in evaluation mode, as the plan loaded last makes it.
        norms: Paths of its batch norms with running statistics, in order of definition.
        watcher: Called in place of every inner module's forward, with the module's path, that
            forward and its arguments; None: nothing is watched.
        plain: Leave out what stands in for forwards because it is faster, until the next plan.
        doubtful: A stand-in was given what is no number, and may have made one of it.
    """

    def __init__(self, network: nn.Module, *, channels_last: bool = False) -> None:
        named: dict[str, Tensor] = dict([*network.named_parameters(), *network.named_buffers()])
        memo: dict[int, Any] = {id(tensor): tensor for tensor in named.values()}
        self.module: nn.Module = copy.deepcopy(network, memo).eval()
        pad_plainly_(self.module)  # as a cut network does
        self._keepers = may_keep(self.module)
        free_heads_(self.module)  # whichever of them a plan takes heads from
        self.watcher: Watcher | None = None
        self._shape = network_shape(network)
        self._channels_last = channels_last
        self._slots = self._find_slots(named)
        self._dense = {name: self._laid_out(tensor.detach()) for name, tensor in named.items()}
        self._given = {name: tensor.detach() for name, tensor in network.named_buffers()}
        self._versions: dict[str, int | None] = dict.fromkeys(self._given)
        self._written: set[str] = set()
        self._modules: dict[str, nn.Module] = dict(self.module.named_modules())
        self._forwards: dict[str, Forward] = {n: m.forward for n, m in self._modules.items() if n}
        for name, forward in self._forwards.items():
            self._modules[name].__dict__["forward"] = partial(self._call, name, forward)
        self.norms = [
            name
            for name, module in self._modules.items()
            if isinstance(module, _BatchNorm) and module.running_mean is not None
        ]
        self._changed: dict[str, None] = dict.fromkeys(self._slots)
        self._settings: list[tuple[nn.Module, dict[str, Any]]] = []
        self._swapped: dict[str, Forward] = {}
        self._faster: dict[str, Forward] = {}
        self.plain = self.doubtful = False
        self.reset()

    def _find_slots(self, named: dict[str, Tensor]) -> dict[str, list[tuple[dict[str, Any], str]]]:
        """Where every tensor is stored, under all the names it is tied to."""
        names = {id(tensor): name for name, tensor in named.items()}
        slots: dict[str, list[tuple[dict[str, Any], str]]] = {name: [] for name in named}
        self._owners: dict[str, tuple[str, ...]] = {}
        for path, module in self.module.named_modules():
            tables: list[dict[str, Any]] = [module._parameters, module._buffers]
            for table in tables:
                for leaf, value in table.items():
                    if value is not None:
                        name = names[id(value)]
                        slots[name].append((table, leaf))
                        self._owners[name] = (*self._owners.get(name, ()), path)
        return slots

    def _laid_out(self, tensor: Tensor) -> Tensor:
        if self._channels_last and tensor.dim() == 4:
            return tensor.contiguous(memory_format=torch.channels_last)
        return tensor

    def _call(self, name: str, forward: Forward, *args: Any, **kwargs: Any) -> Any:
        forward = self._swapped.get(name, forward)
        if not self.plain:
            forward = self._faster.get(name, forward)
        if self.watcher is None:
            return forward(*args, **kwargs)
        return self.watcher(name, forward, args, kwargs)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all tensors, tied ones once."""
        return tuple(self._slots)

    def owners(self, tensor: str) -> tuple[str, ...]:
        """Paths of the modules that hold a tensor; none where there is no such tensor."""
        return self._owners.get(tensor, ())

    def holds(self, name: str) -> bool:
        """Whether there is such a tensor now: a bias may be there for one plan alone."""
        return any(table[leaf] is not None for table, leaf in self._slots.get(name, ()))

    def tensor(self, name: str) -> Tensor:
        """A tensor as it is loaded."""
        table, leaf = self._slots[name][0]
        value: Tensor = table[leaf]
        return value

    def submodule(self, path: str) -> nn.Module:
        """A module by its path."""
        return self._modules[path]

    # -- plans --------------------------------------------------------------------------------

    def load(self, plan: Plan) -> None:
        """Take the shape of a plan; its batch norms have the dense network's statistics.

        Raises:
            PlanMismatchError: The plan is for another network.
        """
        self.reset()
        plan.source.require(self._shape, "the candidate")
        changed = kept_slices(self._dense, plan)
        owners = dict.fromkeys(name.rpartition(".")[0] for name in changed)
        numbered = dict.fromkeys(e.module for e in plan.edits if isinstance(e, SetAttribute))
        for path in owners | numbered:
            module = self._modules[path]
            self._settings.append((module, _settings(module)))
        for name, value in changed.items():
            self.put(name, self._laid_out(value))
        set_attributes_(self.module, plan)
        for path in owners:
            sync_sizes_(self._modules[path])
        refresh_(self._keepers)

    def reset(self) -> None:
        """Be the dense network again."""
        self._renew_buffers()
        for name in self._changed:
            for table, leaf in self._slots[name]:
                table[leaf] = self._dense[name]
        self._changed.clear()
        for module, settings in reversed(self._settings):
            vars(module).update(settings)
        self._settings.clear()
        self._swapped.clear()
        self._faster.clear()
        self.plain = self.doubtful = False
        refresh_(self._keepers)  # last: settings that are put back may hold what was kept since

    def _renew_buffers(self) -> None:
        """Take copies of the buffers given, where a forward has written to those that there were."""
        for name, given in self._given.items():
            version = _version(self._dense[name])
            if name in self._written or version is None or version != self._versions[name]:
                self._dense[name] = self._laid_out(given.clone())
                self._versions[name] = _version(self._dense[name])
            for table, leaf in self._slots[name]:
                table[leaf] = self._dense[name]

    def has_written(self) -> bool:
        """Whether forwards have written to a buffer since a plan was taken back; there they may again."""
        for name, given in self._given.items():
            now, dense = self.tensor(name), self._dense[name]
            kept = now is dense and _version(dense) == self._versions[name]
            # Values as well: what autograd is not told of has no version.
            if not kept or not same_values(now, given):
                self._written.add(name)
        return bool(self._written)

    def put(self, name: str, value: Tensor) -> None:
        """Swap one tensor until the next ``load`` or ``reset``."""
        for table, leaf in self._slots[name]:
            table[leaf] = value
        self._changed[name] = None

    def put_statistics(self, norm: str, mean: Tensor, var: Tensor, batches: int = 0) -> None:
        """Give one batch norm running statistics, and a count of the batches they are of."""
        self.put(f"{norm}.running_mean", mean)
        self.put(f"{norm}.running_var", var)
        count = f"{norm}.num_batches_tracked"
        if count in self._slots:
            self.put(count, torch.full_like(self._dense[count], batches))

    def replace(self, layer: str, weight: Tensor, bias: Tensor) -> None:
        """Give a layer other numbers until the next ``load``, a bias even where it has none."""
        self.put(f"{layer}.weight", self._laid_out(weight))
        module = self._modules[layer]
        if f"{layer}.bias" in self._slots:
            self.put(f"{layer}.bias", bias)
        else:
            table: dict[str, Any] = module._parameters
            self._slots[f"{layer}.bias"] = [(table, "bias")]
            self._dense[f"{layer}.bias"] = None  # type: ignore[assignment]  # what it is reset to
            self.put(f"{layer}.bias", bias)

    def bypass(self, path: str) -> None:
        """Make a module return its input until the next ``load``."""
        self.swap(path, _same)

    def swap(self, path: str, forward: Forward) -> None:
        """Call something else in place of a module's forward until the next ``load``."""
        self._swapped[path] = forward

    def hasten(self, path: str, forward: Forward | None = None) -> None:
        """Call something faster in place of a module's forward until the next ``load``; see ``plain``.

        None: the forward is computed elsewhere, and its input is returned.
        """
        self._faster[path] = _same if forward is None else forward


def _version(tensor: Tensor) -> int | None:
    """Of writes to a tensor; None: they are not counted."""
    return None if tensor.is_inference() else tensor._version


def _same(value: Any) -> Any:
    return value


def _settings(module: nn.Module) -> dict[str, Any]:
    """The numbers that a plan may change."""
    return {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_") and name not in ("training", "forward")
    }
