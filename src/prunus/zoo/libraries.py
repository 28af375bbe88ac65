"""Networks of timm and torchvision by name."""

from typing import Any

import torch
from torch import nn

from prunus.errors import InputError, first_line
from prunus.extras import require_extra
from prunus.zoo.checks import require_module


def from_timm(name: str, arguments: dict[str, Any]) -> nn.Module:
    """A network of timm; the argument ``pretrained`` says whether its weights are fetched.

    Raises:
        InputError: It cannot be built.
        MissingExtraError: timm is not installed.
    """
    timm = require_extra("timm", "zoo")
    try:
        network = timm.create_model(name, **arguments)
    except (RuntimeError, ValueError, TypeError, KeyError, OSError) as error:
        raise InputError(
            f"model 'timm:{name}' cannot be built: {first_line(error)}; see timm.list_models()"
        ) from error
    return require_module(network, f"timm:{name}")


def from_torchvision(name: str, arguments: dict[str, Any]) -> nn.Module:
    """A network of torchvision; ``pretrained`` says whether its default weights are fetched.

    Raises:
        InputError: It cannot be built.
        MissingExtraError: torchvision is not installed.
    """
    models = require_extra("torchvision.models", "zoo")
    pretrained = arguments.pop("pretrained")
    try:
        network = require_module(
            models.get_model(name, weights=None, **arguments), f"torchvision:{name}"
        )
        if pretrained:
            # Not through get_model: it would unpickle the download.
            url = models.get_model_weights(name).DEFAULT.url
            state = torch.hub.load_state_dict_from_url(
                url, map_location="cpu", progress=False, check_hash=True, weights_only=True
            )
            network.load_state_dict(state)
    except (RuntimeError, ValueError, TypeError, AttributeError, OSError) as error:
        raise InputError(
            f"model 'torchvision:{name}' cannot be built: {first_line(error)}; "
            "see torchvision.models.list_models(), or set the argument 'pretrained' to false"
        ) from error
    return network
