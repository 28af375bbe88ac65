"""MACs, counted by running the network on shapes and watching every ATen operation.

This counter knows nothing of a trace or of layer types: it is the independent check of the formulas.
"""

from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch._ops import HigherOrderOperator, OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from prunus.errors import InputError
from prunus.graph import plain_attention
from prunus.meter.contractions import RULES, Contraction, may_contract
from prunus.meter.params import require_shapes
from prunus.meter.predictor import ExampleInputs, call
from prunus.meter.shadow import Place, Shadow, WeightShares
from prunus.plan import Record
from prunus.seeding import random_states_kept

# All that a network's own code may raise on tensors without values. It is run again with values, and
# what it raises then is reported.
_FAILURES = (
    ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError,
)  # fmt: skip

_COPIES = frozenset({"aten::_to_copy", "aten::clone"})


class MacCount(Record):
    """MACs of one forward pass at the stated shape; one multiply-add is one MAC.

    ``effective_macs`` scales an operation by the share of nonzero entries of its weight, where that
    weight is a parameter of the network, a view or a cast of one; all else counts fully (masks that
    are multiplied in on the fly too). ``by_module`` names the innermost module that ran the
    operation ("" is the network itself). ``uncounted`` names operations that contract, or may, and
    have no rule.
    """

    macs: int = Field(ge=0)
    effective_macs: int = Field(ge=0)
    by_module: dict[str, int] = Field(default_factory=dict)
    uncounted: tuple[str, ...] = ()


def count_macs(network: nn.Module, example_inputs: ExampleInputs) -> MacCount:
    """Count the MACs of one forward pass in eval mode.

    The count is for the batch of ``example_inputs``: give one sample for MACs per sample. Counted
    are convolutions, matrix products and attention, whatever its back end, and recurrent layers;
    embeddings, normalization, pooling, bias and element-wise work are 0; a causal mask brings no
    discount. A copy is run, on meta tensors, or on the CPU where the network needs values; the
    network itself is never touched.

    Args:
        network: Any network, in any mode, on any device.
        example_inputs: A tensor, a tuple of positional or a mapping of keyword arguments.

    Raises:
        InputError: The network fails on these inputs, or has uninitialized lazy parameters.

    >>> count_macs(nn.Linear(3, 2), torch.zeros(1, 3)).macs
    6
    """
    require_shapes(network)
    try:
        return _count(network, example_inputs, "meta")
    except _FAILURES:
        pass  # needs values, or has an operation without meta kernel
    try:
        return _count(network, example_inputs, "cpu")
    except _FAILURES as error:
        first = next(iter(str(error).splitlines()), "")
        raise InputError(
            f"network failed on example_inputs ({_describe(example_inputs)}): "
            f"{type(error).__name__}: {first}; MACs are counted by a run on the CPU, give inputs "
            "that it accepts there"
        ) from error


def _count(network: nn.Module, example_inputs: ExampleInputs, place: Place) -> MacCount:
    shadow = Shadow(network, place)
    inputs = tree_map_only(Tensor, lambda t: t.detach().to(place, copy=True), example_inputs)
    counter = _Counter(shadow.weights, _Whereabouts(shadow.network))
    # Not inference mode: there, composite operations reach the counter whole.
    with random_states_kept(), torch.no_grad(), plain_attention(), counter:
        call(shadow.network, inputs)
    return MacCount(
        macs=sum(counter.by_module.values()),
        effective_macs=int(counter.effective),
        by_module=dict(sorted(counter.by_module.items())),
        uncounted=tuple(sorted(counter.uncounted)),
    )


class _Whereabouts:
    """Knows the innermost module that is running, by hooks on a network of our own."""

    def __init__(self, network: nn.Module) -> None:
        self._stack = [""]
        for name, module in network.named_modules():
            if isinstance(module, torch.jit.ScriptModule):
                continue  # takes no hooks; its work goes to the module that called it
            module.register_forward_pre_hook(self._enter(name), prepend=True)
            module.register_forward_hook(self._leave, always_call=True)

    @property
    def innermost(self) -> str:
        return self._stack[-1]

    def _enter(self, name: str) -> Callable[[nn.Module, Any], None]:
        def enter(_module: nn.Module, _inputs: Any) -> None:
            self._stack.append(name)

        return enter

    def _leave(self, _module: nn.Module, _inputs: Any, _output: Any) -> None:
        self._stack.pop()


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]  # not annotated there
    """Sums the rules over every operation that is dispatched."""

    supports_higher_order_operators = True

    def __init__(self, weights: WeightShares, whereabouts: _Whereabouts) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # not annotated there
        self.by_module: dict[str, int] = {}
        self.effective = Fraction(0)
        self.uncounted: set[str] = set()
        self._weights = weights
        self._whereabouts = whereabouts

    def __torch_dispatch__(
        self,
        func: OpOverload | HigherOrderOperator,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        if isinstance(func, HigherOrderOperator):
            self.uncounted.add(func.__name__)
            return func(*args, **kwargs)
        name = func._schema.name
        if name in _SHAPES and args[0].is_meta:
            return _SHAPES[name](args[0])
        rule = RULES.get(name)
        if rule is None:
            # A forward under inference mode hands over composite operations whole.
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        out = func(*args, **kwargs)
        if rule is not None:
            for contraction in rule(args, out):
                self._add(contraction)
        elif name in _COPIES:
            self._weights.follow(args[0], out)
        elif may_contract(name):
            self.uncounted.add(name.replace("::", "."))
        return out

    def _add(self, contraction: Contraction) -> None:
        if contraction.macs == 0:
            return
        shares = (self._weights.share(operand) for operand in contraction.operands)
        # Where both operands are weights the sparser one bounds what is left.
        share = min((share for share in shares if share is not None), default=Fraction(1))
        self.effective += contraction.macs * share
        where = self._whereabouts.innermost
        self.by_module[where] = self.by_module.get(where, 0) + contraction.macs


# Free of MACs, and slow on meta tensors: torch takes them apart in Python, milliseconds a layer. The
# statistics that a batch norm gives beside its output are for a backward pass.
_SHAPES: dict[str, Callable[[Tensor], Any]] = {
    "aten::hardtanh": torch.empty_like,
    "aten::native_batch_norm": lambda x: (torch.empty_like(x), x.new_empty(0), x.new_empty(0)),
}


def _describe(inputs: ExampleInputs) -> str:
    if isinstance(inputs, Mapping):
        return ", ".join(f"{name}: {_describe_one(value)}" for name, value in inputs.items())
    entries = inputs if isinstance(inputs, tuple | list) else (inputs,)
    return ", ".join(_describe_one(value) for value in entries)


def _describe_one(value: Any) -> str:
    return str(list(value.shape)) if isinstance(value, Tensor) else type(value).__name__
