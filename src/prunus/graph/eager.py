"""Fused attention of ``transformers`` written out as matrix products, in all settings of a network."""

from collections.abc import Callable
from typing import Any

from torch import nn

_CHOSEN = "_attn_implementation"


def write_attention_out_(network: nn.Module | None) -> Callable[[], None]:
    """Have the layers of a network of ``transformers`` compute attention so that it can be read.

    The library sets what the outermost module's settings say. Layers of a network that was cut have
    copies of them, with widths and head counts of their own, that it does not reach: those are set here.

    Returns:
        What gives all settings back.
    """
    before: dict[int, tuple[Any, Any]] = {}
    outermost: Callable[[str], Any] | None = None
    for module in () if network is None else network.modules():
        settings = vars(module).get("config")
        if hasattr(settings, _CHOSEN):
            before.setdefault(id(settings), (settings, getattr(settings, _CHOSEN)))
            outermost = outermost or getattr(module, "set_attn_implementation", None)
    if outermost is None:
        return lambda: None
    outermost("eager")  # which may refuse, and sets what lies within the settings
    for settings, _ in before.values():
        setattr(settings, _CHOSEN, "eager")

    def give_back() -> None:
        for settings, chosen in before.values():
            setattr(settings, _CHOSEN, chosen)

    return give_back
