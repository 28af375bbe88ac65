"""The state of a training between two epochs, in one file that is loaded without unpickling."""

import hashlib
import json
import os
import pickle
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import BuiltinFunctionType, FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from prunus.changed import told_change
from prunus.data import SearchSplit, Split, TrainSplit, UnlabeledSplit, tensors_digest
from prunus.errors import InputError, SettingError, moved_away
from prunus.graph import held_connections
from prunus.plan import NetworkShape
from prunus.records import HistoryPoint
from prunus.train.config import TrainConfig
from prunus.train.precision import Execution
from prunus.zoo.own_file import MODULE_NAME

_FORMAT = "prunus-training-1"
_NAMED = 3  # parameters, ahead of a digest of all
_DIGEST_BATCH = 1024
_BROKEN = (zipfile.BadZipFile, pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError)
# Of a config or a network of transformers: no part of what it computes.
_OF_A_PLACE = ("_name_or_path", "name_or_path", "transformers_version")
_HELD = "held connections"
_KEYS = ("identity", "network", "optimizer", "best", "history", "precision", "layout")

Identity = dict[str, str | int | float | bool]
"""All that decides how a training runs, by name: two trainings are one if it agrees."""


@dataclass(frozen=True)
class Checkpoint:
    """A training after ``len(history)`` epochs.

    ``network`` is a state as ``whole_state`` gives it, ``best`` as ``copy_state`` does. Random states
    are not kept: every epoch seeds its own from the seed and its number.
    """

    identity: Identity
    network: dict[str, Any]
    optimizer: dict[str, Any]
    best: dict[str, Any] | None
    history: tuple[HistoryPoint, ...]
    execution: Execution
    projection: dict[str, Any] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write the file in one step: a kill leaves the old one or the new one, never half.

        Raises:
            StorageError: The folder is not there, as where a run was moved away: one that is made
                again would hold this file alone.
        """
        part = path.with_name(path.name + ".part")
        content = {
            "format": _FORMAT,
            "identity": self.identity,
            "network": dict(self.network),
            "optimizer": self.optimizer,
            "best": self.best,
            "history": [point.model_dump() for point in self.history],
            "precision": self.execution.precision,
            "layout": self.execution.layout,
            "projection": dict(self.projection),
        }
        try:
            with part.open("wb") as file:
                torch.save(content, file)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        except FileNotFoundError as error:
            raise moved_away(path.parent) from error

    @classmethod
    def load(cls, path: Path, identity: Identity) -> "Checkpoint":
        """Read a checkpoint of the training ``identity``, onto the CPU.

        Raises:
            InputError: The file cannot be read, is damaged, or is of another training.
        """
        content = _read(path)
        # Files of earlier versions do not tell what is held.
        _require_same(path, {_HELD: identity[_HELD], **content["identity"]}, identity)
        try:
            return cls(
                identity=identity,
                network=content["network"],
                optimizer=content["optimizer"],
                best=content["best"],
                history=tuple(HistoryPoint(**point) for point in content["history"]),
                execution=Execution(content["precision"], content["layout"]),
                projection=content.get("projection", {}),
            )
        except (TypeError, SettingError) as error:
            raise _damaged(path) from error


def training_identity(
    network: nn.Module,
    train: TrainSplit,
    search: SearchSplit,
    config: TrainConfig,
    *,
    seed: int,
    teacher: nn.Module | None,
    unlabeled: UnlabeledSplit | None = None,
) -> Identity:
    """Describe a training that is about to start.

    The starting weights belong to it: two cuts of one network can have the same shape, and to
    resume the one from the other's checkpoint would silently return the wrong network. So do the
    connections that are held at zero, which a state dict leaves out.

    Args:
        network: With the weights it starts from; what is frozen stays frozen.
        train: Known by its size, all its labels, and samples spread evenly over it.
        search: Likewise.
        config: Its settings.
        seed: Of data order and dropout.
        teacher: Of a distillation.
        unlabeled: Samples that it is asked for beside the training split's.
    """
    shape = NetworkShape(tensors={k: tuple(v.shape) for k, v in _tensors(network).items()})
    settings = {f"config.{name}": value for name, value in config.model_dump().items()}
    return {
        **settings,
        "seed": seed,
        "train samples": len(train),
        "train data": train.digest,
        "search samples": len(search),
        "search data": search.digest,
        "network shape": shape.digest,
        "starting weights": tensors_digest(_tensors(network)),
        "network form": form_digest(network),
        "frozen parameters": frozen_parameters(network),
        _HELD: _held_weights(network),
        "teacher weights": "none" if teacher is None else tensors_digest(_tensors(teacher)),
        "teacher form": "none" if teacher is None else form_digest(teacher),
        "unlabeled samples": 0 if unlabeled is None else len(unlabeled),
        "unlabeled data": "none" if unlabeled is None else unlabeled.digest,
    }


def teacher_digest(teacher: nn.Module, split: Split, execution: Execution) -> str:
    """SHA-256 of what decides a teacher's logits: itself, all samples of the split, the precision."""
    total = hashlib.sha256(tensors_digest(_tensors(teacher)).encode())
    total.update(f"{form_digest(teacher)} {execution} {len(split)}".encode())
    for inputs, _ in split.batches(_DIGEST_BATCH):
        named = {"input": inputs} if isinstance(inputs, Tensor) else inputs
        total.update(tensors_digest(named).encode())
    return total.hexdigest()


