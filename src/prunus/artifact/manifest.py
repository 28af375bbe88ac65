"""``artifact.json``: what an artifact folder holds. Read without building any network."""

import re
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from prunus.errors import InputError
from prunus.plan import Record
from prunus.records import Source

VERSION = 2
MANIFEST_FILE = "artifact.json"
WEIGHTS_FILE = "model.safetensors"
RECORD_FILE = "record.json"
TOKENIZER_FILE = "tokenizer.json"
_PLAN_FILE = re.compile(r"plan-\d+\.json")


class FactoryFile(Record):
    """The file of a user's own constructor, as it was when the artifact was saved.

    Attributes:
        path: Absolute.
        sha256: Of its content, in hex.
    """

    path: str
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class Manifest(Record):
    """The table of contents of an artifact.

    Attributes:
        version: Of the folder's form; a newer one than ``VERSION`` is refused.
        source: The constructor of the network before the first plan. It names no weights, as the
            artifact carries its own.
        factory: The file of the constructor, where ``source`` is a ``file.py:factory``.
        plans: File names, in the order in which the plans are cut.
        ties: Parameter or buffer name to the name whose tensor it shares. Such a tensor is stored once.
        buffers: Name to data type, such as ``float32``, of the floating buffers that are in no state: the
            constructor makes them, and a network in half precision may keep them whole. None in an
            artifact of version 1: they have the type of the weights.
        weights_sha256: Of ``model.safetensors``, in hex.
        recipe: The steps that made the network.
    """

    version: int = Field(default=VERSION, ge=1)
    source: Source
    factory: FactoryFile | None = None
    plans: tuple[str, ...] = ()
    ties: dict[str, str] = Field(default_factory=dict)
    buffers: dict[str, str] | None = None
    weights_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    recipe: dict[str, Any] = Field(default_factory=dict)

    @field_validator("version")
    @classmethod
    def _readable(cls, value: int) -> int:
        if value > VERSION:
            raise ValueError(
                f"version {value} is newer than {VERSION}, the newest this Prunus reads; "
                "upgrade prunus"
            )
        return value

    @field_validator("plans")
    @classmethod
    def _inside(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        """Names of plan files alone: a path could lead out of the folder."""
        for name in value:
            if not _PLAN_FILE.fullmatch(name):
                raise ValueError(f"{name!r} is not of the form plan-0.json")
        return value


def plan_file(index: int) -> str:
    """File name of the plan that is cut as number ``index``, from 0."""
    return f"plan-{index}.json"


def is_artifact_file(name: str) -> bool:
    """Whether an artifact folder may hold a file of this name."""
    fixed = {MANIFEST_FILE, WEIGHTS_FILE, RECORD_FILE, TOKENIZER_FILE}
    return name in fixed or bool(_PLAN_FILE.fullmatch(name))


def read_manifest(folder: Path | str) -> Manifest:
    """Read what an artifact holds.

    Raises:
        InputError: There is no such folder, it is no artifact, or it was written by a newer Prunus.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"folder={str(folder)!r} does not exist; name the folder of an artifact")
    if not (folder / MANIFEST_FILE).is_file():
        raise InputError(
            f"folder={str(folder)!r} holds no {MANIFEST_FILE}; name a folder written by "
            "prunus.artifact.save"
        )
    return Manifest.load(folder / MANIFEST_FILE)
