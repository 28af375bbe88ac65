"""The training loop: deterministic for a seed, resumable at every epoch."""

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prunus.data import SearchSplit, Split, TrainSplit, UnlabeledSplit, composed_texts
from prunus.device import resolve_device
from prunus.errors import InputError
from prunus.graph import hold_connections_
from prunus.progress import Progress, Silent
from prunus.records import HistoryPoint
from prunus.train.checkpoint import (
    Checkpoint,
    Identity,
    copy_state,
    load_state_,
    training_identity,
    whole_state,
)
from prunus.train.config import TrainConfig
from prunus.train.epoch import EpochTrainer, deterministic
from prunus.train.evaluate import evaluate
from prunus.train.forward import modes_restored, placed, to_place
from prunus.train.precision import TRIAL_SAMPLES, Execution, choose_execution
from prunus.train.result import FitResult, best_epoch
from prunus.train.teacher import Teaching

TEXTS_SEED = 0
"""One set of texts put together for all seeds, so that a teacher's logits on them can be kept."""


def fit(  # noqa: PLR0913  # all but four are options, by keyword only
    network: nn.Module,
    train: TrainSplit,
    search: SearchSplit,
    config: TrainConfig,
    *,
    seed: int,
    teacher: nn.Module | None = None,
    unlabeled: UnlabeledSplit | None = None,
    checkpoint: Path | str | None = None,
    teacher_store: Path | str | None = None,
    progress: Progress | None = None,
    device: str | torch.device = "cpu",
    after_step: Callable[[nn.Module], None] | None = None,
) -> FitResult:
    """Train a network in place.

    Same seed, data and starting weights give the same weights bit for bit, in another process too,
    on a CPU with the same number of threads once ``precision`` and ``layout`` are pinned; on CUDA
    up to the operations that PyTorch lists as nondeterministic. That holds for what the network draws
    from the global generators of torch, NumPy and Python, too. Their states, training flags, device
    and layout are given back; a killed run resumes at its last epoch and ends with
    the weights of an uninterrupted one.

    Args:
        network: Returns logits; trained where ``requires_grad`` says so. Connections that a plan
            holds at zero stay zero.
        train: Weights are trained on it; a last batch of one sample is skipped.
        search: Evaluated after each epoch; chooses the epoch for ``select="best"``.
        config: All settings.
        seed: Of data order, augmentation, dropout and the global generators; at least 0.
        teacher: Of a distillation; used in eval mode, never changed. It may share frozen parameters
            with the network, but no modules.
        unlabeled: More samples, on which the teacher alone counts; an epoch passes over them, too.
        checkpoint: File kept at the end of every epoch. If it exists, training resumes from it,
            provided that it is of this very training: build the network anew, with the weights
            that it first started from and the connections that were held.
        teacher_store: Folder where logits of teachers are kept for other trainings on the same
            samples.
        progress: Told each step, with its loss, and each epoch, with its top-1.
        device: ``"cpu"`` or ``"cuda"``.
        after_step: Called with the network after every optimizer step, such as to hold cut
            connections at zero.

    Raises:
        InputError: The settings do not fit together, the checkpoint is damaged or of another
            training, or the loss is no longer finite.
    """
    where = resolve_device(device)
    if config.distill_texts:
        unlabeled = composed_texts(train, config.distill_texts, seed=TEXTS_SEED, beside=unlabeled)
    others: dict[str, Split] = {} if unlabeled is None else {"unlabeled": unlabeled}
    _check({"train": train, "search": search, **others}, seed)
    _check_teacher(config, network, teacher, unlabeled)
    hold_connections_(network)  # a copy has lost the hooks that keep its zeros
    store: _Store | None = None
    if checkpoint is not None:
        identity = training_identity(
            network, train, search, config, seed=seed, teacher=teacher, unlabeled=unlabeled
        )
        store = _Store(Path(checkpoint), identity)
    saved = store.read() if store else None
    execution = saved.execution if saved else _choose(network, train, config, where)
    with ExitStack() as stack:
        for module in (network, teacher):
            if module is not None:
                stack.enter_context(modes_restored(module))
                stack.enter_context(placed(module, where, channels_last=execution.channels_last))
        stack.enter_context(deterministic(where, seed))
        teaching = None
        if teacher is not None:
            teaching = Teaching(network, teacher, config, execution, where)
            sample = next(iter(train.batches(2)))[0]
            placed_sample = to_place(sample, where, channels_last=execution.channels_last)
            logits = None if teacher_store is None else Path(teacher_store)
            teaching.prepare(placed_sample, [train, *others.values()], seed, logits)
        trainer = EpochTrainer(
            network=network,
            teaching=teaching,
            config=config,
            execution=execution,
            device=where,
            seed=seed,
            samples=len(train),
            unlabeled=unlabeled,
            after_step=after_step,
            progress=progress or Silent(),
        )
        return _run(trainer, train.on(where), search.on(where), saved, store)


