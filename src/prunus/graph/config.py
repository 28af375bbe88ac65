"""Keep the configuration of a Hugging Face network true after a cut, where one number still can be.

What a module reads from its config while it runs is followed by the trace (``SetAttribute``). The
config of the whole network is for its readers: it gets the new width, feed-forward width and head
count where all layers agree on them. Where layers differ no single number is right, and the old one
stays; the plan is what rebuilds the network, never the config. A model inside that shares the config
(``network.bert``) gets the same: it can be saved on its own.
"""

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import nn

from prunus.graph.attributes import with_entries
from prunus.graph.computed import weight_of

_WIDTH = ("hidden_size", "d_model", "n_embd", "dim", "embed_dim")
_FEED_FORWARD = ("intermediate_size", "ffn_dim", "hidden_dim", "d_ff", "n_inner", "d_inner")
HEAD_COUNTS = ("num_attention_heads", "n_head", "num_heads", "n_heads", "encoder_attention_heads")


def sync_config_(network: nn.Module, dense: nn.Module) -> None:
    """Give a cut network a config of its own with the sizes that hold for all its layers.

    Args:
        network: The cut network, with the dense one's config.
        dense: The network it was cut from.
    """
    config = own_config(network)
    if config is None:
        return
    found = {
        **_agreed(config, _WIDTH, _embedding_widths(dense), _embedding_widths(network)),
        **_agreed(config, _FEED_FORWARD, _output_widths(dense), _output_widths(network)),
        **_agreed(config, HEAD_COUNTS, _head_counts(dense), _head_counts(network)),
    }
    if found:
        # By the dense one: a number that the network itself reads has given it a config of its own.
        set_config_(network, found, _holders(dense))


def own_config(network: nn.Module) -> object | None:
    """The config of a Hugging Face network; None for others."""
    config = vars(network).get("config")
    return config if hasattr(config, "to_dict") else None


def set_config_(
    network: nn.Module, found: Mapping[str, object], holders: Iterable[str] | None = None
) -> None:
    """Give a network, and the models inside that share its config, new entries in copies of it.

    Args:
        network: Of Hugging Face, with a config.
        found: The entries.
        holders: Paths of the models; None: the network, and those that hold the very config.
    """
    copies: dict[int, object] = {}
    for path in _holders(network) if holders is None else holders:
        module = network.get_submodule(path)
        config = vars(module)["config"]
        if id(config) not in copies:
            copies[id(config)] = with_entries(config, found)
        module.__dict__["config"] = copies[id(config)]


def _holders(network: nn.Module) -> list[str]:
    """Paths of the network and of the models inside that hold the very config it does."""
    config = own_config(network)
    return [
        path
        for path, module in network.named_modules()
        if vars(module).get("config") is config
        and (module is network or hasattr(module, "save_pretrained"))
    ]


def _agreed(
    config: object, names: Iterable[str], before: dict[str, int], after: dict[str, int]
) -> dict[str, int]:
    """New values of the names whose old value stood for layers that now all have one size."""
    found = {}
    for name in names:
        old = getattr(config, name, None)
        new = {after[path] for path, size in before.items() if size == old and path in after}
        if len(new) == 1 and new != {old}:
            found[name] = new.pop()
    return found


def _embedding_widths(network: nn.Module) -> dict[str, int]:
    return {name: shape[1] for name, shape in _shapes(network, nn.Embedding)}


def _output_widths(network: nn.Module) -> dict[str, int]:
    return {name: shape[0] for name, shape in _shapes(network, nn.Linear)}


def _shapes(network: nn.Module, kind: type[nn.Module]) -> Iterator[tuple[str, torch.Size]]:
    """Names of the layers of a kind, and the shapes of their weights."""
    for name, module in network.named_modules():
        if isinstance(module, kind) and (weight := weight_of(module)) is not None:
            yield name, weight.shape


def _head_counts(network: nn.Module) -> dict[str, int]:
    return {
        f"{path}.{name}": int(vars(module)[name])
        for path, module in network.named_modules()
        for name in HEAD_COUNTS
        if isinstance(vars(module).get(name), int)
    }
