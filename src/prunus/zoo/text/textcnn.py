"""Convolutions over a sentence: the fastest of the small networks for texts."""

from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional

from prunus.zoo.layers import scaled
from prunus.zoo.text.arguments import TextCnnArguments
from prunus.zoo.text.tokens import embedding_table, text_mask

_WIDTHS = (3, 4, 5)


@final
class TextCnn(nn.Module):
    """Embedding, filters of 3, 4 and 5 tokens, ReLU, the maximum over the text, a linear layer.

    A window counts where it overlaps the text, and reads zeros beyond its ends.

    References:
        Kim, "Convolutional Neural Networks for Sentence Classification", EMNLP 2014, section 2
        (https://arxiv.org/abs/1408.5882), variant CNN-rand.
    """

    def __init__(self, arguments: TextCnnArguments) -> None:
        super().__init__()
        width = scaled(arguments.embedding, arguments.width)
        filters = scaled(arguments.hidden, arguments.width)
        self.pad_id = arguments.pad_id
        self.embedding = embedding_table(arguments.vocab_size, width, arguments.pad_id)
        self.convolutions = nn.ModuleList(
            nn.Conv1d(width, filters, size, padding=size - 1) for size in _WIDTHS
        )
        self.dropout = nn.Dropout(arguments.dropout)
        self.classifier = nn.Linear(filters * len(_WIDTHS), arguments.num_classes)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Map int64 ``[batch, length]``, padded on the right, to logits ``[batch, num_classes]``."""
        x = self.embedding(input_ids)
        mask = text_mask(input_ids, attention_mask, self.pad_id).to(x.dtype)
        x = (x * mask.unsqueeze(2)).transpose(1, 2)
        pooled = []
        for size, convolution in zip(_WIDTHS, self.convolutions, strict=True):
            # Window j reads tokens j - size + 1 to j: it overlaps the text where the first is text.
            overlaps = functional.pad(mask, (size - 1, 0), value=1.0).unsqueeze(1)
            # No ReLU is below 0: there the windows beyond the text never win.
            pooled.append((convolution(x).relu() * overlaps).amax(dim=2))
        logits: Tensor = self.classifier(self.dropout(torch.cat(pooled, dim=1)))
        return logits
