"""Ways to replace layers by chains of thinner ones: importing this registers them all."""

from prunus.lowrank.options import LowRankOptions
from prunus.lowrank.stacked_tucker import StackedTucker
from prunus.lowrank.svd import Svd
from prunus.lowrank.tucker import Tucker
from prunus.method import register

register(Svd, Tucker, StackedTucker)

__all__ = ["LowRankOptions", "StackedTucker", "Svd", "Tucker"]
