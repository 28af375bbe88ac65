"""What a trace knows: coupled channel groups, and from them costs and plans by formula."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from prunus.errors import InputError
from prunus.graph.connections import drop_unread_, require_fit
from prunus.graph.file_size import header_bytes
from prunus.graph.findings import AttributeUse, Findings
from prunus.graph.formulas import Formula, Term, formula_of
from prunus.graph.inputs import Inputs
from prunus.graph.labels import OUTPUT, Algebra, Atoms
from prunus.graph.units import Choice, Group
from prunus.plan import (
    Axis,
    Bits,
    BoolArray,
    Edit,
    KeepChannels,
    NetworkShape,
    Plan,
    ReindexBuffer,
    SetAttribute,
    ZeroConnections,
)
from prunus.records import Cost


@dataclass(frozen=True, eq=False)
class Trace:
    """A network's coupled groups, in forward order, with its costs and plans by formula.

    Made by ``trace``; knows nothing of weights, so it serves every network of the same shape.

    Attributes:
        shape: Of all tensors: the network's fingerprint.
        groups: What can only be cut together.
        example_inputs: The batch it was traced on.
        findings: What the walk noted, in atoms.
        atoms: Which atoms are one.
        parameters: Shapes by name, tied ones once.
        stored: Bytes per element of every tensor in the saved file, by name.
        ignored: Modules and parameters that the user left out, those within them included.
    """

    shape: NetworkShape
    groups: tuple[Group, ...]
    example_inputs: Inputs
    findings: Findings
    atoms: Atoms
    parameters: Mapping[str, tuple[int, ...]]
    stored: Mapping[str, int]
    ignored: frozenset[str] = frozenset()

    @cached_property
    def cuttable(self) -> tuple[Group, ...]:
        """Groups that can be cut."""
        return tuple(g for g in self.groups if not g.refused)

    @cached_property
    def by_name(self) -> Mapping[str, Group]:
        """Groups by name."""
        return {g.name: g for g in self.groups}

    @cached_property
    def output_layers(self) -> frozenset[str]:
        """Paths of the layers that give the network's output."""
        return frozenset(
            axis.tensor.rpartition(".")[0]
            for group in self.groups
            if group.refused == OUTPUT
            for axis in group.axes
        )

    @cached_property
    def ignored_tensors(self) -> frozenset[str]:
        """Tensors that the user left out: neither channels nor connections of them may go."""
        return frozenset(
            axis.tensor
            for group in self.groups
            if group.ignored
            for axis in group.axes
            if axis.role == "out"
        )

    def algebra(self) -> Algebra:
        """The label algebra, frozen: for masked runs."""
        self.atoms.frozen = True
        return Algebra(self.atoms)

    # -- choices ------------------------------------------------------------------------------

    def check(self, choice: Choice) -> None:
        """Refuse a choice that cannot be cut.

        Raises:
            InputError: Unknown or refused group, no boolean flags, wrong length, or fewer units
                than must stay.
        """
        for name, flags in choice.items():
            group = self._group(name)
            keep = _flags(group, flags)
            kept = int(np.sum(keep))
            if group.refused and kept < group.units:
                raise InputError(f"group '{name}' cannot be cut: {group.refused}")
            if kept < min(group.min_units, group.units):
                raise InputError(f"group '{name}' must keep {group.min_units} units, not {kept}")
            if kept < group.units and kept % group.step:
                raise InputError(
                    f"group '{name}' keeps multiples of {group.step} units"
                    f"{_why_so_many(group)}, not {kept}"
                )

    def _group(self, name: str) -> Group:
        if name not in self.by_name:
            raise InputError(f"no group '{name}'; groups are {', '.join(self.by_name)}")
        return self.by_name[name]

    @cached_property
    def _unit_index(self) -> tuple[Mapping[int, int], Mapping[str, slice], int]:
        """Class to global unit number, group to its range of them, how many there are."""
        by_class: dict[int, int] = {}
        ranges: dict[str, slice] = {}
        start = 0
        for group in self.groups:
            axis = group.axes[0]
            roots = self.atoms.find(self.findings.axes[axis.tensor, axis.dim])
            for root, unit in zip(roots.tolist(), axis.units.tolist(), strict=True):
                if unit >= 0:
                    by_class[root] = start + unit
            ranges[group.name] = slice(start, start + group.units)
            start += group.units
        return by_class, ranges, start

    def vector(self, choice: Choice) -> BoolArray:
        """A choice as one row of booleans over all units of all groups."""
        _, ranges, total = self._unit_index
        keep = np.ones(total, dtype=bool)
        for name, flags in choice.items():
            group = self._group(name)
            keep[ranges[name]] = _flags(group, flags)
        return keep

    def keep_by_atom(self, choice: Choice) -> BoolArray:
        """For every atom, whether it stays."""
        by_class, _, _ = self._unit_index
        keep = self.vector(choice)
        roots = self.atoms.find(np.arange(self.atoms.size))
        lookup = np.ones(self.atoms.size, dtype=bool)
        for root, unit in by_class.items():
            lookup[root] = keep[unit]
        return lookup[roots]

    # -- cost ---------------------------------------------------------------------------------

    @cached_property
    def _mac_formula(self) -> Formula:
        return self._formula([(t.constant, t.dims) for t in self.findings.macs])

    @cached_property
    def _param_formula(self) -> Formula:
        return self._element_formula(dict.fromkeys(self.parameters, 1))

    @cached_property
    def _byte_formula(self) -> Formula:
        return self._element_formula(self.stored)

    def _element_formula(self, weights: Mapping[str, int]) -> Formula:
        """Elements of tensors, each times its weight."""
        terms = []
        for name, weight in weights.items():
            shape = self.shape.tensors[name]
            known = {d: self.findings.axes.get((name, d)) for d in range(len(shape))}
            constant = int(
                np.prod([s for d, s in enumerate(shape) if known[d] is None], dtype=np.int64)
            )
            terms.append((weight * constant, [ids for ids in known.values() if ids is not None]))
        return self._formula(terms)

    def _formula(self, terms: Sequence[Term]) -> Formula:
        unit_of, _, units = self._unit_index
        return formula_of(terms, self.atoms, unit_of, units)

    def macs(self, choice: Choice) -> int:
        """Executed MACs of the network that a choice makes, at batch 1."""
        return self._mac_formula.value(self.vector(choice))

    def params(self, choice: Choice) -> int:
        """Parameters of the network that a choice makes."""
        return self._param_formula.value(self.vector(choice))

    def size_bytes(self, choice: Choice) -> int:
        """Bytes of the safetensors file of the network that a choice makes, at most.

        Data are exact; the header is the dense network's, which a cut can only shorten.
        """
        return self._header_bytes + self._byte_formula.value(self.vector(choice))

    @cached_property
    def _header_bytes(self) -> int:
        return header_bytes(self.shape.tensors, self.stored)

    def cost(self, choice: Choice) -> Cost:
        """Executed MACs and parameters of the network that a choice makes: exact, nothing is built."""
        macs, params = self.macs(choice), self.params(choice)
        return Cost(
            macs=macs,
            effective_macs=macs,
            params=params,
            nonzero_params=params,
            uncounted=tuple(sorted(self.findings.unknown_ops)),
        )

    # -- plans --------------------------------------------------------------------------------

    def cut_units(
        self, choice: Choice, connections: Sequence[ZeroConnections] = ()
    ) -> dict[str, BoolArray]:
        """Kept units of the groups that the plan of a choice cuts; see ``plan``.

        Raises:
            InputError: The choice cannot be cut (see ``check``).
        """
        self.check(choice)
        for connection in connections:
            require_fit(connection, self.shape.tensors.get(connection.tensor))
        read = {n: _flags(self.by_name[n], k) for n, k in choice.items()}
        masks = {c.tensor: c.keep.unpack().reshape(c.shape) for c in connections}
        if masks:
            drop_unread_(read, self.cuttable, masks)
        return {n: k for n, k in read.items() if not k.all()}

    def plan(self, choice: Choice, connections: Sequence[ZeroConnections] = ()) -> Plan:
        """The complete plan of a choice, for ``cut``.

        Args:
            choice: Kept units by group; groups left out stay whole.
            connections: Connections to hold at zero, in shapes of this (uncut) network. A unit that
                nothing reads any more is cut as well.

        Raises:
            InputError: The choice cannot be cut (see ``check``).
        """
        cutting = self.cut_units(choice, connections)
        keep = self.keep_by_atom(cutting)
        edits: list[Edit] = [*connections]
        axes: dict[tuple[str, int], BoolArray] = {}
        edits += [
            self._channel_edit(group, cutting[group.name], axes)
            for group in self.groups
            if group.name in cutting
        ]
        edits += self._attribute_edits(keep)
        edits += dict.fromkeys(
            ReindexBuffer(buffer=item.buffer, keep=Bits.pack(keep[item.ids]))
            for item in self.findings.reindexed
            if not keep[item.ids].all()
        )
        result = dict(self.shape.tensors)
        for (tensor, dim), stays in axes.items():
            size = list(result[tensor])
            size[dim] = int(stays.sum())
            result[tensor] = tuple(size)
        return Plan(source=self.shape, result=NetworkShape(tensors=result), edits=tuple(edits))

    @staticmethod
    def _channel_edit(
        group: Group, keep: BoolArray, axes: dict[tuple[str, int], BoolArray]
    ) -> KeepChannels:
        touched = []
        for axis in group.axes:
            stays = np.where(axis.units >= 0, keep[axis.units], True)
            before = axes.get((axis.tensor, axis.dim))
            axes[axis.tensor, axis.dim] = stays if before is None else stays & before
            touched.append(Axis(tensor=axis.tensor, dim=axis.dim, keep=Bits.pack(stays)))
        return KeepChannels(group=group.name, keep=Bits.pack(keep), axes=tuple(touched))

    def _attribute_edits(self, keep: BoolArray) -> list[SetAttribute]:
        edits: dict[tuple[str, str], SetAttribute] = {}
        for use in self.findings.attributes:
            after = attribute_size(use, keep)
            if after != use.value:
                edits[use.module, use.attribute] = SetAttribute(
                    module=use.module, attribute=use.attribute, before=use.value, after=after
                )
        self._keep_apart(edits)
        return list(edits.values())

    def _keep_apart(self, edits: dict[tuple[str, str], SetAttribute]) -> None:
        """Two numbers that the code found unequal stay so: ``if self.width != self.width_out``.

        One that is the size of nothing and in no formula, only compared, takes the size that the other had.
        """
        used = {(use.module, use.attribute) for use in self.findings.attributes}
        used |= self.findings.formulas
        for pair in self.findings.unequal:
            for mine, other in (pair, pair[::-1]):
                edit = edits.get((other.module, other.attribute))
                name = mine.module, mine.attribute
                if edit is not None and edit.after == mine.value and name not in used:
                    edits[name] = SetAttribute(
                        module=mine.module,
                        attribute=mine.attribute,
                        before=mine.value,
                        after=other.value,
                    )


