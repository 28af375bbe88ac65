"""The stack of like layers that a transformer is built of."""

from collections.abc import Iterator

from torch import nn

from prunus.errors import GraphError

Stack = nn.ModuleList | nn.Sequential
_Known = tuple[str, type[nn.Module]]


def layer_stacks(network: nn.Module) -> tuple[str, ...]:
    """Paths of all stacks of at least two layers of one class, the largest first.

    The largest has most parameters; a stack inside a layer of another one does not count.
    """
    return _largest_first(network, None)


def main_stack(network: nn.Module, purpose: str, teacher: nn.Module | None = None) -> str:
    """Path of the largest stack.

    Args:
        network: Any.
        purpose: What it is needed for, for the message.
        teacher: Of a student: one layer of its kind, or in its place, is a stack, too.

    Raises:
        GraphError: The network has none.
    """
    known: _Known | None = None
    if teacher is not None:
        place = main_stack(teacher, purpose)
        known = place, type(next(teacher.get_submodule(place).children()))
    stacks = _largest_first(network, known)
    if not stacks:
        raise GraphError(
            f"{purpose} needs a stack of like layers, as transformers have; "
            f"{type(network).__name__} has none; use what works without one (another method, or "
            "distill_alpha alone)"
        )
    return stacks[0]


def _largest_first(network: nn.Module, known: _Known | None) -> tuple[str, ...]:
    found: dict[str, int] = {}
    for path, module in _outermost(network, known):
        found[path] = sum(p.numel() for p in module.parameters())
    return tuple(sorted(found, key=lambda path: (-found[path], path)))


def _outermost(
    module: nn.Module, known: _Known | None, path: str = ""
) -> Iterator[tuple[str, Stack]]:
    for name, child in module.named_children():
        here = f"{path}.{name}" if path else name
        if isinstance(child, nn.ModuleList | nn.Sequential) and (
            _alike(child) or _alone(child, here, known)
        ):
            yield here, child
        else:
            yield from _outermost(child, known, here)


def _alike(stack: Stack) -> bool:
    kinds = {type(layer) for layer in stack}
    # Plain layers of PyTorch in a row are no blocks: a layer that is left out would change widths.
    return len(stack) > 1 and len(kinds) == 1 and any(True for _ in stack[0].children())


def _alone(stack: Stack, path: str, known: _Known | None) -> bool:
    """Whether the only layer of a list is what a known stack is made of."""
    if known is None or len(stack) != 1:
        return False
    place, kind = known
    # Code that is loaded twice has two classes of one name; a wrapper puts its own name in front.
    return type(stack[0]) is kind or f".{place}".endswith(f".{path}")
