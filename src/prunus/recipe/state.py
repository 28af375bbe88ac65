"""What steps work with, the network as it is now, and what happened in a step."""

from dataclasses import dataclass, field, replace
from pathlib import Path

from pydantic import Field
from torch import nn

from prunus.compute import Compute
from prunus.data import DataSplits
from prunus.graph import Inputs, Trace
from prunus.plan import Plan, Record
from prunus.progress import Progress, Silent
from prunus.recipe.measure import LatencyOptions, Look
from prunus.recipe.recipe import Recipe
from prunus.recipe.subject import Subject
from prunus.records import (
    Certificate,
    DeployedRow,
    Environment,
    FrontPoint,
    HistoryPoint,
    Source,
)


@dataclass(frozen=True)
class Tools:
    """What every step may use.

    Attributes:
        subject: The dense network and its data; also the teacher of a distillation.
        dense_trace: Of the dense network.
        recipe: With the seed; its settings of the trace hold for later cuts, too.
        journal: File that is told of looks at the test split before they happen.
        steps: Folder of what steps keep; None: a killed search begins anew.
        engines: Folder of the dense network as each engine runs it; None: a temporary one.
        teacher_logits: Folder of what teachers said, shared by the runs of a comparison.
        several_cuts: Whether the recipe cuts more than once.
        device: ``"cpu"`` or ``"cuda"``.
        latency: How it is measured, if at all.
        progress: Told of everything.
        compute: Where and how searches score their candidates.
    """

    subject: Subject
    dense_trace: Trace
    recipe: Recipe
    journal: Path | None = None
    steps: Path | None = None
    engines: Path | None = None
    teacher_logits: Path | None = None
    several_cuts: bool = False
    device: str = "cpu"
    latency: LatencyOptions | None = None
    progress: Progress = field(default_factory=Silent)
    compute: Compute = field(default_factory=Compute)


@dataclass(frozen=True)
class State:
    """The network as it is now, and how it came to be.

    Attributes:
        network: Now.
        origin: What it was cut from: the dense network, or a student with its fresh weights.
        data: In the pieces that the network knows now.
        inputs: A real batch in the same pieces.
        uncut: The network before its first cut, trained as it was by then: what searches hold their
            candidates against.
        plans: That led from the origin to the network.
        fresh: Whether its weights were drawn, and have not been trained yet.
        deployed: Files that an engine runs, where the network was deployed.
    """

    network: nn.Module
    origin: Subject
    data: DataSplits
    inputs: Inputs
    uncut: nn.Module
    plans: tuple[Plan, ...] = ()
    fresh: bool = False
    deployed: Path | None = None

    @classmethod
    def begin(cls, subject: Subject) -> "State":
        """Before the first step."""
        return cls(subject.network, subject, subject.data, subject.inputs, subject.network)

    def trained(self, network: nn.Module) -> "State":
        """After a training."""
        return replace(self.recalibrated(network), fresh=False)

    def recalibrated(self, network: nn.Module) -> "State":
        """After a step that gave the network other values and no other shape, and trained no weight."""
        return replace(self, network=network, uncut=self.uncut if self.plans else network)


class Outcome(Record):
    """What happened in a step: kept beside the network, so that a resumed run need not repeat it.

    ``student`` builds what the network was cut from, from a step ``student`` on. ``judged`` is what
    a step between stages scores on the search split. ``environment`` is where it ended: a run may be
    resumed elsewhere.
    """

    path: str
    fresh: bool = False
    student: Source | None = None
    seconds: dict[str, float] = Field(default_factory=dict)
    look: Look | None = None
    judged: HistoryPoint | None = None
    certificate: Certificate | None = None
    history: tuple[HistoryPoint, ...] = ()
    front: tuple[FrontPoint, ...] = ()
    deployed: DeployedRow | None = None
    environment: Environment | None = None
    notes: tuple[str, ...] = ()
