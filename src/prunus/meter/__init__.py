"""What a network costs: MACs, parameters, bytes, time and memory, one measure a file."""

from prunus.graph.inputs import logits_in
from prunus.meter.cost import measure_cost
from prunus.meter.latency import measure_latencies, measure_latency
from prunus.meter.macs import MacCount, count_macs
from prunus.meter.memory import peak_memory_bytes
from prunus.meter.params import count_nonzero_params, count_params
from prunus.meter.predictor import (
    ExampleInputs,
    NetworkPredictor,
    Predictor,
    as_predictor,
    eval_mode,
)
from prunus.meter.size import BYTES_PER_MB, file_size_bytes, format_bytes, path_size_bytes
from prunus.meter.sparse import sparse_bytes

__all__ = [
    "BYTES_PER_MB",
    "ExampleInputs",
    "MacCount",
    "NetworkPredictor",
    "Predictor",
    "as_predictor",
    "count_macs",
    "count_nonzero_params",
    "count_params",
    "eval_mode",
    "file_size_bytes",
    "format_bytes",
    "logits_in",
    "measure_cost",
    "measure_latencies",
    "measure_latency",
    "path_size_bytes",
    "peak_memory_bytes",
    "sparse_bytes",
]
