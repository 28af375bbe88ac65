"""Recipes: steps in order, checked before any compute, run, resumed, compared."""

from prunus.recipe.comparison import COMPARISON_FILE, TraceOptions, compare, standard_steps
from prunus.recipe.dense import TRAINING_FILE, Trained, TrainingRecord, train_network
from prunus.recipe.measure import LatencyOptions
from prunus.recipe.recipe import Recipe, load_recipe, make_recipe, parse_recipe
from prunus.recipe.run import RECORD_FILE, Compressed, compress
from prunus.recipe.steps import Prune, Recalibrate, Repeat, Step, Train
from prunus.recipe.subject import resolve_data, resolve_subject

__all__ = [
    "COMPARISON_FILE",
    "RECORD_FILE",
    "TRAINING_FILE",
    "Compressed",
    "LatencyOptions",
    "Prune",
    "Recalibrate",
    "Recipe",
    "Repeat",
    "Step",
    "TraceOptions",
    "Train",
    "Trained",
    "TrainingRecord",
    "compare",
    "compress",
    "load_recipe",
    "make_recipe",
    "parse_recipe",
    "resolve_data",
    "resolve_subject",
    "standard_steps",
    "train_network",
]
