"""How near a deployed network is to the one that it was made from."""

import copy
from collections.abc import Callable, Iterable

import torch
from pydantic import Field
from torch import Tensor, nn

from prunus.data import Inputs
from prunus.errors import InputError
from prunus.meter import as_predictor
from prunus.plan import Record
from prunus.train import answers


class Parity(Record):
    """Differences of logits, and of what they decide.

    Attributes:
        relative_difference: ``max|a - b| / max|a|`` over all logits, ``a`` the network's.
        agreement: Share of samples that both call the same class.
        samples: Compared.
    """

    relative_difference: float
    agreement: float = Field(ge=0, le=1)
    samples: int


def parity(
    network: nn.Module, session: Callable[[Inputs], Tensor], batches: Iterable[Inputs]
) -> Parity:
    """Compare a session with its network on real inputs.

    Raises:
        InputError: There are no batches.
    """
    predictor = as_predictor(network)
    # Each is given a copy, which it may change.
    pairs = [
        (predictor(copy.deepcopy(inputs)), session(copy.deepcopy(inputs))) for inputs in batches
    ]
    if not pairs:
        raise InputError("batches is empty; give at least one")
    own = torch.cat([mine for mine, _ in pairs]).double()
    other = torch.cat([theirs for _, theirs in pairs]).double()
    largest = float(own.abs().max())
    difference = float((own - other).abs().max())
    called = answers(own)
    same = ((called == answers(other)) & (called >= 0)).double().mean()
    return Parity(
        relative_difference=difference / largest if largest else difference,
        agreement=float(same),
        samples=len(own),
    )
