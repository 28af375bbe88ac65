"""What a smaller vocabulary means for the data, and for a teacher that knows the larger one."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn

from prunus.data import DataSplits
from prunus.errors import InputError
from prunus.graph import Inputs
from prunus.graph.eager import write_attention_out_
from prunus.plan import IntArray, KeepVocabulary, Plan
from prunus.recipe.state import State

_PIECES = "input_ids"


@final
class OldPieces(nn.Module):
    """A network with the whole vocabulary, called with pieces of a smaller one.

    Args:
        network: Knows the whole vocabulary.
        old: The whole vocabulary's number of each piece of the smaller one, int64 ``[pieces]``.
    """

    def __init__(self, network: nn.Module, old: Tensor) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("old", old)

    def forward(self, input_ids: Tensor, **others: Any) -> Any:
        """What the network returns for these texts."""
        return self.network(input_ids=self.get_buffer("old")[input_ids], **others)


def kept_pieces(plans: Iterable[Plan]) -> IntArray | None:
    """Numbers in the first vocabulary of the pieces that are left; None: nothing was trimmed."""
    old: IntArray | None = None
    for plan in plans:
        for edit in plan.rebuilds:
            if isinstance(edit, KeepVocabulary):
                at = np.flatnonzero(edit.keep.unpack())
                old = at if old is None else old[at]
    return old


def teacher_for(teacher: nn.Module, state: State) -> nn.Module:
    """The teacher as it is called with the pieces that the state's network knows."""
    old = kept_pieces(state.plans)
    return teacher if old is None else OldPieces(teacher, torch.from_numpy(old).long())


@contextmanager
def attention_shown(network: nn.Module | None) -> Iterator[None]:
    """Inside, a network of transformers computes attention so that it can be read.

    The fused kernels, which it uses otherwise, never hold the probabilities.
    """
    give_back = write_attention_out_(network)
    try:
        yield
    finally:
        give_back()


def with_plan(state: State, network: nn.Module, plan: Plan) -> State:
    """The state after a cut: a smaller vocabulary has its texts split into pieces anew.

    Raises:
        InputError: The vocabulary was trimmed, and the data has no tokenizer to trim.
    """
    after = replace(state, network=network, plans=(*state.plans, plan))
    trims = [edit for edit in plan.rebuilds if isinstance(edit, KeepVocabulary)]
    if not trims:
        return after
    data = state.data
    for edit in trims:
        if data.tokenizer is None:
            raise InputError(
                f"data '{data.name}' has no tokenizer, so that its vocabulary cannot be trimmed; "
                "load texts with load_data"
            )
        keep = edit.keep.unpack()[: data.tokenizer.vocab_size]
        data = data.with_tokenizer(data.tokenizer.trimmed(keep))
    return replace(after, data=data, inputs=first_batch(data, state.inputs))


def first_batch(data: DataSplits, like: Inputs) -> Inputs:
    """As many of the first training samples as ``like`` has."""
    samples = len(like[_PIECES]) if isinstance(like, dict) and _PIECES in like else 1
    return next(iter(data.train.batches(min(samples, len(data.train)))))[0]
