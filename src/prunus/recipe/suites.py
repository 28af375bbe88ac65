"""Ready-made comparisons: ``text`` redoes paper M's table on the user's own network and data."""

import importlib.util
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import Field

from prunus.errors import InputError
from prunus.plan import Record
from prunus.recipe.steps import Deploy, Prune, Step, Student, Train

SUITES = ("text",)
_PACKAGES = {"torch": "torch", "onnxruntime": "onnxruntime", "openvino": "openvino"}
_REST = {"rest": "float16"}  # what int8 leaves costs half the bytes, and nothing else
Rows = dict[str, tuple[Step, ...]]


class TextSuite(Record):
    """What the rows of the text suite share.

    Torkunova and Milovanov, 2023, table 1; the study of their paper marks the rows beyond theirs.

    Attributes:
        epochs: Of the recovery after a cut of the dense network.
        lr: Its peak learning rate.
        student: Zoo name of the small network that is taught.
        student_epochs: Of a student, taught or alone.
        student_lr: Its peak learning rate.
        student_texts: Texts put together from training texts, that a taught student learns from, too.
        batch_size: Of all trainings.
        macs: Share of the dense MACs that pruning leaves.
        rank: Share of the full rank that stacked Tucker leaves of a transformer's layers; 0.2 makes
            the paper's encoder more than twenty times smaller.
        student_rank: The same, of the student's layers and embeddings.
        sparsity: Share of the weights that unstructured pruning holds at zero.
        engines: That the dense network is deployed to, in several formats.
        chain_engines: That chains end in; the others are measured on the dense network alone.
        shape: Samples and tokens, as in ``[1, 128]``: int8 in OpenVINO is measured in requests of this
            one shape, too, in rows of their own.
    """

    epochs: int = Field(default=1, ge=1)
    lr: float = Field(default=1e-4, gt=0)
    student: str = "bilstm"
    student_epochs: int = Field(default=6, ge=1)
    student_lr: float = Field(default=2e-3, gt=0)
    student_texts: int = Field(default=0, ge=0)
    batch_size: int = Field(default=32, ge=1)
    macs: float = Field(default=0.5, gt=0, le=1)
    rank: float = Field(default=0.2, gt=0, le=1)
    student_rank: float = Field(default=0.3, gt=0, le=1)
    sparsity: float = Field(default=0.5, gt=0, lt=1)
    engines: tuple[str, ...] = ("torch", "onnxruntime", "openvino")
    chain_engines: tuple[str, ...] = ("onnxruntime", "openvino")
    shape: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] | None = None

    def rows(self) -> Rows:
        """Every method and sensible chain, by name. Rows that begin alike share their first steps."""
        return {
            **self._quantized(),
            **self._low_rank(),
            **self._pruned(),
            **self._students(),
        }

    def _recovery(self) -> Train:
        """Fine-tuning with the dense network as teacher."""
        return _adamw(self.epochs, self.lr, self.batch_size, taught=True)

    def _quantized(self) -> Rows:
        """The dense network on all engines, in the formats that are worth a row."""
        return {
            f"{name} ({engine})": (Deploy.model_validate({"engine": engine, **choices}),)
            for engine in self.engines
            for name, choices in self._in_one_shape(engine, _formats(engine)).items()
        }

    def _in_one_shape(
        self, engine: str, formats: dict[str, dict[str, Any]]
    ) -> dict[str, dict[str, Any]]:
        """The formats, and behind them those all in int8 in requests of one shape, where it is faster."""
        if self.shape is None or engine != "openvino":
            return formats
        all_int8 = {
            n: c for n, c in formats.items() if c.get("weights") == c.get("embeddings") == "int8"
        }
        return formats | {
            f"{n} in one shape": {**c, "shape": self.shape} for n, c in all_int8.items()
        }

    def _smallest(self, prefix: str, before: Sequence[Step], *, weights: str = "int8") -> Rows:
        """Quantized embeddings on each engine, with linear layers quantized or not."""
        name = "int8" if weights == "int8" else "int8 embeddings"
        choices: dict[str, Any] = {"weights": weights, "embeddings": "int8"}
        if weights == "int8":  # elsewhere the paper's encoder stays in float32
            choices |= _REST
        return {
            f"{prefix} + {named} ({engine})": (
                *before,
                Deploy.model_validate({"engine": engine, **made}),
            )
            for engine in self.chain_engines
            for named, made in self._in_one_shape(engine, {name: choices}).items()
        }

    def _low_rank(self) -> Rows:
        tucker = (
            Prune(method="stacked-tucker", options={"rank": self.rank, "calibration": 256}),
            self._recovery(),
        )
        svd = (
            Prune(method="svd", target=f"macs={self.macs:g}", options={"calibration": 256}),
            self._recovery(),
        )
        return {
            "tucker": tucker,
            **self._smallest("tucker", tucker, weights="float32"),
            **self._smallest("tucker", tucker),
            "svd": svd,
        }

    def _pruned(self) -> Rows:
        pruning = (Prune(method="taylor", target=f"macs={self.macs:g}"), self._recovery())
        vocabulary = (Prune(method="vocabulary"),)
        half = (Prune(method="layers", options={"share": self.macs}), self._recovery())
        sparse = (
            Prune(method="magnitude-weights", options={"sparsity": self.sparsity}),
            self._recovery(),
        )
        return {
            "pruning": pruning,
            **self._smallest("pruning", pruning),
            "layers": half,
            "unstructured": sparse,
            "vocabulary": vocabulary,
            **self._smallest("vocabulary + pruning", (*pruning, *vocabulary)),
        }

    def _students(self) -> Rows:
        epochs, lr = self.student_epochs, self.student_lr
        alone = (Student(model=self.student), _adamw(epochs, lr, self.batch_size, taught=False))
        heir = Student(model=self.student, embeddings="teacher")
        more = {"distill_texts": self.student_texts}
        taught = (heir, _adamw(epochs, lr, self.batch_size, taught=True, **more))
        tucker = (
            *taught,
            Prune(
                method="svd",
                options={"rank": self.student_rank, "embeddings": True},
            ),
            _adamw(1, self.student_lr / 4, self.batch_size, taught=True, **more),
        )
        return {
            "student alone": alone,
            "distilled": taught,
            **self._smallest("distilled", taught),
            "distilled + tucker": tucker,
            **self._smallest("distilled + tucker", tucker, weights="float32"),
        }


