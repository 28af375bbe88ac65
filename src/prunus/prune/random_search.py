"""Random search over layer widths: what any search must beat."""

import time
from collections.abc import Iterator
from typing import Literal, final

import numpy as np
from pydantic import Field

from prunus.candidates import Candidate, Engine, Scoring, ranked
from prunus.method import Configured, Context, Decision, Need, search_split, train_split
from prunus.plan import Record
from prunus.prune.budget import ratio_choice
from prunus.prune.history import candidate_history
from prunus.prune.magnitude import magnitude_scores


class RandomSearchOptions(Record):
    """What is tried, and how it is scored.

    ``evaluations``: Proposals, the uniform one first.
    ``images``: Images of the search split that the best are ranked on (all, if fewer).
    ``jitter``: Standard deviation of the logarithm of a group's kept ratio around the common one.
    ``recalibration_images``: Training images for batch-norm statistics after a cut.
    ``fitness``: What makes a proposal good; see ``Scoring``.
    ``halving``: Drop a proposal as soon as few images show that it is not the best.
    """

    evaluations: int = Field(default=32, ge=1)
    images: int = Field(default=1000, ge=2)
    jitter: float = Field(default=0.3, gt=0, le=2)
    recalibration_images: int = Field(default=256, ge=2)
    fitness: Literal["kl", "loss", "accuracy"] = "kl"
    halving: bool = True


@final
class RandomSearch(Configured[RandomSearchOptions]):
    """The best of some random width profiles, the null baseline of every search.

    A proposal draws a factor per group, log-normal around 1, and keeps units by L2 norm in shares
    proportional to it, the budget met exactly. The first proposal has all factors 1, which is method
    ``l2``. Each is cut, its batch-norm statistics are measured anew on training images, and images of
    the search split decide: by default the mean of ``KL(original || proposal)``, nats, where
    ``original`` is the dense network before all cuts of the run. What is closest to it wins; labels
    are not looked at.

    This is the search of Li et al., "EagleEye", ECCV 2020, section 3, and the null that Li and
    Talwalkar ask for ("Random Search and Reproducibility for Neural Architecture Search", UAI 2019).
    Deviations: EagleEye draws uniform shares and ranks by accuracy (``fitness=accuracy`` does).
    """

    name = "random-search"
    summary = "best of random width profiles, closest to the dense network (null of every search)"
    needs = frozenset({Need.TRAIN, Need.SEARCH})
    null = True
    options_type = RandomSearchOptions

    def decide(self, context: Context) -> Decision:
        """Propose all, score all, keep the best."""
        options = self.options
        train_split(context, self)
        search_split(context, self)
        begin = time.perf_counter()
        scoring = Scoring(
            images=options.images,
            calibration_images=options.recalibration_images,
            fitness=options.fitness,
        )
        proposals = list(self._propose(context))
        with Engine.open(context, scoring) as engine:
            scored = engine.score(proposals, top=1 if options.halving else None)
            note = f"{self.name}: candidates were scored in {engine.execution}"
            earlier, evaluations = engine.earlier_seconds, engine.evaluations
        seconds = [time.perf_counter() - begin] * len(scored)
        history = candidate_history(self.name, scored, options.fitness, seconds)
        return Decision(
            choice=ranked(scored)[0].candidate.choice,
            history=history,
            evaluations=evaluations,
            notes=(note,),
            earlier_seconds=earlier,
        )

    def _propose(self, context: Context) -> Iterator[Candidate]:
        """Width profiles: proposal ``k`` of a seed is the same whatever the number of proposals."""
        options, progress = self.options, context.progress
        norms = magnitude_scores(context.network, context.trace, norm="l2", axes="out")
        generator = np.random.default_rng(context.seed)
        progress.start("propose", options.evaluations)
        for step in range(options.evaluations):
            factors = np.exp(options.jitter * generator.standard_normal(len(norms)) * (step > 0))
            weights = dict(zip(norms, factors.tolist(), strict=True))
            yield Candidate(ratio_choice(context.trace, context.budget, norms, weights))
            progress.advance()
        progress.finish()
