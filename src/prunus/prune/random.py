"""Units kept at random: what any ranking must beat."""

from typing import final

import numpy as np

from prunus.method import Context, NoOptions
from prunus.prune.base import Ranked, UniformRanking


@final
class Random(UniformRanking[NoOptions]):
    """The same share of every group, its units drawn at random.

    After fine-tuning this null baseline is hard to beat (Mittal et al., "Studying the Plasticity in
    Deep Convolutional Neural Networks using Random Pruning", 2018, https://arxiv.org/abs/1812.10240).
    """

    name = "random"
    summary = "units drawn at random, the same share of every group (null baseline)"
    null = True
    options_type = NoOptions

    def rank(self, context: Context) -> Ranked:
        """Independent uniform scores."""
        generator = np.random.default_rng(context.seed)
        return Ranked({g.name: generator.random(g.units) for g in context.trace.cuttable})
