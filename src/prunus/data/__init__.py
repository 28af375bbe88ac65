"""Data sets in three splits, each its own type: train, search and test."""

from prunus.data.custom import CustomOptions, from_datasets
from prunus.data.dataset_store import DatasetStore, SizedDataset
from prunus.data.load import load_data
from prunus.data.roles import DataSplits, carve_search
from prunus.data.splits import (
    Samples,
    SearchSplit,
    Split,
    TestSplit,
    TrainSplit,
    UnlabeledSplit,
)
from prunus.data.stores import Inputs, Normalizer, SampleStore, TensorStore

__all__ = [
    "CustomOptions",
    "DataSplits",
    "DatasetStore",
    "Inputs",
    "Normalizer",
    "SampleStore",
    "Samples",
    "SearchSplit",
    "SizedDataset",
    "Split",
    "TensorStore",
    "TestSplit",
    "TrainSplit",
    "UnlabeledSplit",
    "carve_search",
    "from_datasets",
    "load_data",
]