def available_engines(asked: Sequence[str] = tuple(_PACKAGES)) -> tuple[str, ...]:
    """Those of the engines whose packages are installed.

    Raises:
        InputError: No such engine.
    """
    unknown = [engine for engine in asked if engine not in _PACKAGES]
    if unknown:
        raise InputError(f"engine '{unknown[0]}' is unknown: use {', '.join(_PACKAGES)}")
    return tuple(e for e in asked if importlib.util.find_spec(_PACKAGES[e]) is not None)


def _formats(engine: str) -> dict[str, dict[str, str]]:
    """Number formats that are worth a row on an engine."""
    rows: dict[str, dict[str, str]] = {} if engine == "torch" else {"float32": {}}
    rows["int8 linear"] = {"weights": "int8", **_REST}
    rows["int8 linear + embeddings"] = {"weights": "int8", "embeddings": "int8", **_REST}
    if engine == "onnxruntime":
        rows["int8 by token + embeddings"] = {
            "weights": "int8",
            "embeddings": "int8",
            "activations": "token",
            **_REST,
        }
        rows["static int8"] = {"weights": "int8", "calibration": "static", **_REST}
    if engine != "onnxruntime":
        half = "bfloat16" if engine == "torch" else "float16"
        rows[half] = {"weights": half}
    return rows


def _adamw(epochs: int, lr: float, batch_size: int, *, taught: bool, **more: int) -> Train:
    """AdamW with linear warm-up and decay, as BERT is fine-tuned."""
    return Train.model_validate(
        {
            "epochs": epochs,
            "lr": lr,
            "batch_size": batch_size,
            "optimizer": "adamw",
            "weight_decay": 0.01,
            "schedule": "linear",
            "warmup_fraction": 0.1,
            "grad_clip": 1.0,
            "augment": False,
            "distill_alpha": 0.9 if taught else 0.0,
            "distill_temperature": 2.0,
            **more,
        }
    )
