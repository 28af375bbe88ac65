"""The steps of a recipe: frozen records, written in YAML as ``- prune: {method: l1, target: macs=0.5}``."""

from typing import Annotated, Any, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    SerializerFunctionWrapHandler,
    WrapSerializer,
    model_validator,
)

from prunus.plan import Record
from prunus.quantize import Deployment
from prunus.records import Source
from prunus.train import TrainConfig


def _no_number(target: object) -> object:
    if isinstance(target, int | float):
        raise ValueError(  # noqa: TRY004  # the kind that pydantic reports
            f"a number names no quantity: write macs={target:g}, params= or size="
        )
    return target


class Prune(Record):
    """Cut: a method decides within a budget, the network is cut by its plan.

    Attributes:
        method: Name of a method, as ``prunus methods`` lists them.
        target: Budget such as ``macs=0.5``: a share of the *dense* network, or an absolute limit.
            Left out where the method's own options say how small the network gets.
        options: Of the method.
    """

    step: Literal["prune"] = "prune"
    method: str
    target: Annotated[str, BeforeValidator(_no_number)] = ""
    options: dict[str, Any] = Field(default_factory=dict)


class Recalibrate(Record):
    """Measure batch-norm statistics anew, without training.

    Attributes:
        images: Training images used.
        batch_size: Images per batch.
        augment: Augmented as in a training; false: as they are. ``auto``: as the dense network's own
            statistics are, which tell what it was trained on.
    """

    step: Literal["recalibrate"] = "recalibrate"
    images: int = Field(default=1024, ge=2)
    batch_size: int = Field(default=64, ge=2)
    augment: Literal["auto", True, False] = "auto"


class Train(TrainConfig):
    """Train: fine-tune, or distil from the dense network where ``distill_alpha`` is above 0.

    A small network that starts from fresh weights (method ``scratch``) needs what the others have had
    before: give it the dense training's epochs plus the fine-tuning's.

    Attributes:
        scratch_epochs: Epochs of a network with fresh weights; the same as ``epochs`` by default.
        scratch_lr: Its peak learning rate; the same as ``lr`` by default.
    """

    step: Literal["train"] = "train"
    scratch_epochs: int | None = Field(default=None, ge=1)
    scratch_lr: float | None = Field(default=None, gt=0, allow_inf_nan=False)

    def config(self, *, fresh: bool) -> TrainConfig:
        """The settings of the training; ``fresh`` where the weights are fresh."""
        values = {name: getattr(self, name) for name in TrainConfig.model_fields}
        if fresh:
            values["epochs"] = self.scratch_epochs or self.epochs
            values["lr"] = self.scratch_lr or self.lr
        return TrainConfig(**values)


class Student(Record):
    """Go on with another network with fresh weights, to be taught by the dense one.

    Attributes:
        model: As in a recipe, such as ``bilstm``, ``resnet20`` or ``hf:config``.
        arguments: Of its constructor; the data says classes and vocabulary where they are left out.
        weights: Checkpoint, where there is one.
        embeddings: ``teacher``: its word embeddings start from the teacher's, reduced to its width.
    """

    step: Literal["student"] = "student"
    model: str = Field(min_length=1)
    arguments: dict[str, Any] = Field(default_factory=dict)
    weights: str | None = None
    embeddings: Literal["fresh", "teacher"] = "fresh"

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if self.weights is not None and self.embeddings == "teacher":
            raise ValueError(
                f"embeddings='teacher' would overwrite a part of weights='{self.weights}'; give one"
            )
        return self

    @property
    def source(self) -> Source:
        """How it is built."""
        return Source(model=self.model, arguments=self.arguments, weights=self.weights)


class Deploy(Deployment):
    """Write the network for an engine, quantized or not, and measure it there: the last step."""

    step: Literal["deploy"] = "deploy"

    @property
    def deployment(self) -> Deployment:
        """The settings alone."""
        return Deployment(**{name: getattr(self, name) for name in Deployment.model_fields})


def _unwrap(value: Any) -> Any:
    """``{"prune": {...}}`` and ``"recalibrate"`` to the flat form that the records are made from."""
    if isinstance(value, str):
        return {"step": value}
    if not isinstance(value, dict):
        return value
    if len(value) != 1:
        names = ", ".join(map(str, value)) or "nothing"
        raise ValueError(f"a step is one name with its settings, not {names}")
    ((name, body),) = value.items()
    if body is None:
        body = {}
    if not isinstance(body, dict) or "step" in body:
        raise ValueError(f"the settings of step '{name}' must be a mapping of names to values")
    return {"step": name, **body}


def _wrap(value: Any, handler: SerializerFunctionWrapHandler) -> Any:
    body = dict(handler(value))
    body.pop("step", None)
    return {value.step: body}


_AsItem = (BeforeValidator(_unwrap), WrapSerializer(_wrap))
BasicStep = Prune | Recalibrate | Train | Student | Deploy
BasicItem = Annotated[BasicStep, Field(discriminator="step"), *_AsItem]


class Repeat(Record):
    """Rounds: the same steps several times, with budgets that tighten (the rounds of Kuzmin et al., 2024).

    Attributes:
        times: Number of rounds.
        schedule: Budget of round ``k`` of ``n`` as a share ``s`` of dense: ``linear``
            ``1 - (1 - s) k / n``, ``geometric`` ``s^(k / n)`` (every round removes the same share of
            what is left), or a list of shares, the last of which is the target's.
        steps: Of one round; the target of a ``prune`` step is that of the last round.
    """

    step: Literal["repeat"] = "repeat"
    times: int = Field(ge=1, le=1000)
    schedule: Literal["linear", "geometric"] | tuple[float, ...] = "geometric"
    steps: tuple[BasicItem, ...] = Field(min_length=1)


Step = BasicStep | Repeat
StepItem = Annotated[Step, Field(discriminator="step"), *_AsItem]
STEPS: dict[str, type[Record]] = {
    "prune": Prune,
    "recalibrate": Recalibrate,
    "train": Train,
    "student": Student,
    "deploy": Deploy,
    "repeat": Repeat,
}
