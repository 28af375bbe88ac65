"""What modules keep between forward passes in evaluation, computed from their parameters.

LeViT, TinyViT and EfficientFormer look their position biases up once, when they first answer or when
their evaluation begins, and keep the result until they are trained again. Copied along, it is of the
uncut network: too wide for a cut one, or another candidate's.
"""

from collections.abc import Iterable

from torch import nn

from prunus.graph.inputs import flat_tensors

# Where torch keeps what it knows of itself.
_REGISTERED = frozenset({"_parameters", "_buffers", "_modules"})


def may_keep(network: nn.Module) -> list[nn.Module]:
    """Modules that do something of their own when the mode changes."""
    return [m for m in network.modules() if type(m).train is not nn.Module.train]


def refresh_(modules: Iterable[nn.Module]) -> None:
    """Have modules drop tensors that they keep, as they do when they are trained; modes stay.

    What they make when their evaluation begins is made anew, of the tensors they have now.

    Args:
        modules: As ``may_keep`` finds them.
    """
    for module in modules:
        if _keeps(module):
            modes = [(inner, inner.training) for inner in module.modules()]
            module.train(True)
            if not modes[0][1]:
                module.train(False)
            for inner, mode in modes:
                inner.training = mode


def _keeps(module: nn.Module) -> bool:
    return any(
        True
        for name, value in vars(module).items()
        if name not in _REGISTERED
        for _ in flat_tensors(value)
    )
