"""A bidirectional LSTM for short texts: the classic small student of a BERT."""

from typing import final

import torch
from torch import Tensor, nn

from prunus.zoo.layers import scaled
from prunus.zoo.text.arguments import BiLstmArguments
from prunus.zoo.text.tokens import embedding_table, text_mask


@final
class BidirectionalLayer(nn.Module):
    """Two LSTMs, one over each text and one over the text reversed within its own length.

    A bidirectional ``nn.LSTM`` would start its way back in the padding. Packed sequences would not,
    but no exporter takes them.
    """

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.ahead = nn.LSTM(inputs, hidden, batch_first=True)
        self.back = nn.LSTM(inputs, hidden, batch_first=True)
        for lstm in (self.ahead, self.back):
            _open_forget_gate_(lstm)

    def forward(self, x: Tensor, order: Tensor) -> Tensor:
        """Map ``[batch, length, inputs]`` to ``[batch, length, 2 * hidden]``.

        Args:
            x: Features of each position.
            order: Where each position of the reversed text is read, int64 ``[batch, length]``.
        """
        ahead, _ = self.ahead(x)
        back, _ = self.back(_reordered(x, order))
        return torch.cat([ahead, _reordered(back, order)], dim=2)


@final
class BiLstm(nn.Module):
    """Embedding, bidirectional LSTM layers, maximum and mean over the text, a linear layer.

    References:
        Tang et al., "Distilling Task-Specific Knowledge from BERT into Simple Neural Networks",
        2019, section 3.1 (https://arxiv.org/abs/1903.12136), with pooling over all positions as in
        Conneau et al., EMNLP 2017, section 3.2.2 (https://arxiv.org/abs/1705.02364).
    """

    def __init__(self, arguments: BiLstmArguments) -> None:
        super().__init__()
        width = scaled(arguments.embedding, arguments.width)
        hidden = scaled(arguments.hidden, arguments.width)
        self.pad_id = arguments.pad_id
        self.embedding = embedding_table(arguments.vocab_size, width, arguments.pad_id)
        inputs = [width] + [2 * hidden] * (arguments.layers - 1)
        self.layers = nn.ModuleList(BidirectionalLayer(n, hidden) for n in inputs)
        self.dropout = nn.Dropout(arguments.dropout)
        self.classifier = nn.Linear(4 * hidden, arguments.num_classes)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Map int64 ``[batch, length]``, padded on the right, to logits ``[batch, num_classes]``."""
        mask = text_mask(input_ids, attention_mask, self.pad_id)
        order = _reversal(mask)
        x = self.embedding(input_ids)
        for layer in self.layers:
            x = layer(self.dropout(x), order)
        away = ~mask.unsqueeze(2)
        # No output of an LSTM is below -1: there the padding never wins, whatever its amount.
        largest = x.masked_fill(away, -1.0).amax(dim=1)
        total = x.masked_fill(away, 0.0).sum(dim=1)
        mean = total / mask.sum(dim=1, keepdim=True).clamp(min=1)
        logits: Tensor = self.classifier(self.dropout(torch.cat([largest, mean], dim=1)))
        return logits


def _reversal(mask: Tensor) -> Tensor:
    """Positions ``n - 1, ..., 0`` of a text of ``n`` tokens, then its padding as it stands."""
    here = torch.arange(mask.shape[1], device=mask.device)
    lengths = mask.sum(dim=1, keepdim=True)
    return torch.where(here < lengths, lengths - 1 - here, here)


def _reordered(x: Tensor, order: Tensor) -> Tensor:
    return x.gather(1, order.unsqueeze(2).expand_as(x))


def _open_forget_gate_(lstm: nn.LSTM) -> None:
    """Let the memory stay at first: forget bias 1 (Jozefowicz et al., ICML 2015, section 5)."""
    quarter = lstm.hidden_size  # gates lie in the order input, forget, cell, output
    with torch.no_grad():
        lstm.get_parameter("bias_ih_l0")[quarter : 2 * quarter] = 1.0
        lstm.get_parameter("bias_hh_l0")[quarter : 2 * quarter] = 0.0
