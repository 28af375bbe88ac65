"""The folder of a run: what it is of, which steps are done, and that one process works in it.

run.json             what decides the run's result, and what a trial run picked
.lock                held while a process works here
dense.json           measurement of the dense network
looks.json           looks at the test split, noted before they happen
steps/01-prune/      network after a step: plans and weights, as an artifact
steps/01-prune.json  what happened in it; its presence marks the step as done
steps/02-deploy.onnxruntime/  the network as an engine runs it
engines/             the dense network in float32, as each engine runs it
teacher/             logits of teachers, by what decides them
steps/01-prune.search/  what its search knows of candidates
steps/01-prune.front.json  the front it found, where it looked for one
record.json          the run's record; its presence marks the run as done
artifact/            the final network
"""

import copy
import errno
import importlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from safetensors import SafetensorError
from torch import nn

from prunus.artifact import Manifest, read_manifest, save
from prunus.artifact.manifest import MANIFEST_FILE, TOKENIZER_FILE, WEIGHTS_FILE, plan_file
from prunus.artifact.weights import file_sha256, fill_, read_weights, write_weights
from prunus.changed import told_change
from prunus.data import TextTokenizer
from prunus.errors import (
    InputError,
    PrunusError,
    StorageError,
    TemporaryFolderError,
    moved_away,
)
from prunus.graph import Inputs, cut
from prunus.plan import Plan, Record, in_short
from prunus.records import Source

RUN_FILE = "run.json"
LOCK_FILE = ".lock"
_BEGUN = {
    LOCK_FILE,
    f"{RUN_FILE}.part",
}  # left by a process that was killed while it made the folder
_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}
_RUST_ERROR = re.compile(r"os error (\d+)")


class RunFile(Record):
    """Content of ``run.json``.

    Attributes:
        version: Of this form.
        identity: The inputs of the run by name.
        execution: Number format and layout of trainings, as picked on the machine.
        candidate_threads: CPU threads that each candidate of a search is scored with.
    """

    version: Literal[1] = 1
    identity: dict[str, str]
    execution: dict[str, str] | None = None
    candidate_threads: int | None = None


@dataclass
class RunFolder:
    """A locked folder."""

    path: Path
    file: RunFile

    def pick(self, execution: Mapping[str, str]) -> None:
        """Keep what a trial run picked, as an input of the run."""
        self._update(execution=dict(execution))

    def keep_threads(self, threads: int) -> None:
        """Keep the threads of a candidate, as an input of the run."""
        self._update(candidate_threads=threads)

    def require_there(self) -> None:
        """Refuse to go on where it was taken away: what is saved then would lie in no run's folder.

        Raises:
            StorageError: It was moved or deleted.
        """
        require_there(self.path, LOCK_FILE)

    def _update(self, **changes: Any) -> None:
        self.file = self.file.model_copy(update=changes)
        keep_record(self.file, self.path / RUN_FILE)


def require_there(folder: Path, sign: str = "") -> None:
    """Refuse to go on without a folder that was there, or without its file ``sign``.

    Raises:
        StorageError: It was moved or deleted.
    """
    if not (folder / sign).exists():
        raise moved_away(folder)


def keep_record(record: Record, path: Path) -> None:
    """Save a record in a folder that is there.

    Raises:
        InputError: A folder is in the place of the file.
        StorageError: The folder was moved or deleted.
    """
    require_there(path.parent)
    record.save(path, parents=False)


@contextmanager
def with_way_on(way_on: str) -> Iterator[None]:
    """Tell what can be done where a file of a run is gone or damaged."""
    try:
        yield
    except PrunusError as error:
        raise InputError(f"{error}; {way_on}") from error


