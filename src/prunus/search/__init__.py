"""Evolution by ask and tell, its operators, and Pareto tools. Knows no network."""

from prunus.search.crossover import break_point, uniform
from prunus.search.genetic import GeneticSearch
from prunus.search.individual import Individual
from prunus.search.mutation import swap
from prunus.search.nsga2 import Nsga2
from prunus.search.pareto import hypervolume, nondominated
from prunus.search.sampling import gumbel_ranks
from prunus.search.selection import best_distinct

__all__ = [
    "GeneticSearch",
    "Individual",
    "Nsga2",
    "best_distinct",
    "break_point",
    "gumbel_ranks",
    "hypervolume",
    "nondominated",
    "swap",
    "uniform",
]
