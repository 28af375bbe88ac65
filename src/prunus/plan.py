"""Plans: what a method decided, as frozen JSON-able records. No torch.

A plan names things by their parameters' names and is complete in itself: cutting by it needs the
network and nothing else (no example input, no trace). Indices refer to the network the plan was made
for (``source``); applying it gives a network with the shapes in ``result``, so plans compose.
"""

import base64
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, get_args, get_origin

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError

from prunus.errors import InputError, PlanMismatchError, SettingError

BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]

SEEDS = 2**64
"""How many there are: what PyTorch's generators take."""

_A_BOOLEAN = PydanticCustomError(
    "boolean_type",
    "Input should be a number, not a boolean (in YAML yes, no, on and off are booleans, too)",
)

if TYPE_CHECKING:
    from pydantic._internal._model_construction import ModelMetaclass
else:
    ModelMetaclass = type(BaseModel)  # its name is pydantic's own


class _Told(ModelMetaclass):
    """Tells the first mistake of a call in one line; what pydantic reads from JSON does not come here."""

    def __call__(self, *args: Any, **values: Any) -> Any:
        try:
            return super().__call__(*args, **values)
        except ValidationError as error:
            raise SettingError(_told(self, error)) from error


def _told(record: Any, error: ValidationError) -> str:
    problems = error.errors()
    # Beside an unknown setting a missing one is most likely the same, misspelled.
    first = min(problems, key=lambda problem: problem["type"] == "missing")
    name, where = record.__name__, ".".join(str(part) for part in first["loc"])
    known = ", ".join(record.model_fields)
    if first["type"] == "missing":
        return f"{name}: {where} is missing: give it"
    if first["type"] == "extra_forbidden":
        return f"{name} has no setting '{where}'; settings are {known}"
    at = f"{where}={in_short(first['input'])}: " if where else ""
    return f"{name}: {at}{complaint(first)}"


def complaint(problem: ErrorDetails) -> str:
    """What pydantic says against a value, as the rest of a sentence."""
    if problem["type"] == "tuple_type":
        return f"give a list, such as [{problem['input']}]"
    if problem["type"] == "too_long":
        return f"give at most {problem['ctx']['max_length']}"
    message = problem["msg"].removeprefix("Value error, ")
    return message[:1].lower() + message[1:]


def in_short(value: Any) -> str:
    """A value as Python writes it, for a message."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _listed(given: Any) -> Any:
    """One name for a list of it, and whole numbers, as layers of a Sequential are called, for names."""
    names = list(given) if isinstance(given, list | tuple) else [given]
    return tuple(str(name) if type(name) is int else name for name in names)


Names = Annotated[tuple[str, ...], BeforeValidator(_listed)]
"""Names or globs, as a command line gives them: one, or a list."""


@cache
def _number_fields(record: type[BaseModel]) -> frozenset[str]:
    """Fields that hold numbers, alone or in lists and mappings, and no booleans."""
    kinds = {name: set(_kinds(field.annotation)) for name, field in record.model_fields.items()}
    return frozenset(
        name
        for name, found in kinds.items()
        if found & {int, float} and not any(k in {bool, Any} or _is_record(k) for k in found)
    )


def _kinds(annotation: Any) -> Iterator[Any]:
    """The types that an annotation is made of, and those of the values that it lists."""
    if get_origin(annotation) is Literal:
        yield from map(type, get_args(annotation))
    elif get_origin(annotation) is Annotated:
        yield from _kinds(get_args(annotation)[0])
    elif parts := get_args(annotation):
        for part in parts:
            yield from _kinds(part)
    else:
        yield annotation


def _is_record(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _booleans(value: Any, *where: Any) -> Iterator[InitErrorDetails]:
    """A complaint of each boolean in a value: that itself, and those in lists and mappings."""
    if isinstance(value, bool | np.bool_):
        yield {"type": _A_BOOLEAN, "loc": where, "input": bool(value)}
    inner: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, list | tuple):
        inner = enumerate(value)
    elif isinstance(value, Mapping):
        inner = value.items()
    for name, part in inner:
        yield from _booleans(part, *where, name)


class Record(BaseModel, metaclass=_Told):
    """Base of all records: frozen, closed, JSON both ways.

    Raises:
        SettingError: Made by a call with a value that is missing, unknown or out of range.
    """

    # Infinities and NaN survive as strings: as null they could not be read back.
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    @model_validator(mode="before")
    @classmethod
    def _refuse_booleans(cls, given: Any) -> Any:
        """No boolean in the place of a number: pydantic would take it for 0 or 1."""
        if not isinstance(given, Mapping):
            return given
        numbers = _number_fields(cls)
        wrong = [w for name in given if name in numbers for w in _booleans(given[name], name)]
        if wrong:
            raise ValidationError.from_exception_data(cls.__name__, wrong)
        return given

    def save(self, path: Path, *, parents: bool = True) -> None:
        """Write the record as indented JSON, replacing the file in one step.

        Args:
            path: The file.
            parents: Make the folders above it where they are missing.

        Raises:
            InputError: A folder is in the place of the file.
        """
        if parents:
            path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(path.name + ".part")
        try:
            part.write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")
            part.replace(path)
        except IsADirectoryError as error:
            raise InputError(
                f"cannot write {path}: a folder is in its place; move it away"
            ) from error

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a record from JSON.

        Raises:
            InputError: The file is missing, or is not such a record.
        """
        try:
            return cls.model_validate_json(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror or error}") from error
        except UnicodeDecodeError as error:
            raise InputError(f"{path} is no text file: byte {error.start} is not UTF-8") from error
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "the file"
            newer = (
                "; was it written by a newer prunus? upgrade this one" if where == "version" else ""
            )
            raise InputError(
                f"{path} is not a valid {cls.__name__}: {where}: {first['msg']}{newer}"
            ) from error


