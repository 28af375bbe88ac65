"""Keep the configuration of a Hugging Face network true after a cut, where one number still can be.

What a module reads from its config while it runs is followed by the trace (``SetAttribute``). The
config of the whole network is for its readers: it gets the new width, feed-forward width and head
count where all layers agree on them. Where layers differ no single number is right, and the old one
stays; the plan is what rebuilds the network, never the config. A model inside that shares the config
(``network.bert``) gets the same: it can be saved on its own.

Where layers go, the config is read while the network runs: a cache takes the depth from it, and some
models look up in lists of it what kind each layer is. So all modules get it.
"""

from collections.abc import Iterable, Iterator, Mapping
from itertools import compress

import numpy as np
import torch
from torch import nn

from prunus.graph.attributes import with_entries
from prunus.graph.computed import weight_of
from prunus.plan import BoolArray

_WIDTH = ("hidden_size", "d_model", "n_embd", "dim", "embed_dim")
_FEED_FORWARD = ("intermediate_size", "ffn_dim", "hidden_dim", "d_ff", "n_inner", "d_inner")
HEAD_COUNTS = (
    *("num_attention_heads", "n_head", "num_heads", "n_heads", "encoder_attention_heads"),
    *("num_key_value_heads", "num_kv_heads", "n_kv_heads", "n_kv_head"),
)
_DEPTHS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers", "encoder_layers")
_DECODER_DEPTHS = ("decoder_layers", "num_decoder_layers")
_PER_LAYER = (
    *("layer_types", "mlp_layer_types", "layers_block_type", "attention_layers"),
    *("attention_window", "no_rope_layers", "kv_sharing_modes", "indexer_types"),
    *("layer_rope_theta", "layers_num_experts", "per_layer_config"),
)
"""Lists with an entry for each layer; told by name, as others may be as long by chance."""

_LAYERS = ("mlp_only_layers", "moe_layers", "full_attn_idxs")
"""Lists of places of layers."""

_FIRST_LAYERS = ("first_k_dense_replace",)
"""How many of the first layers are of a kind."""


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


def set_depth_(network: nn.Module, stack: str, keep: BoolArray) -> None:
    """Tell the configs of a network, and of the models around a stack, which of its layers stay.

    Args:
        network: Any; one without configs stays as it is.
        stack: Path of the layers.
        keep: One flag for each layer that there was.
    """
    models = models_around(network, stack)
    inner = list(models[-1].modules()) if models else []
    fresh: dict[int, object] = {}
    for module in (*inner, *reversed(models)):  # a config that holds another one comes behind it
        config = own_config(module)
        if config is None or id(config) in fresh:
            continue
        new = _of_depth(config, "decoder" in stack.split("."), keep)
        parts = {name: fresh[id(v)] for name, v in vars(config).items() if id(v) in fresh}
        if new or parts:
            fresh[id(config)] = with_entries(config, {**new, **parts})
    for module in network.modules():
        module_config = own_config(module)
        if id(module_config) in fresh:
            module.__dict__["config"] = fresh[id(module_config)]


def models_around(network: nn.Module, path: str) -> list[nn.Module]:
    """Models of transformers that a module is in, the outermost first."""
    names = path.split(".")
    around = [network.get_submodule(".".join(names[:n])) for n in range(len(names))]
    return [module for module in around if own_config(module) is not None]


def _of_depth(config: object, decoder: bool, keep: BoolArray) -> dict[str, object]:
    """Entries of a config that told of all layers, as they are for those that stay; none where none did."""
    entries = vars(config)
    # Of an encoder and a decoder, unless it is the decoder's own.
    two = entries.get("is_encoder_decoder") and not entries.get("is_decoder")
    depths = (*(_DECODER_DEPTHS if decoder else ()), *(() if two and decoder else _DEPTHS))
    found: dict[str, object] = {
        name: int(keep.sum()) for name in depths if entries.get(name) == keep.size
    }
    if not found:
        return {}
    for name in _PER_LAYER:
        value = entries.get(name)
        if isinstance(value, list | tuple) and len(value) == keep.size:
            found[name] = type(value)(compress(value, keep))
    places = {int(old): new for new, old in enumerate(np.flatnonzero(keep))}
    for name in _LAYERS:
        value = entries.get(name)
        if isinstance(value, list | tuple):
            found[name] = type(value)(places[old] for old in value if old in places)
    for name in _FIRST_LAYERS:
        value = entries.get(name)
        if isinstance(value, int):
            found[name] = int(keep[:value].sum())
    return found


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
