"""A student that starts from its teacher's word embeddings, reduced to its own width."""

import torch
from torch import Tensor, nn

from prunus.data import TrainSplit
from prunus.errors import InputError
from prunus.graph import Inputs, word_tables

_BATCH = 256


def inherit_words_(
    student: nn.Module, teacher: nn.Module, train: TrainSplit, inputs: Inputs
) -> float:
    """Start a student's table of word embeddings from the main components of its teacher's.

    The components are of the pieces as often as the training texts hold them, so that those that the
    texts never show keep what tells them apart in the same directions. Their spread is made that of the
    student's own fresh table. Where the student is wider, columns beyond the teacher's stay fresh.

    Args:
        student: Of fresh weights; its table is written to, rows of padding stay.
        teacher: Knows the same pieces.
        train: Its pieces are counted; the labels are not looked at.
        inputs: A batch, by which the tables are found.

    Returns:
        Share of the variance of the teacher's table that the student's width holds, weighted as above.

    Raises:
        InputError: One of the two has no table of word embeddings, or not exactly one.
    """
    table, padding, known = _tables(student, teacher, inputs)
    rows = known.detach()[: len(table)].double().cpu()
    weight = _frequencies(train, len(rows), padding).unsqueeze(1)
    centered = rows - (weight * rows).sum(dim=0)
    energies, basis = torch.linalg.eigh(centered.T @ (weight * centered))
    width = min(table.shape[1], rows.shape[1])
    found = centered @ basis.flip(1)[:, :width]
    spread = (weight * found.square()).sum().div(width).sqrt()
    if not bool(spread > 0):
        raise InputError(
            "embeddings='teacher': the teacher's rows are all the same for the training texts; leave "
            "embeddings out"
        )
    with torch.no_grad():
        own = table.double().cpu()
        fresh = torch.ones(len(own), dtype=torch.bool)
        if padding is not None:
            fresh[padding] = False
        found *= own[fresh].std() / spread
        own[fresh, :width] = found[fresh]
        table.copy_(own)
    return float(energies.flip(0)[:width].sum() / energies.sum())


def require_inheritable(student: nn.Module, teacher: nn.Module, inputs: Inputs) -> None:
    """Refuse two networks without the tables that ``inherit_words_`` needs, before anything is trained.

    Raises:
        InputError: As there.
    """
    _tables(student, teacher, inputs)


def _tables(
    student: nn.Module, teacher: nn.Module, inputs: Inputs
) -> tuple[nn.Parameter, int | None, nn.Parameter]:
    """The student's table with its row of padding, and the teacher's."""
    table, padding = _table(student, inputs, "student")
    known, _ = _table(teacher, inputs, "teacher")
    if len(table) > len(known):
        raise InputError(
            f"embeddings='teacher': the student's table has {len(table)} rows, the teacher's "
            f"{len(known)}; give both one vocabulary, or leave embeddings out"
        )
    return table, padding, known


def _table(network: nn.Module, inputs: Inputs, whose: str) -> tuple[nn.Parameter, int | None]:
    """The one table of word embeddings, and its row of padding."""
    names = word_tables(network, inputs)
    if len(names) != 1:
        raise InputError(
            f"embeddings='teacher': the {whose}, {type(network).__name__}, has {len(names)} tables of "
            "word embeddings where one is needed; leave embeddings out"
        )
    padding = network.get_submodule(names[0].rpartition(".")[0]).padding_idx
    return network.get_parameter(names[0]), padding if isinstance(padding, int) else None


def _frequencies(train: TrainSplit, size: int, padding: int | None) -> Tensor:
    """Share of each piece among all pieces of the training texts, float64 ``[size]``."""
    counts = torch.zeros(size, dtype=torch.float64)
    for inputs, _ in train.batches(_BATCH):
        if not isinstance(inputs, dict):  # pragma: no cover - a table was found by its pieces
            break
        ids, mask = inputs["input_ids"], inputs.get("attention_mask")
        ids = ids.flatten() if mask is None else ids[mask != 0]
        counts += torch.bincount(ids, minlength=size)[:size]
    if padding is not None:
        counts[padding] = 0
    return counts / counts.sum()