class Bits(Record):
    """A row of booleans, eight to a byte in base64, first position in the highest bit.

    >>> Bits.pack([True, False, True]).unpack().tolist()
    [True, False, True]
    """

    size: int = Field(ge=0)
    packed: str

    @model_validator(mode="after")
    def _length(self) -> Self:
        raw = base64.b64decode(self.packed, validate=True)
        if len(raw) != (self.size + 7) // 8:
            raise ValueError(f"{self.size} bits need {(self.size + 7) // 8} bytes")
        if self.size % 8 and raw[-1] & (0xFF >> self.size % 8):
            raise ValueError("bits beyond the size are set: equal flags must have one packing")
        return self

    @classmethod
    def pack(cls, keep: Iterable[bool] | BoolArray) -> Self:
        """Pack booleans, in order."""
        flags = np.asarray(keep if isinstance(keep, np.ndarray) else list(keep), dtype=bool).ravel()
        return cls(size=flags.size, packed=base64.b64encode(np.packbits(flags).tobytes()).decode())

    def unpack(self) -> BoolArray:
        """The booleans, shape ``[size]``."""
        raw = np.frombuffer(base64.b64decode(self.packed), dtype=np.uint8)
        return np.unpackbits(raw, count=self.size).astype(bool)


class NetworkShape(Record):
    """Names and shapes of all parameters and buffers of a network: its fingerprint."""

    tensors: dict[str, tuple[int, ...]]

    @property
    def digest(self) -> str:
        """SHA-256 of the sorted names and shapes, in hex."""
        text = json.dumps(sorted(self.tensors.items()), separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def require(self, other: "NetworkShape", what: str) -> None:
        """Refuse another network than this one, naming the first tensor that differs.

        Raises:
            PlanMismatchError: A name is missing on either side, or a shape differs.
        """
        for name in sorted(self.tensors.keys() | other.tensors.keys()):
            mine, theirs = self.tensors.get(name), other.tensors.get(name)
            if mine != theirs:
                raise PlanMismatchError(
                    f"{what} is for another network: '{name}' should be "
                    f"{'absent' if mine is None else list(mine)} but is "
                    f"{'absent' if theirs is None else list(theirs)}; "
                    "use the network, weights and arguments that the plan was made for"
                )


class Axis(Record):
    """One dimension of one parameter or buffer, and which of its positions stay."""

    tensor: str
    dim: int = Field(ge=0)
    keep: Bits


class KeepChannels(Record):
    """The units of one coupled channel group that stay, and what that means for each tensor."""

    kind: Literal["channels"] = "channels"
    group: str
    keep: Bits
    axes: tuple[Axis, ...]


class SetAttribute(Record):
    """A whole number stored on a module (a head count, a split size) that follows a cut."""

    kind: Literal["attribute"] = "attribute"
    module: str
    attribute: str
    before: int
    after: int


class ReindexBuffer(Record):
    """A buffer whose *values* are positions on a cut dimension: renumbered to what stays."""

    kind: Literal["reindex"] = "reindex"
    buffer: str
    keep: Bits


class ZeroConnections(Record):
    """Connections held at zero: kernels (out x in) of a convolution, or single weights."""

    kind: Literal["connections"] = "connections"
    tensor: str
    level: Literal["kernel", "weight"]
    shape: tuple[int, ...]
    keep: Bits

    @model_validator(mode="after")
    def _count(self) -> Self:
        if int(np.prod(self.shape)) != self.keep.size:
            raise ValueError(f"shape {self.shape} does not hold {self.keep.size} bits")
        return self


class Factorize(Record):
    """A layer replaced by a chain of plain layers of low rank; their values ride beside the plan.

    Attributes:
        module: Path of the layer, a ``Linear``, ``Conv2d`` or ``Embedding``.
        form: ``linear``: ``in -> r -> out``; ``tucker-linear``: ``in -> r_in -> r_out -> out``;
            ``tucker-conv``: 1x1, the kernel, 1x1 with the same two ranks; ``embedding``: a table of
            width ``r`` and a linear layer. The last part has the layer's bias.
        ranks: ``(r,)`` or ``(r_in, r_out)``.
        first: Path of an earlier factorized layer whose first part's weight this one shares.
        last: The same for the weight of the last part.
    """

    kind: Literal["factorize"] = "factorize"
    module: str
    form: Literal["linear", "tucker-linear", "tucker-conv", "embedding"]
    ranks: tuple[int, ...]
    first: str = ""
    last: str = ""

    @model_validator(mode="after")
    def _ranks(self) -> Self:
        wanted = 2 if self.form.startswith("tucker") else 1
        if len(self.ranks) != wanted or min(self.ranks) < 1:
            raise ValueError(f"form {self.form} takes {wanted} ranks of at least 1")
        return self


class KeepLayers(Record):
    """Layers of a stack (a ``ModuleList`` or ``Sequential``) that stay; the others are passed by."""

    kind: Literal["layers"] = "layers"
    stack: str
    keep: Bits


class KeepVocabulary(Record):
    """Pieces of the vocabulary that stay: rows of embedding tables, renumbered in order."""

    kind: Literal["vocabulary"] = "vocabulary"
    tables: tuple[str, ...] = Field(min_length=1)
    keep: Bits


Edit = Annotated[
    KeepChannels
    | SetAttribute
    | ReindexBuffer
    | ZeroConnections
    | Factorize
    | KeepLayers
    | KeepVocabulary,
    Field(discriminator="kind"),
]
Rebuild = Factorize | KeepLayers | KeepVocabulary
"""Edits that replace modules or tables; the others keep slices of what is there."""


class Plan(Record):
    """What to cut from the network ``source`` to get the network ``result``."""

    version: Literal[1] = 1
    source: NetworkShape
    result: NetworkShape
    edits: tuple[Edit, ...] = ()

    @property
    def digest(self) -> str:
        """SHA-256 over the decisions alone: equal for plans that make the same network."""
        body: list[Any] = [self.source.digest]
        body += sorted(edit.model_dump_json() for edit in self.edits)
        return hashlib.sha256(json.dumps(body).encode()).hexdigest()

    @property
    def channels(self) -> Mapping[str, BoolArray]:
        """Group name to kept units, for the groups this plan cuts."""
        return {e.group: e.keep.unpack() for e in self.edits if isinstance(e, KeepChannels)}

    @property
    def rebuilds(self) -> "tuple[Rebuild, ...]":
        """The edits that replace modules or tables, in order."""
        return tuple(e for e in self.edits if isinstance(e, Rebuild))

    @property
    def is_empty(self) -> bool:
        """Whether the plan changes nothing."""
        return not self.edits
