"""The optimizer of a training configuration."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from prunus.errors import InputError
from prunus.graph.connections import NORMS
from prunus.train.config import TrainConfig


def make_optimizer(
    network: nn.Module, config: TrainConfig, more: Sequence[nn.Parameter] = ()
) -> torch.optim.Optimizer:
    """SGD or AdamW over all parameters that require a gradient, and ``more`` beside them.

    Raises:
        InputError: No parameter requires a gradient.
    """
    decayed, exempt = split_parameters(network)
    if not decayed and not exempt:
        raise InputError("network has no parameter that requires a gradient; unfreeze some")
    decayed += more
    rest = 0.0 if config.exempt_norm_and_bias else config.weight_decay
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": exempt, "weight_decay": rest},
    ]
    groups = [group for group in groups if group["params"]]
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr)
    nesterov = config.nesterov and config.momentum > 0
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=nesterov)


def split_parameters(network: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Trainable parameters that weight decay is meant for, and those it is not: norms and biases.

    Vectors count as exempt wherever they are: scales of hand-written norms, layer scale.
    A parameter shared by several modules is listed once.
    """
    decayed: list[nn.Parameter] = []
    exempt: list[nn.Parameter] = []
    seen: set[int] = set()
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad or id(parameter) in seen:
                continue
            seen.add(id(parameter))
            plain = isinstance(module, NORMS) or name == "bias" or parameter.ndim <= 1
            (exempt if plain else decayed).append(parameter)
    return decayed, exempt
