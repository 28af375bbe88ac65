"""Forward and backward of a batch as one CUDA graph, launched at once."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from prunus.seeding import host_states, random_states_kept

_WARM_UP = 3  # passes before a capture: libraries load and allocate at their first ones
MIN_STEPS = 20
"""Of a training: fewer do not earn what a capture costs."""


class CapturedLoss:
    """Loss and gradients of batches of one shape: captured at the first, replayed for the others.

    A step of a small network is hundreds of short kernels, which one graph launches at once.

    Args:
        network: On a CUDA device, in training mode.
        loss: Of inputs and labels, by tensor operations on the device alone.
        parameters: That are trained, of the network and beside it.
        inputs: Of the first batch, on the device.
        labels: Of the first batch, on the device.

    Raises:
        RuntimeError: The work cannot be captured, such as where it waits for the device, or where
            the host draws random numbers. Weights, buffers and random state are as before, and no
            gradient is kept.
    """

    def __init__(
        self,
        network: nn.Module,
        loss: Callable[[Tensor, Tensor], Tensor],
        parameters: list[nn.Parameter],
        inputs: Tensor,
        labels: Tensor,
    ) -> None:
        self._parameters = parameters
        self._inputs, self._labels = inputs.clone(), labels.clone()
        buffers = [(buffer, buffer.clone()) for buffer in network.buffers()]
        state = torch.cuda.get_rng_state(inputs.device)
        self._graph = torch.cuda.CUDAGraph()
        current = torch.cuda.current_stream(inputs.device)
        stream = torch.cuda.Stream(inputs.device)  # type: ignore[no-untyped-call]  # torch leaves it bare
        stream.wait_stream(current)
        try:
            with torch.cuda.stream(stream), nothing_drawn():
                for _ in range(_WARM_UP):
                    self._clear()
                    torch.autograd.backward(loss(self._inputs, self._labels))
            current.wait_stream(stream)
            self._clear()
            with torch.cuda.graph(self._graph):
                captured = loss(self._inputs, self._labels)
                torch.autograd.backward(captured)
        except RuntimeError:
            self._clear()
            raise
        finally:
            current.wait_stream(stream)  # what went wrong may still be running there
            with torch.no_grad():
                for buffer, before in buffers:
                    buffer.copy_(before)
            torch.cuda.set_rng_state(state, inputs.device)
        self._loss = captured.detach()
        self._gradients = [parameter.grad for parameter in parameters]

    def __call__(self, inputs: Tensor, labels: Tensor) -> float:
        """Loss of a batch; its gradients are left in the parameters."""
        self._inputs.copy_(inputs)
        self._labels.copy_(labels)
        self._graph.replay()
        # Another batch, of another shape, may have left gradients of its own.
        for parameter, gradient in zip(self._parameters, self._gradients, strict=True):
            parameter.grad = gradient
        return float(self._loss)

    def takes(self, inputs: Tensor) -> bool:
        """Whether a batch has the shape of the first one."""
        return inputs.shape == self._inputs.shape

    def _clear(self) -> None:
        for parameter in self._parameters:
            parameter.grad = None


@contextmanager
def nothing_drawn() -> Iterator[None]:
    """Refuse, at the end, that random numbers of the host were drawn inside; they can be drawn again.

    A choice that the host makes in a forward pass, such as to skip a layer, would be made once, and
    be repeated with every replay.

    Raises:
        RuntimeError: Some were drawn, from the global generator of PyTorch, NumPy or Python.
    """
    with random_states_kept():
        before = host_states()
        yield
        drawn = host_states() != before
    if drawn:
        raise RuntimeError("the host draws random numbers, which no graph repeats")
