"""What a genetic search can be told, and what each mode means where nothing is said."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from prunus.candidates import Quantity, Scoring
from prunus.plan import Record
from prunus.prune.importance import Importance

Mode = Literal["guided", "paper", "front"]


class GeneticOptions(Record):
    """Options of method ``genetic``; what is None is the mode's own (``settled``).

    ``mode``: ``paper`` as published, ``guided`` with importance, ``front`` for several objectives.
    ``population``: N of the paper. ``parents``: its K; not used by ``front``.
    ``generations``: After the initial population; 0 keeps the best of that.
    ``patience``: Stop when the best fitness has not improved by more than ``tolerance`` for so many
    generations, or the hypervolume of a ``front`` (1: of all that the first population spans) has
    not grown by more; None: never.
    ``crossover``: Probability that a child has two parents' genes; with ``break-point`` mixing p_c, the
    point itself.
    ``mutation``: p_mut, probability that a child is mutated. With ``uniform`` mixing a child of a
    single parent always is, unless p_mut is 0: the rate is p_mut + (1 - p_c)(1 - p_mut), 0.76 by default.
    ``swaps``: Share of the kept genes of a layer that a mutation swaps for dropped ones.
    ``moves``: Standard deviation of the logarithm of a layer's share in a ratio move; 0: no moves.
    ``jitter``: The same of the initial population's layers.
    ``temperature``: Of importance-weighted sampling: 0 takes the most important units, 1 draws in
    proportion to importance.
    ``sampling``: ``importance`` or ``uniform`` choice of units. ``importance``: which one.
    ``mixing``: ``break-point`` or ``uniform`` crossover.
    ``connections``: Share of the connections (kernels) that stay, in each round anew; 1: neurons
    alone are encoded.
    ``fitness``: As for ``Scoring``. ``images``: Of the search split. ``recalibration_images``: Of
    the training split, for batch-norm statistics. ``halving``: Drop candidates on the way;
    not used by ``front``.
    ``objectives``: Of mode ``front``, beside quality and what the target limits.
    ``front``: File of a front found before: its fittest network within the target, without a search.
    """

    mode: Mode = "guided"
    population: int = Field(default=30, ge=2)
    parents: int = Field(default=5, ge=1)
    generations: int = Field(default=10, ge=0)
    patience: int | None = Field(default=None, ge=1)
    tolerance: float = Field(default=1e-4, ge=0)
    crossover: float = Field(default=0.6, ge=0, le=1)
    mutation: float = Field(default=0.6, ge=0, le=1)
    swaps: float = Field(default=0.02, ge=0, le=0.5)
    moves: float | None = Field(default=None, ge=0, le=2)
    jitter: float = Field(default=0.3, gt=0, le=2)
    temperature: float = Field(default=0.2, ge=0, le=100)
    sampling: Literal["importance", "uniform"] | None = None
    importance: Importance = "l2"
    mixing: Literal["break-point", "uniform"] | None = None
    connections: float | None = Field(default=None, gt=0, le=1)
    fitness: Quantity | None = None
    images: int = Field(default=1000, ge=2)
    recalibration_images: int = Field(default=256, ge=2)
    halving: bool = True
    objectives: tuple[Literal["macs", "params"], ...] = ("macs",)
    front: str | None = Field(default=None, min_length=1)

    @model_validator(mode="before")
    @classmethod
    def _objectives(cls, values: Any) -> Any:
        """``macs,params`` as the command line gives it."""
        if isinstance(values, dict) and isinstance(values.get("objectives"), str):
            return {**values, "objectives": tuple(values["objectives"].split(","))}
        return values

    @field_validator("front")
    @classmethod
    def _is_there(cls, front: str | None) -> str | None:
        """A file that is missing is found out before the dense network is measured."""
        if front is not None and not Path(front).is_file():
            raise ValueError(
                "no such file; name the steps/01-prune.front.json of a run in mode front"
            )
        return front

    @model_validator(mode="after")
    def _fits(self) -> "GeneticOptions":
        if self.parents >= self.population and self.mode != "front":
            raise ValueError(
                f"parents={self.parents} must be fewer than population={self.population}"
            )
        allowed = {"front", "mode"} if self.mode == "front" else {"front"}
        idle = sorted(self.model_fields_set - allowed)
        if self.front is not None and idle:
            raise ValueError(
                f"{idle[0]}={getattr(self, idle[0])} is of a search, and front= picks without one: "
                "leave one of them out"
            )
        if not self.objectives or len(set(self.objectives)) < len(self.objectives):
            raise ValueError(f"objectives={self.objectives}: give at least one, each once")
        self._require_effect()
        return self

    def _require_effect(self) -> None:
        """Who asks for what this search does not look at would take its result for something else."""
        ranked = self.settled().sampling == "importance"
        effects = {
            "importance": (ranked, "sampling=importance"),
            "temperature": (ranked, "sampling=importance"),
            "tolerance": (self.patience is not None, "patience"),
            "objectives": (self.mode == "front", "mode=front"),
        }
        for name, (matters, when) in effects.items():
            if name in self.model_fields_set and not matters:
                raise ValueError(
                    f"{name}={getattr(self, name)!r} has no effect without {when}: set that too, or "
                    f"leave {name} out"
                )

    def settled(self) -> "GeneticOptions":
        """The options with the mode's own values in the place of None."""
        paper = self.mode == "paper"
        own = {
            "moves": 0.0 if paper else 0.3,
            "sampling": "uniform" if paper else "importance",
            "mixing": "break-point" if paper else "uniform",
            "connections": 0.9 if paper else 1.0,
            "fitness": "loss" if paper else "kl",
        }
        return self.model_copy(
            update={name: value for name, value in own.items() if getattr(self, name) is None}
        )

    def scoring(self) -> Scoring:
        """How candidates are scored; ``kl`` where no mode has settled the fitness."""
        return Scoring(
            images=self.images,
            calibration_images=self.recalibration_images,
            fitness=self.fitness or "kl",
        )
