"""What a student is compared with: logits, hidden states and attention of a teacher."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from prunus.data import Inputs
from prunus.errors import InputError
from prunus.graph.stacks import main_stack
from prunus.train.config import TrainConfig
from prunus.train.forward import logits_of


class Reading:
    """A network called with its hidden states, and its attention where that is asked for.

    Hidden states are the outputs of the layers of its largest stack, ``[batch, length, width]``.

    Args:
        network: Read by hooks while ``open`` is entered.
        config: Says what is read.
        teacher: Of a student, which may have one layer of its kind alone.
    """

    def __init__(
        self, network: nn.Module, config: TrainConfig, teacher: nn.Module | None = None
    ) -> None:
        self._network = network
        self._hidden = bool(config.distill_hidden)
        self._attention = bool(config.distill_attention)
        path = main_stack(network, "distill_hidden and distill_attention", teacher)
        self.layers: list[nn.Module] = list(network.get_submodule(path).children())
        self.states: list[Tensor] = []

    @contextmanager
    def open(self) -> Iterator[None]:
        """Read while inside."""
        handles = [layer.register_forward_hook(self._keep) for layer in self.layers]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def call(self, inputs: Inputs) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Logits, hidden states and attention probabilities ``[batch, heads, length, length]``.

        Raises:
            InputError: The network returns no attention.
        """
        self.states = []
        named: Mapping[str, Any] = inputs if isinstance(inputs, dict) else {}
        more = {"output_attentions": True} if self._attention else {}
        try:
            output = self._network(**named, **more) if named else self._network(inputs, **more)
        except TypeError as error:
            if "output_attentions" not in str(error):
                raise
            raise InputError(
                f"distill_attention: {type(self._network).__name__} takes no 'output_attentions', "
                "by which models of transformers return their attention; use distill_hidden"
            ) from error
        attention = list(getattr(output, "attentions", None) or ()) if self._attention else []
        if self._attention and (not attention or attention[0] is None):
            raise InputError(
                "distill_attention: a network returns no attention probabilities; build it with "
                "attn_implementation='eager', or use distill_hidden"
            )
        return logits_of(output), self.states, attention

    def _keep(self, _: nn.Module, __: Any, output: Any) -> None:
        state = output if isinstance(output, Tensor) else output[0]
        self.states.append(state)


def matched_layers(student: int, teacher: int, how: str) -> list[int]:
    """Which of the teacher's layers each of the student's is compared with.

    ``uniform`` is TinyBERT's mapping (Jiao et al., EMNLP 2020, section 4.1): layer m of M learns from
    layer m * N / M of N, rounded up. ``last`` compares with the last layers.

    Args:
        student: How many layers it has.
        teacher: How many layers it has.
        how: ``uniform`` or ``last``.

    Returns:
        Positions of the teacher's layers from 0, one for each of the student's.

    Raises:
        InputError: ``how`` is neither.

    >>> matched_layers(2, 6, "uniform"), matched_layers(2, 6, "last")
    ([2, 5], [4, 5])
    """
    if how == "last":
        return [max(0, teacher - student + m) for m in range(student)]
    if how == "uniform":
        return [-(-(m + 1) * teacher // student) - 1 for m in range(student)]
    raise InputError(f"how={how!r} must be 'uniform' or 'last'")


def hidden_width(reading: Reading, inputs: Inputs) -> int:
    """Width of the hidden states.

    Args:
        reading: Of the network, which is run once without gradients.
        inputs: A batch of texts, or ``[batch, length, ...]``.

    Raises:
        InputError: They are no ``[batch, length, width]``.
    """
    with reading.open(), torch.no_grad():
        _, states, _ = reading.call(inputs)
    shape = list(states[0].shape) if states else "nothing"
    if not states or states[0].ndim != 3 or not _is_of(states[0], inputs):
        raise InputError(
            f"distill_hidden: the layers of a network return {shape}, not [batch, length, width]; "
            "compare logits alone (distill_alpha)"
        )
    return int(states[0].shape[-1])


def hidden_loss(
    mine: list[Tensor], theirs: list[Tensor], at: list[int], project: nn.Module, mask: Tensor
) -> Tensor:
    """Mean squared distance of hidden states over layers, widths and the tokens of the texts.

    TinyBERT, eq. 8, with one projection for all layers; padding does not count.

    Args:
        mine: The student's, ``[batch, length, width]`` a layer.
        theirs: The teacher's, ``[batch, length, teacher's width]`` a layer; no gradient goes there.
        at: Position in ``theirs`` for each of ``mine``; see ``matched_layers``.
        project: From the student's width to the teacher's.
        mask: 1 for tokens, 0 for padding, ``[batch, length]``.
    """
    weight = mask.unsqueeze(2)
    total = mine[0].new_zeros(())
    for state, teacher in zip(mine, at, strict=True):
        distance = (project(state) - theirs[teacher].detach()).square() * weight
        total = total + distance.sum() / (weight.sum() * distance.shape[-1])
    return total / len(mine)


def attention_loss(mine: list[Tensor], theirs: list[Tensor], at: list[int], mask: Tensor) -> Tensor:
    """Mean squared difference of attention probabilities over layers, heads and pairs of tokens.

    TinyBERT, eq. 7, on probabilities. Padding does not count.

    Args:
        mine: The student's, ``[batch, heads, length, length]`` a layer.
        theirs: The teacher's, likewise; no gradient goes there.
        at: Position in ``theirs`` for each of ``mine``; see ``matched_layers``.
        mask: 1 for tokens, 0 for padding, ``[batch, length]``.

    Raises:
        InputError: The numbers of heads differ.
    """
    weight = mask[:, None, :, None] * mask[:, None, None, :]
    total = mine[0].new_zeros(())
    for own, teacher in zip(mine, at, strict=True):
        other = theirs[teacher].detach()
        if own.shape != other.shape:
            raise InputError(
                f"distill_attention: the student has {own.shape[1]} heads, the teacher "
                f"{other.shape[1]}; give both as many, or use distill_hidden"
            )
        total = total + ((own - other).square() * weight).sum() / (weight.sum() * own.shape[1])
    return total / len(mine)


def _is_of(states: Tensor, inputs: Inputs) -> bool:
    """Whether hidden states are of the tokens of the texts, the batch first."""
    return text_weights(inputs, states).shape == states.shape[:2]


def text_weights(inputs: Inputs, states: Tensor) -> Tensor:
    """1 for the tokens of texts, 0 for padding: ``[batch, length]``, in the type of the states.

    Args:
        inputs: Of a network; without an ``attention_mask`` nothing is padding.
        states: Hidden states of these inputs, ``[batch, length, width]``.
    """
    if isinstance(inputs, dict) and "attention_mask" in inputs:
        return inputs["attention_mask"].to(states.dtype)
    return torch.ones(states.shape[:2], dtype=states.dtype, device=states.device)
