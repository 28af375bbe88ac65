"""Copies of a network whose dropout and drop-path rates are zero, so that its train mode can be compared.

Layers of torch are known. In other modules a rate is a number that is named for it, ``drop_path`` or
``hidden_dropout_prob``, and that evaluation does not read: what a decay of attention named ``dropoff``
does is a part of the network.
"""

import copy
from collections.abc import Iterator
from typing import Any

from torch import nn

from prunus.graph.attributes import is_settings, with_entries
from prunus.graph.difference import relative_difference
from prunus.graph.inputs import Inputs, call

_SAME = 1e-6  # kernels that torch picks by memory alignment round otherwise


def without_dropout(network: nn.Module, inputs: Inputs) -> nn.Module:
    """A copy in evaluation mode whose rates are zero.

    Args:
        network: Not touched.
        inputs: What it runs on. Where its evaluation draws numbers, as does ``F.dropout`` without
            ``training``, all that is named for a rate is one.
    """
    names = set(_named(network))
    quiet = _zeroed(network, names)
    if not names:
        return quiet
    answer = _answer(network, inputs)
    if _leaves(answer, quiet, inputs) or _differ(answer, _answer(network, inputs)):
        return quiet
    unread = {name for name in names if _leaves(answer, _zeroed(network, {name}), inputs)}
    return _zeroed(network, unread)


def draws_in_evaluation(network: nn.Module, inputs: Inputs) -> bool:
    """Whether a network draws random numbers in evaluation."""
    return _differ(_answer(network, inputs), _answer(network, inputs))


def _answer(network: nn.Module, inputs: Inputs) -> Any:
    """What a network answers in evaluation."""
    return call(copy.deepcopy(network).eval(), inputs)


def _differ(one: Any, other: Any) -> bool:
    return not relative_difference(one, other) <= _SAME


def _leaves(answer: Any, changed: nn.Module, inputs: Inputs) -> bool:
    """Whether a network that was changed still answers the same."""
    try:
        return not _differ(answer, call(changed, inputs))
    except Exception:  # noqa: BLE001 - such as a division by what is zero now
        return False


def _named(network: nn.Module) -> Iterator[str]:
    """Names of numbers that may be rates, on modules and in the settings that they hold."""
    for module in network.modules():
        for name, value in vars(module).items():
            if is_settings(value):
                yield from (key for key, entry in vars(value).items() if _may_be_rate(key, entry))
            elif _may_be_rate(name, value):
                yield name


def _may_be_rate(name: str, value: Any) -> bool:
    return "drop" in name.lower() and isinstance(value, float) and 0 < value <= 1


def _zeroed(network: nn.Module, names: set[str]) -> nn.Module:
    """A copy in evaluation mode in which dropout layers, and the numbers of these names, are zero."""
    quiet = copy.deepcopy(network).eval()
    for module in quiet.modules():
        for name, value in list(vars(module).items()):
            if is_settings(value):
                rates = dict.fromkeys(_rates(vars(value), names), 0.0)
                module.__dict__[name] = with_entries(value, rates) if rates else value
        module.__dict__.update(dict.fromkeys(_rates(vars(module), names), 0.0))
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
    return quiet


def _rates(entries: dict[str, Any], names: set[str]) -> list[str]:
    return [key for key, value in entries.items() if key in names and _may_be_rate(key, value)]
