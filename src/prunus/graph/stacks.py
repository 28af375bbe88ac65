"""The stack of like layers that a transformer is built of."""

from collections.abc import Iterator

from torch import nn

from prunus.errors import GraphError

Stack = nn.ModuleList | nn.Sequential


def layer_stacks(network: nn.Module) -> tuple[str, ...]:
    """Paths of all stacks of at least two layers of one class, the largest first.

    The largest has most parameters; a stack inside a layer of another one does not count.
    """
    found: dict[str, int] = {}
    for path, module in _outermost(network):
        found[path] = sum(p.numel() for p in module.parameters())
    return tuple(sorted(found, key=lambda path: (-found[path], path)))


def main_stack(network: nn.Module, purpose: str) -> str:
    """Path of the largest stack.

    Args:
        network: Any.
        purpose: What it is needed for, for the message.

    Raises:
        GraphError: The network has none.
    """
    stacks = layer_stacks(network)
    if not stacks:
        raise GraphError(
            f"{purpose} needs a stack of like layers, as transformers have; "
            f"{type(network).__name__} has none; use what works without one (another method, or "
            "distill_alpha alone)"
        )
    return stacks[0]


def _outermost(module: nn.Module, path: str = "") -> Iterator[tuple[str, Stack]]:
    for name, child in module.named_children():
        here = f"{path}.{name}" if path else name
        if isinstance(child, nn.ModuleList | nn.Sequential) and _alike(child):
            yield here, child
        else:
            yield from _outermost(child, here)


def _alike(stack: Stack) -> bool:
    kinds = {type(layer) for layer in stack}
    # Plain layers of PyTorch in a row are no blocks: a layer that is left out would change widths.
    return len(stack) > 1 and len(kinds) == 1 and any(True for _ in stack[0].children())
