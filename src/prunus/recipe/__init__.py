"""Recipes: steps in order, checked before any compute, run, resumed, compared."""

from prunus.recipe.comparison import COMPARISON_FILE, TraceOptions, compare, standard_steps
from prunus.recipe.dense import TRAINING_FILE, Trained, TrainingRecord, train_network
from prunus.recipe.measure import LatencyOptions
from prunus.recipe.recipe import Recipe, load_recipe, make_recipe, parse_recipe
from prunus.recipe.run import RECORD_FILE, Compressed, compress
from prunus.recipe.steps import Deploy, Prune, Recalibrate, Repeat, Step, Student, Train
from prunus.recipe.subject import resolve_data, resolve_subject
from prunus.recipe.suites import SUITES, TextSuite, available_engines

__all__ = [
    "COMPARISON_FILE",
    "RECORD_FILE",
    "SUITES",
    "TRAINING_FILE",
    "Compressed",
    "Deploy",
    "LatencyOptions",
    "Prune",
    "Recalibrate",
    "Recipe",
    "Repeat",
    "Step",
    "Student",
    "TextSuite",
    "TraceOptions",
    "Train",
    "Trained",
    "TrainingRecord",
    "available_engines",
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
