"""A network made ready for int8 by samples, before an engine rounds it."""

from collections.abc import Sequence

from torch import nn

from prunus.data import Inputs
from prunus.errors import InputError
from prunus.progress import Progress, Silent, phases_ended
from prunus.quantize import by_row, onnx_runtime
from prunus.quantize.job import int8_layers
from prunus.quantize.options import Deployment
from prunus.quantize.rounding import rounded
from prunus.quantize.smoothing import smoothed

_LEVELS = {"torch": by_row.LEVELS, "onnxruntime": onnx_runtime.LEVELS}


def fitted(
    network: nn.Module,
    deployment: Deployment,
    batches: Sequence[Inputs],
    progress: Progress | None = None,
) -> tuple[nn.Module, tuple[str, ...]]:
    """The network, or a copy whose linear layers say more nearly the same once they are int8.

    Args:
        network: Not touched.
        deployment: Tells which layers are quantized, and what may be done for them.
        batches: Real batches; without any, nothing is done.
        progress: Told of the batches that are run and of the layers that are fitted.

    Returns:
        The network to write, and notes on what was done.

    Raises:
        InputError: The network cannot run on the batches.
    """
    if not batches or not (deployment.is_smoothed or deployment.is_gptq):
        return network, ()
    every = len(set(int8_layers(network, deployment).values()))
    levels, notes = _LEVELS[deployment.engine], []
    try:
        with phases_ended(progress or Silent()) as told:
            if deployment.is_smoothed:
                network, count = smoothed(network, deployment, batches, levels, told)
                if count:
                    notes.append(
                        f"outliers in the inputs of {count} of {every} linear layers went into weights"
                    )
            if deployment.is_gptq:
                network, count = rounded(network, deployment, batches, levels, told)
                if count or deployment.rounding == "gptq":
                    notes.append(
                        f"weights of {count} of {every} linear layers were rounded by what they read"
                    )
    except InputError:
        raise
    except Exception as error:  # a user's forward may raise anything
        raise InputError(
            f"the network cannot run on the calibration batches: {error}; give batches as it takes them"
        ) from error
    return network, tuple(f"{deployment.engine}: {note}" for note in notes)