def save_network(
    folder: Path,
    network: nn.Module,
    plans: Sequence[Plan],
    source: Source | None,
    inputs: Inputs,
    tokenizer: TextTokenizer | None = None,
) -> None:
    """Save a network; without a source it can be resumed, but not loaded on its own."""
    if source is not None:
        save(
            folder,
            network,
            source=source,
            plans=plans,
            example_inputs=inputs,
            tokenizer=tokenizer,
        )
        return
    folder.mkdir(parents=True, exist_ok=True)
    ties = write_weights(network, folder / WEIGHTS_FILE)
    files = tuple(plan_file(index) for index in range(len(plans)))
    for file, plan in zip(files, plans, strict=True):
        plan.save(folder / file)
    Manifest(
        source=Source(model=type(network).__qualname__),
        plans=files,
        ties=ties,
        weights_sha256=file_sha256(folder / WEIGHTS_FILE),
    ).save(folder / MANIFEST_FILE)
    if tokenizer is not None:
        tokenizer.save(folder / TOKENIZER_FILE)


def load_network(folder: Path, dense: nn.Module) -> tuple[nn.Module, tuple[Plan, ...]]:
    """A saved network: cut anew from the dense one, filled with the saved weights."""
    manifest = read_manifest(folder)
    plans = tuple(Plan.load(folder / file) for file in manifest.plans)
    tensors = read_weights(folder / WEIGHTS_FILE, manifest.weights_sha256, manifest.ties)
    network = copy.deepcopy(dense)
    for plan in plans:
        network = cut(network, plan)
    fill_(network, tensors, manifest.ties)
    return network.eval(), plans


@contextmanager
def open_run(
    path: Path | str, identity: Mapping[str, Any], *, resume: bool = False
) -> Iterator[RunFolder]:
    """Make a run's folder, or open it again, locked for this process.

    Args:
        path: New, empty, or of this very run with ``resume``.
        identity: All that decides the run's result, by name; nested values are compared part by part.
        resume: Go on with what is there. A folder that is not there yet is made.

    Raises:
        InputError: The folder holds something else, another run, or is in use.
        StorageError: The disk is full or fails, here or in the block.
    """
    path = Path(path)
    flat = dict(_flatten(identity))
    require_usable(path, resume=resume)
    with full_disk_told(path):
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"out='{path}' cannot be made: {error.strerror}; name a folder that can be written"
            ) from error
        with _locked(path):
            _sweep(path)
            file = path / RUN_FILE
            if file.exists():
                found = _run_file(path)
                _require_same(path, found.identity, flat)
            else:
                found = RunFile(identity=flat)
                found.save(file)
            folder = RunFolder(path, found)
            yield folder
            folder.require_there()


def require_out(out: Path | str | None, *, resume: bool) -> None:
    """Refuse a folder that a run cannot have, and to go on where there is none.

    Raises:
        InputError: See ``require_usable``; or ``resume`` is given without a folder.
    """
    if out is not None:
        require_usable(Path(out), resume=resume)
    elif resume:
        raise InputError("resume=True is given without out=; name the folder to go on in")


