"""Which parts of a network the user's ``ignore`` names, as far as its groups tell."""

from prunus.graph import Trace


def ignored_alone(trace: Trace, path: str) -> bool:
    """Whether ``ignore`` names something in this module: channels that it alone produces.

    Of channels that others produce as well (what a residual adds up) it may be theirs that are named.
    """
    return any(
        group.ignored
        and all(axis.tensor.startswith(f"{path}.") for axis in group.axes if axis.role == "out")
        for group in trace.groups
    )


def ignored_in(trace: Trace, path: str) -> bool:
    """Whether ``ignore`` keeps any channels that this module produces, alone or with others."""
    return any(name.startswith(f"{path}.") for name in trace.ignored_tensors)
