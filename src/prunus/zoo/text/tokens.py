"""What networks for texts share: which positions are text, and their table of embeddings."""

import torch
from torch import Tensor, nn

_EMBEDDING_STD = 0.1


def text_mask(input_ids: Tensor, attention_mask: Tensor | None, pad_id: int) -> Tensor:
    """Which positions hold text: bool ``[batch, length]``.

    Args:
        input_ids: int64 ``[batch, length]``.
        attention_mask: 1 for text, 0 for padding; None where ``pad_id`` tells.
        pad_id: Id of the padding.
    """
    if attention_mask is None:
        return input_ids != pad_id
    return attention_mask != 0


def embedding_table(vocab_size: int, width: int, pad_id: int) -> nn.Embedding:
    """A table of normal vectors with standard deviation 0.1, zero for the padding."""
    table = nn.Embedding(vocab_size, width, padding_idx=pad_id)
    with torch.no_grad():
        table.weight.normal_(0.0, _EMBEDDING_STD)
        table.weight[pad_id] = 0.0
    return table
