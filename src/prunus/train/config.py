"""The settings of a training: one frozen record, checked when it is made."""

from typing import Literal, Self

from pydantic import Field, model_validator

from prunus.plan import Record

Precision = Literal["float32", "bfloat16"]
Layout = Literal["contiguous", "channels_last"]


class TrainConfig(Record):
    """How to train: all that, with the seed, decides the weights that come out.

    Attributes:
        epochs: Passes over the training split.
        lr: Peak learning rate.
        batch_size: Samples per optimizer step.
        optimizer: SGD with momentum, or AdamW (betas 0.9 and 0.999).
        momentum: Of SGD alone; 0 turns it off.
        nesterov: Nesterov's form of the momentum, of SGD alone.
        weight_decay: L2 factor (SGD) or decoupled decay (AdamW).
        exempt_norm_and_bias: No weight decay on biases and on parameters of normalization layers
            (He et al., "Bag of Tricks for Image Classification", CVPR 2019, section 3.1).
        schedule: ``one-cycle``: linear warm-up, then cosine; ``linear``: linear warm-up and decay, as
            BERT is fine-tuned; see ``prunus.train.lr_at``.
        warmup_fraction: Share of all steps spent on the warm-up.
        final_lr_fraction: Learning rate at the end, as a fraction of the peak.
        label_smoothing: Share of the label spread evenly over all classes.
        augment: Ask the training split for augmented samples.
        distill_alpha: Weight of the teacher in the loss; 0: train on labels alone.
        distill_temperature: Temperature that softens the logits of student and teacher.
        distill_loss: How logits are compared: ``kl`` of softened distributions, or ``mse`` of the
            logits themselves (Tang et al. 2019, eq. 3).
        distill_hidden: Weight of the distance between hidden states of student and teacher, through
            a learned projection where their widths differ; 0: none. Both have a stack of layers.
        distill_attention: Weight of the distance between attention probabilities; 0: none. Both are
            transformers with the same number of heads.
        distill_layers: Which teacher's layer each of the student's is compared with: ``uniform``:
            spread evenly; ``last``: the last ones.
        distill_texts: Texts put together from training texts, on which the teacher alone counts; an
            epoch passes over them, too. See ``prunus.data.composed_texts``.
        cache_teacher: Compute the teacher's logits once for all epochs, where samples are not
            augmented and logits are all that is compared.
        grad_clip: Largest L2 norm of the whole gradient; 0: not clipped.
        precision: Of forward and backward; weights stay as they are. ``auto``: measured.
        layout: Memory layout of images. ``auto``: measured.
        select: Weights to end with: of the last epoch, or of the best one on the search split.
        metric: By which the best epoch is told.
    """

    epochs: int = Field(ge=1)
    lr: float = Field(gt=0, allow_inf_nan=False)
    batch_size: int = Field(default=128, ge=1, lt=2**31)
    optimizer: Literal["sgd", "adamw"] = "sgd"
    momentum: float = Field(default=0.9, ge=0, lt=1)
    nesterov: bool = True
    weight_decay: float = Field(default=5e-4, ge=0, allow_inf_nan=False)
    exempt_norm_and_bias: bool = True
    schedule: Literal["one-cycle", "linear"] = "one-cycle"
    warmup_fraction: float = Field(default=0.15, ge=0, le=1)
    final_lr_fraction: float = Field(default=0.01, ge=0, le=1)
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    augment: bool = True
    distill_alpha: float = Field(default=0.0, ge=0, le=1)
    distill_temperature: float = Field(default=4.0, gt=0, allow_inf_nan=False)
    distill_loss: Literal["kl", "mse"] = "kl"
    distill_hidden: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    distill_attention: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    distill_layers: Literal["uniform", "last"] = "uniform"
    distill_texts: int = Field(default=0, ge=0)
    cache_teacher: bool = True
    grad_clip: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    layout: Literal["auto", "contiguous", "channels_last"] = "auto"
    select: Literal["last", "best"] = "last"
    metric: Literal["top1", "f1"] = "top1"

    @model_validator(mode="after")
    def _has_teacher(self) -> Self:
        if self.distill_texts and not self.distill_alpha:
            raise ValueError(
                f"distill_texts={self.distill_texts} have no labels, and distill_alpha=0 asks no teacher; "
                "set distill_alpha (such as 0.9)"
            )
        return self

    @property
    def teaches(self) -> bool:
        """Whether a teacher is needed."""
        return bool(self.distill_alpha or self.distill_hidden or self.distill_attention)

    @property
    def teaches_layers(self) -> bool:
        """Whether more than logits of the teacher is compared."""
        return bool(self.distill_hidden or self.distill_attention)
