"""Transformer encoders of ``torch.nn``, which in evaluation leave the way through their modules."""

import copy

from torch import nn


def call_parts_(network: nn.Module, part: nn.Module | None = None) -> None:
    """Have encoder layers call their modules, not a kernel that reads ``weight`` of ``nn.Linear``.

    Args:
        network: Changed in place.
        part: Only the layers that hold this module; all where left out.
    """
    for layer in network.modules():
        if isinstance(layer, nn.TransformerEncoderLayer) and (
            part is None or any(module is part for module in layer.modules())
        ):
            # With another activation than the kernel's two, as the layer asks before it calls it.
            layer.activation_relu_or_gelu = 0


def pad_plainly_(network: nn.Module) -> None:
    """Keep encoders of ``torch.nn`` from packing padded batches, whose tensors have no sizes to follow."""
    for module in network.modules():
        if isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False


def packs_padding(network: nn.Module) -> bool:
    """Whether encoders of ``torch.nn`` pack padded batches in evaluation, which zeroes the padding."""
    return any(
        isinstance(module, nn.TransformerEncoder) and module.use_nested_tensor
        for module in network.modules()
    )


def without_packing(network: nn.Module) -> nn.Module:
    """The network, or a copy of it where it packs padded batches: outputs of layers have sizes then."""
    if not packs_padding(network):
        return network
    plain = copy.deepcopy(network)
    pad_plainly_(plain)
    return plain