def form_digest(network: nn.Module) -> str:
    """SHA-256 of what decides a network's outputs beside its tensors, in hex.

    Strides, rates of dropout, head counts and the like: the plain values on its modules and the names
    of functions there, and its config. Where a user's file or a folder of transformers lies is no part
    of it: a project that was moved resumes.
    """
    lines = []
    for path, module in network.named_modules():
        plain = sorted(
            (name, told)
            for name, value in vars(module).items()
            if name not in ("training", *_OF_A_PLACE) and not name.startswith("_")
            if (told := _told(value)) is not None
        )
        lines.append(f"{path} {_full_name(type(module))} {plain}")
    to_dict = getattr(getattr(network, "config", None), "to_dict", None)
    if to_dict is not None:
        config = {k: v for k, v in to_dict().items() if k not in _OF_A_PLACE}
        lines.append(json.dumps(config, sort_keys=True, default=lambda value: type(value).__name__))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _told(value: object) -> str | None:
    """A plain value or a function, such as an activation, as text; None: it is neither."""
    if isinstance(value, FunctionType | BuiltinFunctionType):
        return _full_name(value)
    return repr(value) if _is_plain(value) else None


def _full_name(value: type | FunctionType | BuiltinFunctionType) -> str:
    """Module and name; the module of a user's file is named by the file, wherever that lies."""
    own = MODULE_NAME.fullmatch(value.__module__ or "")
    return f"{value.__module__ if own is None else own[1]}.{value.__qualname__}"


def _is_plain(value: object) -> bool:
    if isinstance(value, tuple | list):
        return all(_is_plain(one) for one in value)
    return value is None or isinstance(value, bool | int | float | str)


def whole_state(network: nn.Module) -> dict[str, Any]:
    """The state of a network as it is, not copied: its state dict, and the buffers that this leaves out."""
    return {**network.state_dict(), **_buffers_beside(network)}


def copy_state(network: nn.Module) -> dict[str, Any]:
    """The whole state of a network on the CPU, apart from its further life."""
    return {
        name: value.detach().to("cpu", copy=True) if isinstance(value, Tensor) else value
        for name, value in whole_state(network).items()
    }


def load_state_(network: nn.Module, state: Mapping[str, Any]) -> None:
    """Give a network a state that ``whole_state`` or ``copy_state`` gave.

    Of the buffers beside the state dict those are set that the network has in the same shape: others
    are what a forward pass makes, such as a table for the longest text so far, and makes again.
    """
    own = network.state_dict().keys()
    network.load_state_dict({name: state[name] for name in own if name in state})
    for name, buffer in _buffers_beside(network).items():
        kept = state.get(name)
        if kept is None or (kept.shape, kept.dtype) != (buffer.shape, buffer.dtype):
            continue
        value = kept.to(buffer.device)
        # An expanded view cannot be written to, nor has it changed by training.
        if not torch.equal(buffer, value):
            with torch.no_grad():
                buffer.copy_(value)


def _buffers_beside(network: nn.Module) -> dict[str, Tensor]:
    """Buffers that are not persistent, by name, such as masks and running means."""
    own = network.state_dict().keys()
    return {name: b.detach() for name, b in network.named_buffers() if name not in own}


def _tensors(network: nn.Module) -> dict[str, Tensor]:
    return {k: v for k, v in network.state_dict().items() if isinstance(v, Tensor)}


def frozen_parameters(network: nn.Module) -> str:
    """Which parameters are not trained, in a few words: names of the first, a digest of all."""
    names = sorted(name for name, p in network.named_parameters() if not p.requires_grad)
    if len(names) <= _NAMED:
        return ", ".join(names) or "none"
    digest = hashlib.sha256("\0".join(names).encode()).hexdigest()
    return f"{_first_names(names)} (sha256 {digest[:12]})"


def _held_weights(network: nn.Module) -> str:
    """Which connections are held at zero: names of the first weights, a digest of all masks."""
    masks = held_connections(network)
    if not masks:
        return "none"
    return f"{_first_names(sorted(masks))} (sha256 {tensors_digest(masks)[:12]})"


def _first_names(names: Sequence[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def _read(path: Path) -> dict[str, Any]:
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.testzip() is not None:  # torch.load does not look at the checksums
                raise _damaged(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise InputError(f"cannot read checkpoint {path}: {error.strerror or error}") from error
    except _BROKEN as error:
        raise _damaged(path) from error
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise InputError(
            f"{path} is not a checkpoint of a training; name a file that does not exist yet"
        )
    if any(key not in content for key in _KEYS):
        raise _damaged(path)
    return content


def _require_same(path: Path, saved: Identity, asked: Identity) -> None:
    change = told_change(saved, asked)
    if not change:
        return
    way_on = "start from the same network and settings"
    if change.startswith(f"{_HELD} "):
        way_on = (
            "a state dict leaves out what is held, so load the network (prunus.load) or cut it "
            "(prunus.cut) again"
        )
    raise InputError(
        f"checkpoint {path} is of another training: {change}; {way_on} to resume it, or delete the "
        "file or name another to train anew"
    )


def _damaged(path: Path) -> InputError:
    return InputError(
        f"checkpoint {path} is damaged, or none at all; delete it, or name another, to train anew"
    )
