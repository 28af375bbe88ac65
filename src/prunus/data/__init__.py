"""Data sets in three splits, each its own type: train, search and test."""

from prunus.data.custom import CustomOptions, from_datasets
from prunus.data.dataset_store import DatasetStore, SizedDataset
from prunus.data.digest import tensors_digest
from prunus.data.load import load_data, named_size, with_image_size
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
from prunus.data.text.composed import composed_texts
from prunus.data.text.options import Cleaning, TextOptions
from prunus.data.text.sets import is_text_data
from prunus.data.text.stats import LengthStatistics, TextStatistics, length_statistics
from prunus.data.text.store import TokenStore
from prunus.data.text.tokenizer import TextTokenizer

__all__ = [
    "Cleaning",
    "CustomOptions",
    "DataSplits",
    "DatasetStore",
    "Inputs",
    "LengthStatistics",
    "Normalizer",
    "SampleStore",
    "Samples",
    "SearchSplit",
    "SizedDataset",
    "Split",
    "TensorStore",
    "TestSplit",
    "TextOptions",
    "TextStatistics",
    "TextTokenizer",
    "TokenStore",
    "TrainSplit",
    "UnlabeledSplit",
    "carve_search",
    "composed_texts",
    "from_datasets",
    "is_text_data",
    "length_statistics",
    "load_data",
    "named_size",
    "tensors_digest",
    "with_image_size",
]
