"""The cost of a network as one record."""

from torch import nn

from prunus.meter.macs import count_macs
from prunus.meter.params import count_nonzero_params, count_params
from prunus.meter.predictor import ExampleInputs
from prunus.meter.size import file_size_bytes
from prunus.records import Cost


def measure_cost(network: nn.Module, example_inputs: ExampleInputs, *, size: bool = True) -> Cost:
    """MACs, parameters and file size of a network, which is not touched.

    Args:
        network: Any network with values in its parameters.
        example_inputs: One sample (batch 1) at the shape that the cost is stated for.
        size: Whether to state the size of its file of weights.

    Raises:
        InputError: The network fails on the inputs, or holds what cannot be measured.
    """
    counted = count_macs(network, example_inputs)
    return Cost(
        macs=counted.macs,
        effective_macs=counted.effective_macs,
        params=count_params(network),
        nonzero_params=count_nonzero_params(network),
        size_bytes=file_size_bytes(network) if size else None,
        uncounted=counted.uncounted,
    )
