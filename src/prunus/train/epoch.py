"""One pass over the training split, seeded by the seed of the training and its own number."""

import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from prunus.data import Inputs, TrainSplit, UnlabeledSplit
from prunus.errors import InputError
from prunus.progress import Progress
from prunus.seeding import random_states_kept, seed_globally_
from prunus.train.captured import MIN_STEPS, CapturedLoss
from prunus.train.config import TrainConfig
from prunus.train.forward import foreign_errors_told, forward_logits, to_place
from prunus.train.losses import classification_loss
from prunus.train.optimizer import make_optimizer
from prunus.train.precision import Execution
from prunus.train.schedule import lr_at, steps_per_epoch
from prunus.train.teacher import Teaching

_USUAL_LR = {"sgd": 0.1, "adamw": 5e-4}
"""At which a fresh network is trained where none is asked for: a tenth of 1e30 is no advice."""

_Placed = tuple[Tensor, Inputs, Tensor]


@dataclass
class EpochTrainer:
    """Trains epoch after epoch. Network and teacher must already be on ``device``.

    Every epoch seeds its data order, its dropout and what else is drawn from the global generators
    of torch, NumPy and Python anew from ``(seed, epoch)``: to resume a
    training, weights and optimizer state are enough.
    """

    network: nn.Module
    teaching: Teaching | None
    config: TrainConfig
    execution: Execution
    device: torch.device
    seed: int
    samples: int
    unlabeled: UnlabeledSplit | None
    after_step: Callable[[nn.Module], None] | None
    progress: Progress
    optimizer: torch.optim.Optimizer = field(init=False)
    _captured: CapturedLoss | None = field(default=None, init=False)
    _captures: bool = field(default=True, init=False)

    def __post_init__(self) -> None:
        self.optimizer = make_optimizer(self.network, self.config, self._projection)

    @property
    def _projection(self) -> tuple[nn.Parameter, ...]:
        """Trained beside the network, and left behind at the end."""
        return () if self.teaching is None else tuple(self.teaching.projection.parameters())

    @property
    def _trained(self) -> list[nn.Parameter]:
        """What the optimizer moves: a frozen parameter may have a gradient of before."""
        return [*(p for p in self.network.parameters() if p.requires_grad), *self._projection]

    @property
    def steps(self) -> int:
        """Optimizer steps of one epoch, those on samples without labels included."""
        size = self.config.batch_size
        other = 0 if self.unlabeled is None else steps_per_epoch(len(self.unlabeled), size)
        return steps_per_epoch(self.samples, size) + other

    def run(self, epoch: int, split: TrainSplit) -> tuple[float, float]:
        """Train one epoch, counted from 1; mean loss over its steps, and its last learning rate.

        Raises:
            InputError: The loss is no longer finite.
        """
        generator = torch.Generator().manual_seed(_derived_seed(self.seed, epoch, 0))
        seed_globally_(_derived_seed(self.seed, epoch, 1), _cuda(self.device))
        self.network.train()
        step = first = (epoch - 1) * self.steps
        total = lr = 0.0
        for role, placed in self._batches(split, generator):
            lr = self._set_lr(step)
            loss = self._step(step, placed, role)
            total += loss
            step += 1
            self.progress.advance(loss=loss)
        return total / (step - first), lr

    def require_finite(self, loss: float, step: int) -> None:
        """Stop a training that has diverged.

        Raises:
            InputError: The loss after ``step`` steps is not finite.
        """
        if math.isfinite(loss):
            return
        if step == 0:
            raise InputError(
                f"loss is {loss} before the first step: inputs or weights hold values that are not "
                "finite, or too large; check the data, its normalization and the loaded weights"
            )
        lr = self.config.lr
        usual = min(lr / 10, _USUAL_LR[self.config.optimizer])
        raise InputError(
            f"training diverged: loss is {loss} after {step} steps with lr={lr:g}; "
            f"use a smaller lr (such as {usual:g}) or set grad_clip (such as 1.0)"
        )

    def _set_lr(self, step: int) -> float:
        lr = lr_at(
            step,
            self.steps * self.config.epochs,
            peak=self.config.lr,
            warmup_fraction=self.config.warmup_fraction,
            final_lr_fraction=self.config.final_lr_fraction,
            schedule=self.config.schedule,
        )
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        return lr

    def _batches(
        self, split: TrainSplit, generator: torch.Generator
    ) -> Iterator[tuple[str, _Placed]]:
        """Batches of both splits in a random order. A last batch of one sample is left out."""
        size = self.config.batch_size
        labeled = split.placed_batches(size, generator=generator, augment=self.config.augment)
        own = steps_per_epoch(len(split), size)
        if self.unlabeled is None:
            yield from ((split.role, placed) for placed in itertools.islice(labeled, own))
            return
        others = self.unlabeled.placed_batches(size, generator=generator)
        sources = {True: (split.role, labeled), False: (self.unlabeled.role, others)}
        for turn in torch.randperm(self.steps, generator=generator).tolist():
            role, batches = sources[turn < own]
            yield role, next(batches)

    def _step(self, step: int, placed: _Placed, role: str) -> float:
        positions, batch, batch_labels = placed
        inputs = to_place(batch, self.device, channels_last=self.execution.channels_last)
        labels = None if role == "unlabeled" else batch_labels.to(self.device)
        value = self._captured_step(step, inputs, labels, role)
        if value is None:
            with foreign_errors_told(f"training step {step + 1}:"):
                loss = self._loss(inputs, labels, positions, role)
            value = float(loss.detach())
            self.require_finite(value, step)
            self.optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
        if self.config.grad_clip:
            nn.utils.clip_grad_norm_(self._trained, self.config.grad_clip)
        self.optimizer.step()
        if self.after_step is not None:
            self.after_step(self.network)
        return value

    def _captured_step(
        self, step: int, inputs: Inputs, labels: Tensor | None, role: str
    ) -> float | None:
        """Loss and gradients by a CUDA graph; None where there is none."""
        if not isinstance(inputs, Tensor) or labels is None or not self._captures:
            return None
        if self.device.type != "cuda" or len(labels) != self.config.batch_size:
            return None
        if self.teaching is not None and not self.teaching.is_pure:
            return None
        if self.steps * self.config.epochs < MIN_STEPS:
            return None
        if self._captured is None:
            nowhere = torch.empty(0, dtype=torch.int64)
            parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
            try:
                self._captured = CapturedLoss(
                    self.network,
                    lambda batch, classes: self._loss(batch, classes, nowhere, role),
                    parameters,
                    inputs,
                    labels,
                )
            except RuntimeError:
                self._captures = False  # one by one, then
                return None
        if not self._captured.takes(inputs):
            return None
        value = self._captured(inputs, labels)
        self.require_finite(value, step)
        return value

    def _loss(self, inputs: Inputs, labels: Tensor | None, positions: Tensor, role: str) -> Tensor:
        if self.teaching is not None:
            return self.teaching.loss(inputs, labels, positions, role)
        if labels is None:
            raise ValueError("samples without labels need a teacher")
        with self.execution.autocast(self.device):
            logits = forward_logits(self.network, inputs)
        return classification_loss(logits, labels, label_smoothing=self.config.label_smoothing)


@contextmanager
def deterministic(device: torch.device, seed: int) -> Iterator[None]:
    """Seed the global random states, and give them back at the end; hold cuDNN to repeatable kernels.

    What is drawn before the first epoch, as by a teacher, is the same in a training that is resumed.
    """
    cudnn = torch.backends.cudnn
    before = cudnn.deterministic, cudnn.benchmark
    with random_states_kept(_cuda(device)):
        seed_globally_(_derived_seed(seed, 0, 1), _cuda(device))
        if device.type == "cuda":
            cudnn.deterministic, cudnn.benchmark = True, False
        try:
            yield
        finally:
            cudnn.deterministic, cudnn.benchmark = before


def _derived_seed(seed: int, epoch: int, stream: int) -> int:
    """Independent seeds for every epoch, counted from 1, and use; epoch 0 is what comes before."""
    return int(np.random.SeedSequence([seed, epoch, stream]).generate_state(1, np.uint64)[0])


def _cuda(device: torch.device) -> list[int]:
    """Index of a CUDA device; none for the CPU."""
    return [device.index] if device.type == "cuda" else []
