"""Ways to decide which channels stay: importing this registers them all."""

from prunus.method import register
from prunus.prune.bn_scale import BnScale
from prunus.prune.budget import global_choice, ratio_choice, uniform_choice
from prunus.prune.genetic import Genetic
from prunus.prune.layers import Layers
from prunus.prune.magnitude import L1, L2, GroupL2, L1Global, L2Global
from prunus.prune.magnitude_weights import MagnitudeWeights
from prunus.prune.random import Random
from prunus.prune.random_search import RandomSearch
from prunus.prune.scores import unit_scores
from prunus.prune.scratch import Scratch
from prunus.prune.taylor import Taylor
from prunus.prune.vocabulary import Vocabulary

register(Random, Scratch, L1, L2, L1Global, L2Global, GroupL2, BnScale, Taylor)
register(RandomSearch, Genetic)
register(Layers, Vocabulary, MagnitudeWeights)

__all__ = [
    "L1",
    "L2",
    "BnScale",
    "Genetic",
    "GroupL2",
    "L1Global",
    "L2Global",
    "Layers",
    "MagnitudeWeights",
    "Random",
    "RandomSearch",
    "Scratch",
    "Taylor",
    "Vocabulary",
    "global_choice",
    "ratio_choice",
    "uniform_choice",
    "unit_scores",
]
