"""What layers are given while a network runs."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from prunus.graph.inputs import Inputs, call

Reader = Callable[[Tensor, Tensor | None], None]
"""Takes what a layer is given, and the attention mask of its batch, where it has one."""


def watch(
    network: nn.Module, readers: Mapping[nn.Module, Reader], batches: Iterable[Inputs]
) -> None:
    """Run a network, as it is and without gradients, and show what its layers are given.

    Args:
        network: Its layers are hooked for as long.
        readers: By layer: called at every call of the layer, with its first tensor, if that is not empty.
        batches: Where the network is.
    """
    mask: list[Tensor | None] = [None]

    def shown(see: Reader) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            given = next((v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)), None)
            if given is not None and given.numel():
                see(given, mask[0])

        return hook

    handles = [
        layer.register_forward_pre_hook(shown(see), with_kwargs=True)
        for layer, see in readers.items()
    ]
    try:
        for batch in batches:
            found = batch.get("attention_mask") if isinstance(batch, Mapping) else None
            mask[0] = found if isinstance(found, Tensor) else None
            call(network, batch)
    finally:
        for handle in handles:
            handle.remove()


def without_padding(given: Tensor, mask: Tensor | None) -> Tensor:
    """What belongs to pieces of a text, as rows ``[pieces, in]``; ids of pieces as ``[pieces]``.

    All positions, ``[..., in]``, where there is no mask or it is one of other positions, or of floats,
    which are added to scores and not flags.
    """
    if mask is None or mask.is_floating_point():
        return given
    positions = given.shape[:-1] if given.is_floating_point() else given.shape
    return given if mask.shape != positions else given[mask.bool()]