def _flags(group: Group, flags: object) -> BoolArray:
    """One boolean per unit of a group.

    Raises:
        InputError: They are none: indices and numbers could be meant in more than one way.
    """
    found: object = flags
    if isinstance(flags, torch.Tensor) and flags.dtype == torch.bool:
        found = flags.detach().cpu().numpy()
    elif isinstance(flags, list | tuple) and all(isinstance(x, bool | np.bool_) for x in flags):
        found = np.array(flags, dtype=bool)
    if not isinstance(found, np.ndarray) or found.dtype != np.bool_ or found.ndim != 1:
        raise InputError(
            f"choice of group '{group.name}' is {_shown(flags)}; give {group.units} booleans, True "
            f"for a unit that stays (of indices: np.isin(np.arange({group.units}), indices))"
        )
    if found.size != group.units:
        raise InputError(
            f"group '{group.name}' has {group.units} units, the choice {found.size}; give one "
            "boolean for each"
        )
    return found


def _shown(value: object) -> str:
    """A value in one short line."""
    text = " ".join(str(value).split())
    return f"{type(value).__name__} {text[:40]}{'...' if len(text) > 40 else ''}"


def _why_so_many(group: Group) -> str:
    if group.step == group.round_to:
        return ""
    in_unit = f", {group.channels_per_unit} in a unit" if group.channels_per_unit > 1 else ""
    return f" ({group.multiple} channels{in_unit})"


def attribute_size(use: AttributeUse, keep: BoolArray) -> int:
    """The size of the dim an attribute stands for, after a cut."""
    if use.ids is None:
        return use.value
    stays = keep[use.ids]
    return int(stays.reshape(stays.shape[0], -1).any(axis=1).sum())
