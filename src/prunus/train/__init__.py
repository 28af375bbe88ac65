"""Training, evaluation, batch-norm recalibration and losses."""

from prunus.train.config import TrainConfig
from prunus.train.evaluate import Evaluation, answers, evaluate, evaluation_of, predictions
from prunus.train.fit import fit
from prunus.train.forward import forward_logits
from prunus.train.losses import classification_loss, distillation_loss, teacher_loss
from prunus.train.precision import Execution
from prunus.train.recalibrate import recalibrate_batch_norm_, statistics_are_augmented
from prunus.train.result import FitResult
from prunus.train.schedule import lr_at

__all__ = [
    "Evaluation",
    "Execution",
    "FitResult",
    "TrainConfig",
    "answers",
    "classification_loss",
    "distillation_loss",
    "evaluate",
    "evaluation_of",
    "fit",
    "forward_logits",
    "lr_at",
    "predictions",
    "recalibrate_batch_norm_",
    "statistics_are_augmented",
    "teacher_loss",
]
