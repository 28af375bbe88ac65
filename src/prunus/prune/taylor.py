"""Units ranked by what the loss would change without them, to first order."""

import copy
from itertools import islice
from typing import Literal, final

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from prunus.data import TrainSplit
from prunus.errors import InputError
from prunus.graph import Trace
from prunus.graph.kept import may_keep, refresh_
from prunus.method import Context, Need, train_split
from prunus.progress import Progress, Silent
from prunus.prune.base import GlobalOptions, GlobalRanking, Ranked
from prunus.prune.scores import Axes, FloatArray, unit_scores
from prunus.train import classification_loss, forward_logits


class TaylorOptions(GlobalOptions):
    """As ``GlobalOptions``.

    ``images``: Training images the gradients are taken on, rounded down to whole batches.
    ``batch_size``: Images per gradient.
    ``combine``: ``elements`` sums ``(g w)^2``, ``unit`` squares ``sum g w``.
    ``axes``: ``out`` scores the filters that produce a unit, ``all`` every slice of it.
    """

    images: int = Field(default=1024, ge=1)
    batch_size: int = Field(default=64, ge=1)
    combine: Literal["elements", "unit"] = "elements"
    axes: Axes = "out"


@final
class Taylor(GlobalRanking[TaylorOptions]):
    """Units whose removal changes the loss least, to first order, go.

    With ``g = dL/dw`` of the mean cross-entropy of a batch, ``I[k] = mean over batches of
    sum_{w in k} (g w)^2``, or of ``(sum_{w in k} g w)^2``: the two approximations for sets of weights
    in Molchanov et al., "Importance Estimation for Neural Network Pruning", CVPR 2019, section 3.1.
    The paper takes gradients while training, prunes a little at a time and compares scores as they
    are; here they are taken once, in eval mode, on training images without augmentation, from a copy
    of the network, and compared relative to their group's mean: in one shot, raw scores halved the
    last layers of a CIFAR ResNet-20 (``normalize="none"`` has the paper's).
    """

    name = "taylor"
    summary = "units with the least first-order effect on the loss go (Molchanov et al. 2019)"
    needs = frozenset({Need.TRAIN})
    options_type = TaylorOptions

    def rank(self, context: Context) -> Ranked:
        """Accumulate squared first-order terms over batches.

        Raises:
            InputError: There is no training split, or gradients are not finite.
        """
        return Ranked(finite_scores(context, train_split(context, self), self.options))


def finite_scores(
    context: Context, split: TrainSplit, options: TaylorOptions
) -> dict[str, FloatArray]:
    """First-order importance of every unit of a context's network, which is not touched.

    Raises:
        InputError: Gradients are not finite.
    """
    scores = taylor_scores(
        copy.deepcopy(context.network).to(context.device),
        context.trace,
        split.subset(min(options.images, len(split)), context.seed),
        options,
        seed=context.seed,
        progress=context.progress,
    )
    bad = [name for name, mine in scores.items() if not np.isfinite(mine).all()]
    if bad:
        raise InputError(
            f"the network's gradients are not finite in {', '.join(bad)}: it has diverged; "
            "give trained weights"
        )
    return scores


def taylor_scores(
    network: nn.Module,
    trace: Trace,
    split: TrainSplit,
    options: TaylorOptions,
    *,
    seed: int,
    progress: Progress | None = None,
) -> dict[str, FloatArray]:
    """First-order importance of every unit that can be cut.

    Args:
        network: A network of one's own: its modes and gradients are overwritten.
        trace: Its trace.
        split: All its images are used, but for a last smaller batch.
        options: How terms are combined; ``images`` is not read.
        seed: Order of the images, so which of them share a gradient.
        progress: Told of every batch.
    """
    network.eval().requires_grad_(True)
    named = dict(network.named_parameters())
    size = min(options.batch_size, len(split))
    batches = len(split) // size
    shown = Silent() if progress is None else progress
    total: dict[str, FloatArray] = {g.name: np.zeros(g.units) for g in trace.cuttable}
    generator = torch.Generator().manual_seed(seed)
    shown.start("taylor", batches)
    keepers = may_keep(network)
    for inputs, labels in islice(split.batches(size, generator=generator), batches):
        refresh_(keepers)  # what was computed once has no gradient, or that of another batch
        terms = _terms(network, named, inputs, labels)
        if options.combine == "elements":
            terms = {name: term**2 for name, term in terms.items()}
        here = unit_scores(trace, terms, reduce="sum", axes=options.axes)
        for name, mine in here.items():
            total[name] += mine if options.combine == "elements" else mine**2
        shown.advance()
    shown.finish()
    return {name: mine / batches for name, mine in total.items()}


def _terms(
    network: nn.Module,
    named: dict[str, nn.Parameter],
    inputs: Tensor | dict[str, Tensor],
    labels: Tensor,
) -> dict[str, Tensor]:
    """``g * w`` of every parameter, in float64: squares of small terms vanish in float32."""
    device = next(iter(named.values())).device
    if isinstance(inputs, Tensor):
        placed: Tensor | dict[str, Tensor] = inputs.to(device)
    else:
        placed = {key: value.to(device) for key, value in inputs.items()}
    with torch.enable_grad():
        loss = classification_loss(forward_logits(network, placed), labels.to(device))
        gradients = torch.autograd.grad(
            loss, list(named.values()), allow_unused=True, materialize_grads=True
        )
    return {
        name: gradient.double() * weight.detach().double()
        for (name, weight), gradient in zip(named.items(), gradients, strict=True)
    }
