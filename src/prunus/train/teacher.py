"""The teacher of a training: what its outputs are, and the loss against them."""

import os
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from prunus.data import Inputs, Split, tensors_digest
from prunus.errors import InputError
from prunus.train.checkpoint import teacher_digest
from prunus.train.config import TrainConfig
from prunus.train.evaluate import predictions
from prunus.train.forward import forward_logits, modes_restored
from prunus.train.losses import classification_loss, distillation_loss, teacher_loss
from prunus.train.precision import Execution
from prunus.train.taught import (
    Reading,
    attention_loss,
    hidden_loss,
    hidden_width,
    matched_layers,
    text_weights,
)

_CACHE_BATCH = 128
_LOGITS, _SHA256 = "logits", "sha256"  # tensor and its digest in a file of logits


@dataclass
class Teaching:
    """Loss of a student against labels and teacher. Student and teacher are on ``device``.

    Attributes:
        student: In training.
        teacher: In eval mode, never changed.
        config: Of the training.
        execution: Number format and layout.
        device: Of both.
        projection: Of the student's hidden states to the teacher's width; trained with the student,
            and no part of it.
    """

    student: nn.Module
    teacher: nn.Module
    config: TrainConfig
    execution: Execution
    device: torch.device
    projection: nn.Module = field(default_factory=nn.Identity)
    _known: dict[str, Tensor] = field(default_factory=dict)

    def prepare(
        self, sample: Inputs, splits: list[Split], seed: int, store: Path | None = None
    ) -> None:
        """Draw the projection, and compute the teacher's logits where they can be kept.

        The logits are those of a pass in an order of its own, so that a resumed training has the
        same ones to the bit; so has another training that finds them in ``store``.

        Raises:
            InputError: Logits, hidden states or attention of the two cannot be compared, or a file
                of ``store`` is damaged.
        """
        self.teacher.eval()
        self._try(sample, seed)
        if self.config.cache_teacher and not self.config.teaches_layers:
            for split in splits:
                if not (self.config.augment and split.augments):
                    self._known[split.role] = self._kept_logits(split, store)

    @property
    def is_pure(self) -> bool:
        """Whether the loss is a function of the batch alone: no kept logits, no hooks."""
        return not self._known and not self.config.teaches_layers

    def loss(self, inputs: Inputs, labels: Tensor | None, positions: Tensor, role: str) -> Tensor:
        """Of a batch.

        Args:
            inputs: On the device.
            labels: int64 ``[batch]``; None: the teacher alone counts.
            positions: Of the samples in their split.
            role: Of the split.
        """
        if self.config.teaches_layers:
            logits, target, more = self._read(inputs)
            return self._on_logits(logits, target, labels) + more
        logits = self._answer(inputs)
        if role in self._known:
            target = self._known[role][positions].to(self.device)
        else:
            target = self._taught(inputs)
        return self._on_logits(logits, target, labels)

    def _kept_logits(self, split: Split, store: Path | None) -> Tensor:
        """Logits of a whole split, from the folder where they lie there."""
        file = None
        if store is not None:
            digest = teacher_digest(self.teacher, split, self.execution)
            file = store / f"{digest[:32]}.safetensors"
            if file.exists() and (kept := _read_logits(file, len(split))) is not None:
                return kept
        with self.execution.autocast(self.device):
            logits = predictions(
                self.teacher,
                split,
                batch_size=_CACHE_BATCH,
                device=self.device,
                channels_last=self.execution.channels_last,
            )
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            part = file.with_name(f".{file.name}.part-{os.getpid()}")
            content = {_LOGITS: logits.clone()}
            save_file(content, part, metadata={_SHA256: tensors_digest(content)})
            part.replace(file)
        return logits

    def _on_logits(self, logits: Tensor, target: Tensor, labels: Tensor | None) -> Tensor:
        config = self.config
        if labels is None:
            soft = teacher_loss(
                logits, target, temperature=config.distill_temperature, kind=config.distill_loss
            )
            return config.distill_alpha * soft
        if not config.distill_alpha:
            return classification_loss(logits, labels, label_smoothing=config.label_smoothing)
        return distillation_loss(
            logits,
            target,
            labels,
            alpha=config.distill_alpha,
            temperature=config.distill_temperature,
            label_smoothing=config.label_smoothing,
            kind=config.distill_loss,
        )

    def _answer(self, inputs: Inputs) -> Tensor:
        with self.execution.autocast(self.device):
            return forward_logits(self.student, inputs)

    def _taught(self, inputs: Inputs) -> Tensor:
        with torch.no_grad(), self.execution.autocast(self.device):
            return forward_logits(self.teacher, inputs)

    def _read(self, inputs: Inputs) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of both, and the loss between their layers."""
        mine, theirs = self._readings()
        with mine.open(), self.execution.autocast(self.device):
            logits, states, attention = mine.call(inputs)
        with theirs.open(), torch.no_grad(), self.execution.autocast(self.device):
            target, teacher_states, teacher_attention = theirs.call(inputs)
        at = matched_layers(len(states), len(teacher_states), self.config.distill_layers)
        mask = text_weights(inputs, states[0].float())
        loss = logits.new_zeros((), dtype=torch.float32)
        if self.config.distill_hidden:
            own = [state.float() for state in states]
            other = [state.float() for state in teacher_states]
            distance = hidden_loss(own, other, at, self.projection, mask)
            loss = loss + self.config.distill_hidden * distance
        if self.config.distill_attention:
            distance = attention_loss(attention, teacher_attention, at, mask)
            loss = loss + self.config.distill_attention * distance
        return logits, target, loss

    def _readings(self) -> tuple[Reading, Reading]:
        """Of student and teacher."""
        return Reading(self.student, self.config, self.teacher), Reading(self.teacher, self.config)

    def _try(self, sample: Inputs, seed: int) -> None:
        """Compare the two once, before any training, with a projection where one is needed."""
        with modes_restored(self.student), torch.no_grad():
            self.student.eval()
            if self.config.distill_hidden:
                self._draw_projection(sample, seed)
            if self.config.teaches_layers:
                logits, target, _ = self._read(sample)
            else:
                logits, target = self._answer(sample), self._taught(sample)
            if self.config.distill_alpha:
                self._on_logits(logits, target, None)

    def _draw_projection(self, sample: Inputs, seed: int) -> None:
        mine, theirs = (hidden_width(reading, sample) for reading in self._readings())
        if mine != theirs:
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(seed)
                self.projection = nn.Linear(mine, theirs, bias=False).to(self.device)


def _read_logits(file: Path, samples: int) -> Tensor | None:
    """Logits of so many samples as they were written; None where no digest was written with them."""
    way_on = "delete the file to compute them anew"
    try:
        with safe_open(file, framework="pt") as content:
            logits: Tensor = content.get_tensor(_LOGITS)
            digest = (content.metadata() or {}).get(_SHA256)
    except (OSError, SafetensorError) as error:
        raise InputError(f"logits of a teacher in {file} cannot be read; {way_on}") from error
    if digest is None:
        return None
    if digest != tensors_digest({_LOGITS: logits}) or len(logits) != samples:
        raise InputError(
            f"logits of a teacher in {file} are not those that were written (their SHA-256 or their "
            f"number differs); {way_on}"
        )
    return logits