def require_usable(path: Path, *, resume: bool) -> None:
    """Refuse a folder that a run cannot have. Nothing is left behind.

    Raises:
        InputError: It is a file, cannot be written, holds something else, or holds a run and is not
            to be resumed; or records could not name it.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"out={in_short(str(path))} is not UTF-8; name a folder that is"
        ) from error
    _require_writable(path)
    names = {entry.name for entry in path.iterdir()} - _BEGUN if path.exists() else set()
    if names and RUN_FILE not in names:
        raise InputError(
            f"out='{path}' holds '{min(names)}' and is no run; name a new or an empty folder"
        )
    if names and not resume:
        raise InputError(
            f"out='{path}' holds a run already; go on with it (--resume), or name a new folder"
        )


def require_resumable(path: Path, identity: Mapping[str, Any]) -> None:
    """Refuse what ``open_run`` with ``resume`` would refuse. Nothing is made, nothing left behind.

    Raises:
        InputError: The folder cannot be used, or holds something else or another run.
    """
    require_usable(path, resume=True)
    file = path / RUN_FILE
    if file.exists():
        _require_same(path, _run_file(path).identity, dict(_flatten(identity)))


def _run_file(path: Path) -> RunFile:
    """What a folder is the run of; without it nothing tells whether it is the one asked for."""
    with with_way_on(f"to begin this run anew, delete the folder {path}"):
        return RunFile.load(path / RUN_FILE)


def _sweep(path: Path) -> None:
    """Take away what a killed process left half written, beside the place that it was for."""
    places = {path: ".artifact", path / "dense": ".artifact"}
    places |= {path / name: ".*" for name in ("engines", "teacher")}
    for place, name in places.items():
        for left in (*place.glob(f"{name}.part-*"), *place.glob(f"{name}.old-*")):
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink(missing_ok=True)


def _require_writable(path: Path) -> None:
    """Make the folder and a file in it, and take both away: nothing else tells for sure."""
    made: list[Path] = []
    try:
        if path.exists() and not path.is_dir():
            raise InputError(f"out='{path}' is a file; name a new folder")
        for folder in reversed([path, *path.parents]):
            if not folder.is_dir():
                folder.mkdir()
                made.append(folder)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise InputError(
            f"out='{path}' cannot be written: {error.strerror or error}; name a folder that can"
        ) from error
    finally:
        for folder in reversed(made):
            with suppress(OSError):  # another process may have begun there
                folder.rmdir()


def _require_same(path: Path, saved: Mapping[str, str], asked: Mapping[str, str]) -> None:
    change = told_change(saved, asked)
    if change and (saved.get("kind") == "comparison") != (asked.get("kind") == "comparison"):
        what = "a comparison" if "kind" in saved else "no comparison, but a run"
        raise InputError(f"out='{path}' holds {what}; name a new folder")
    if change:
        raise InputError(
            f"out='{path}' holds another run: {change}; give the same arguments to resume it, or name "
            "a new folder"
        )


def _flatten(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Nested values as ``steps[1].train.lr`` to text."""
    if isinstance(value, Mapping) and value:
        for name, inner in value.items():
            yield from _flatten(inner, f"{path}.{name}" if path else str(name))
    elif isinstance(value, list | tuple) and value:
        for index, inner in enumerate(value):
            yield from _flatten(inner, f"{path}[{index}]")
    else:
        yield path, str(value)


def _lock_module() -> ModuleType | None:
    """``fcntl``, where the system has it; elsewhere two processes are not kept apart."""
    try:
        return importlib.import_module("fcntl")
    except ImportError:
        return None


@contextmanager
def full_disk_told(path: Path) -> Iterator[None]:
    """One line where the disk takes no more: every file of a run is written in one step or redone."""
    try:
        yield
    except Exception as error:
        number = _disk_error(error)
        if number is None:
            raise
        raise StorageError(
            f"out='{path}': {os.strerror(number)}: free some space and resume (--resume); what the "
            "folder says is done is safe"
        ) from error


def _disk_error(error: BaseException | None) -> int | None:
    """The system's number for what a disk has said, however deep it lies; None for all else.

    The folder for temporary files may be on another disk, and its own message says so.
    """
    while error is not None and not isinstance(error, TemporaryFolderError):
        number = error.errno if isinstance(error, OSError) else None
        if isinstance(error, SafetensorError):  # names it in its text alone
            found = _RUST_ERROR.search(str(error))
            number = int(found.group(1)) if found else None
        if number in _DISK:
            return number
        # torch says "unexpected pos" while it handles what the system said.
        error = error.__cause__ or error.__context__
    return None


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the folder's lock. The system gives it back when the process ends, however it ends."""
    fcntl = _lock_module()
    try:
        # Unbuffered: what a full disk has refused is not written once more when the file is closed.
        handle = (path / LOCK_FILE).open("a+b", buffering=0)
    except OSError as error:
        raise InputError(f"out='{path}' cannot be written: {error.strerror}") from error
    with handle:
        if fcntl is not None:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                handle.seek(0)
                owner = handle.read().decode(errors="replace").strip() or "unknown"
                raise InputError(
                    f"out='{path}' is in use by process {owner}; wait for it, or name a new folder"
                ) from error
        handle.seek(0)
        handle.truncate()
        handle.write(str(os.getpid()).encode())
        yield