@dataclass(frozen=True)
class _Store:
    """Where the checkpoint of this very training is kept."""

    path: Path
    identity: Identity

    def read(self) -> Checkpoint | None:
        self.path.parent.mkdir(parents=True, exist_ok=True)  # here, and not while it is in use
        return Checkpoint.load(self.path, self.identity) if self.path.exists() else None


def _run(
    trainer: EpochTrainer,
    train: TrainSplit,
    search: SearchSplit,
    saved: Checkpoint | None,
    store: _Store | None,
) -> FitResult:
    """All epochs that are left, each with its evaluation and its checkpoint."""
    network, config, execution = trainer.network, trainer.config, trainer.execution
    history = list(saved.history) if saved else []
    best = saved.best if saved else None
    if saved:
        load_state_(network, saved.network)
        trainer.optimizer.load_state_dict(saved.optimizer)
        if trainer.teaching is not None:
            trainer.teaching.projection.load_state_dict(saved.projection)
    begin = time.perf_counter() - (history[-1].seconds if history else 0.0)
    progress = trainer.progress
    progress.start("train", config.epochs * trainer.steps)
    try:
        progress.advance(len(history) * trainer.steps)
        for epoch in range(len(history) + 1, config.epochs + 1):
            loss, lr = trainer.run(epoch, train)
            score = evaluate(
                network, search, device=trainer.device, channels_last=execution.channels_last
            )
            trainer.require_finite(score.loss, epoch * trainer.steps)
            values = {"train_loss": loss, "search_loss": score.loss, "search_top1": score.top1}
            if config.metric == "f1":
                values["search_f1"] = score.f1
            seconds = time.perf_counter() - begin
            point = HistoryPoint(
                phase="train", step=epoch, seconds=seconds, values={**values, "lr": lr}
            )
            history.append(point)
            if config.select == "best" and best_epoch(history, config.metric) == epoch:
                best = copy_state(network)
            if store:
                Checkpoint(
                    identity=store.identity,
                    network=whole_state(network),
                    optimizer=trainer.optimizer.state_dict(),
                    best=best,
                    history=tuple(history),
                    execution=execution,
                    projection=_projection(trainer),
                ).save(store.path)
            progress.advance(0, search_top1=score.top1)
    finally:
        progress.finish()
        trainer.optimizer.zero_grad(set_to_none=True)
    if best is not None:
        load_state_(network, best)
    return FitResult.of(history, config, execution)


def _choose(
    network: nn.Module, train: TrainSplit, config: TrainConfig, device: torch.device
) -> Execution:
    """Precision and layout, tried on the first training samples."""
    sample = next(iter(train.batches(min(config.batch_size, TRIAL_SAMPLES))))
    return choose_execution(network, sample, config, device)


def _projection(trainer: EpochTrainer) -> dict[str, Any]:
    teaching = trainer.teaching
    return {} if teaching is None else teaching.projection.state_dict()


def _check(splits: dict[str, Split], seed: int) -> None:
    for name, split in splits.items():
        if split.role != name:
            raise InputError(f"{name} is a {split.role} split; give the {name} split of the data")
    if seed < 0:
        raise InputError(f"seed={seed} must be at least 0")


def _check_teacher(
    config: TrainConfig,
    network: nn.Module,
    teacher: nn.Module | None,
    unlabeled: UnlabeledSplit | None,
) -> None:
    if teacher is network:
        raise InputError("teacher is the network itself; give a copy (copy.deepcopy) of it")
    if teacher is not None and (shared := _changed_in_both(network, teacher)):
        raise InputError(
            f"teacher shares '{shared}' with the network, and would change as that is trained; give "
            "a copy (copy.deepcopy) of it"
        )
    if config.teaches and teacher is None:
        raise InputError(
            f"distill_alpha={config.distill_alpha:g} needs a teacher; give one, or set it to 0"
        )
    if teacher is not None and not config.teaches:
        raise InputError(
            "a teacher is given but distill_alpha=0 would ignore it; set distill_alpha (such as "
            "0.9), or give no teacher"
        )
    if unlabeled is not None and not config.distill_alpha:
        raise InputError(
            "unlabeled is given but distill_alpha=0: without labels the teacher's logits alone "
            "teach; set distill_alpha (such as 0.9)"
        )


def _changed_in_both(network: nn.Module, teacher: nn.Module) -> str:
    """Name of the first module or trained parameter that is the teacher's, too; empty: there is none.

    A module is in train mode with the network, whatever of it is frozen: batch norms count on.
    """
    modules = {m for m in teacher.modules() if any(True for _ in (*m.parameters(), *m.buffers()))}
    if found := next((n for n, module in network.named_modules() if module in modules), ""):
        return found
    theirs = {p.untyped_storage().data_ptr() for p in teacher.parameters() if p.numel()}
    mine = ((n, p) for n, p in network.named_parameters() if p.requires_grad and p.numel())
    return next((n for n, p in mine if p.untyped_storage().data_ptr() in theirs), "")
