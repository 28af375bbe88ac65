"""Prunus makes trained PyTorch networks smaller and faster, and proves it.

Names are imported when they are first used: ``import prunus`` alone does not load torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prunus.artifact import export as export
    from prunus.artifact import load as load
    from prunus.compute import Compute as Compute
    from prunus.data import TextOptions as TextOptions
    from prunus.data import from_datasets as from_datasets
    from prunus.data import load_data as load_data
    from prunus.errors import PrunusError as PrunusError
    from prunus.graph import certify as certify
    from prunus.graph import cut as cut
    from prunus.graph import hold_connections_ as hold_connections_
    from prunus.graph import trace as trace
    from prunus.method import Budget as Budget
    from prunus.plan import Plan as Plan
    from prunus.quantize import Deployment as Deployment
    from prunus.quantize import deploy as deploy
    from prunus.quantize import load_deployed as load_deployed
    from prunus.recipe import Deploy as Deploy
    from prunus.recipe import Prune as Prune
    from prunus.recipe import Recalibrate as Recalibrate
    from prunus.recipe import Recipe as Recipe
    from prunus.recipe import Repeat as Repeat
    from prunus.recipe import Student as Student
    from prunus.recipe import TextSuite as TextSuite
    from prunus.recipe import Train as Train
    from prunus.recipe import compare as compare
    from prunus.recipe import compress as compress
    from prunus.recipe import load_recipe as load_recipe
    from prunus.recipe import train_network as train_network
    from prunus.records import Source as Source
    from prunus.report import write_report as write_report
    from prunus.zoo import build as build

    __version__: str

__all__ = [
    "Budget",
    "Compute",
    "Deploy",
    "Deployment",
    "Plan",
    "Prune",
    "PrunusError",
    "Recalibrate",
    "Recipe",
    "Repeat",
    "Source",
    "Student",
    "TextOptions",
    "TextSuite",
    "Train",
    "__version__",
    "build",
    "certify",
    "compare",
    "compress",
    "cut",
    "deploy",
    "export",
    "from_datasets",
    "hold_connections_",
    "load",
    "load_data",
    "load_deployed",
    "load_recipe",
    "trace",
    "train_network",
    "write_report",
]

_HOMES = {
    "prunus.artifact": ("export", "load"),
    "prunus.compute": ("Compute",),
    "prunus.data": ("TextOptions", "from_datasets", "load_data"),
    "prunus.errors": ("PrunusError",),
    "prunus.graph": ("certify", "cut", "hold_connections_", "trace"),
    "prunus.method": ("Budget",),
    "prunus.plan": ("Plan",),
    "prunus.quantize": ("Deployment", "deploy", "load_deployed"),
    "prunus.recipe": (
        "Deploy",
        "Prune",
        "Recalibrate",
        "Recipe",
        "Repeat",
        "Student",
        "TextSuite",
        "Train",
        "compare",
        "compress",
        "load_recipe",
        "train_network",
    ),
    "prunus.records": ("Source",),
    "prunus.report": ("write_report",),
    "prunus.zoo": ("build",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Import a public name from its home when it is first asked for (PEP 562)."""
    if name == "__version__":
        value: Any = import_module("importlib.metadata").version("prunus")
    elif name in _HOME_OF:
        value = getattr(import_module(_HOME_OF[name]), name)
    else:
        raise AttributeError(f"module 'prunus' has no attribute '{name}'")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """All public names, also those that are not imported yet."""
    return sorted({*globals(), *__all__})
