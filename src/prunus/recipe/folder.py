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

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from prunus.changed import flatten, told_change, without_idle
from prunus.errors import InputError, PrunusError, moved_away
from prunus.plan import Record, in_short
from prunus.recipe.disk import LOCK_FILE, full_disk_told, locked, require_writable

RUN_FILE = "run.json"
_BEGUN = {LOCK_FILE, f"{RUN_FILE}.part"}
"""Left by a process that was killed while it made the folder."""
_OF_A_CELL = {"recipe.name", "recipe.seed"}
"""What differs between the seeds of a row, or names it."""


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
    flat = dict(flatten(identity))
    require_usable(path, resume=resume)
    with full_disk_told(path):
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"out='{path}' cannot be made: {error.strerror}; name a folder that can be written"
            ) from error
        with locked(path):
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
    require_writable(path)
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
        _require_same(path, _run_file(path).identity, dict(flatten(identity)))


def require_alike(path: Path, identity: Mapping[str, Any], *, same_seed: bool) -> None:
    """Refuse a run whose steps are not those of the run in a folder, whatever network and data are.

    Nothing is made, nothing left behind.

    Args:
        path: Folder of the other run.
        identity: Of the run that is asked for; the weights in it may be those of before a training.
        same_seed: Whether both are one run, or two seeds of a row.

    Raises:
        InputError: The steps, what may be cut, or how candidates are scored differ.
    """
    saved, asked = _run_file(path).identity, dict(flatten(identity))
    before, now = (
        {name: value for name, value in found.items() if _of_steps(name)}
        for found in (saved, asked)
    )
    if same_seed:
        _require_same(path, before, now)
    elif change := told_change(without_idle(before), without_idle(now)):
        raise InputError(
            f"out='{path}' holds another run of this row: {change}; all seeds of a row are done alike: "
            "give the same arguments, or name a new folder"
        )


def saved_weights(path: Path) -> str | None:
    """Digest of the weights that a folder's run began with; None: nothing tells."""
    try:
        return RunFile.load(path / RUN_FILE).identity.get("weights")
    except InputError:
        return None


def _of_steps(name: str) -> bool:
    """Whether a part of an identity says what is done, by the names that ``run_identity`` gives them."""
    return name.startswith(("recipe.", "compute.", "files.")) and name not in _OF_A_CELL


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
