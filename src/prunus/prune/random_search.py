"""Random search over layer widths: what any search must beat."""

import math
import time
from typing import final

import numpy as np
from pydantic import Field

from prunus.data import SearchSplit
from prunus.graph import Choice, cut
from prunus.method import Context, Decision, Need
from prunus.plan import Record
from prunus.prune.base import Configured, search_split, train_split
from prunus.prune.budget import ratio_choice
from prunus.prune.magnitude import magnitude_scores
from prunus.records import HistoryPoint
from prunus.train import evaluate, recalibrate_batch_norm_


class RandomSearchOptions(Record):
    """What is tried, and on how many images.

    ``evaluations``: Proposals, the uniform one first.
    ``images``: Images of the search split that score a proposal (all, if fewer).
    ``jitter``: Standard deviation of the logarithm of a group's kept ratio around the common one.
    ``recalibration_images``: Training images for batch-norm statistics after a cut.
    """

    evaluations: int = Field(default=32, ge=1)
    images: int = Field(default=1000, ge=1)
    jitter: float = Field(default=0.3, gt=0, le=2)
    recalibration_images: int = Field(default=256, ge=2)


@final
class RandomSearch(Configured[RandomSearchOptions]):
    """The best of some random width profiles, the null baseline of every search.

    A proposal draws a factor per group, log-normal around 1, and keeps units by L2 norm in shares
    proportional to it, the budget met exactly. It is cut, its batch-norm statistics are measured anew
    on training images, and its loss on images of the search split decides. The first proposal has all
    factors 1, which is method ``l2``. This is the search of Li et al., "EagleEye", ECCV 2020,
    section 3, and the null that Li and Talwalkar ask for ("Random Search and Reproducibility for
    Neural Architecture Search", UAI 2019).
    """

    name = "random-search"
    summary = "best of random width profiles by search loss (null baseline of every search)"
    needs = frozenset({Need.TRAIN, Need.SEARCH})
    null = True
    options_type = RandomSearchOptions

    def decide(self, context: Context) -> Decision:
        """Propose, evaluate, keep the best; of equal ones the first."""
        options, trace = self.options, context.trace
        search = search_split(context, self)
        images = search.subset(min(options.images, len(search)), context.seed)
        norms = magnitude_scores(context.network, trace, norm="l2", axes="out")
        generator = np.random.default_rng(context.seed)
        best: Choice = {}
        best_loss = math.inf
        history = []
        started = time.perf_counter()
        context.progress.start(self.name, options.evaluations)
        for step in range(options.evaluations):
            factors = np.exp(options.jitter * generator.standard_normal(len(norms)) * (step > 0))
            weights = dict(zip(norms, factors.tolist(), strict=True))
            choice = ratio_choice(trace, context.budget, norms, weights)
            loss, top1 = self._evaluate(context, choice, images)
            if step == 0 or loss < best_loss:
                best, best_loss = choice, loss
            values = {"loss": loss, "top1": top1, "best_loss": best_loss}
            values = {k: v for k, v in values.items() if math.isfinite(v)}  # JSON has no infinity
            seconds = time.perf_counter() - started
            history.append(HistoryPoint(phase=self.name, step=step, seconds=seconds, values=values))
            context.progress.advance(best_loss=best_loss)
        context.progress.finish()
        return Decision(choice=best, history=tuple(history), evaluations=options.evaluations)

    def _evaluate(
        self, context: Context, choice: Choice, images: SearchSplit
    ) -> tuple[float, float]:
        """Loss and top-1 of a proposal; a loss that is not finite loses to all others."""
        smaller = cut(context.network, context.trace.plan(choice))
        recalibrate_batch_norm_(
            smaller,
            train_split(context, self),
            images=self.options.recalibration_images,
            seed=context.seed,
            device=context.device,
        )
        result = evaluate(smaller, images, device=context.device)
        return (result.loss if math.isfinite(result.loss) else math.inf), result.top1
