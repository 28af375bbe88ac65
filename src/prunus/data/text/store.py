"""Texts as a network takes them: numbers of pieces, padded to the longest text of a batch."""

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from prunus.data.digest import tensors_digest
from prunus.data.stores import Inputs, SampleStore
from prunus.data.text.tokenizer import TextTokenizer
from prunus.errors import InputError


@final
class TokenStore(SampleStore):
    """Texts in memory, split into pieces once.

    Args:
        texts: Clean.
        labels: int64 ``[samples]``; -1: not known.
        tokenizer: Splits them.
        max_length: Most pieces of a text.
    """

    def __init__(
        self, texts: Sequence[str], labels: Tensor, tokenizer: TextTokenizer, max_length: int
    ) -> None:
        if len(labels) != len(texts):
            raise InputError(f"{len(labels)} labels for {len(texts)} texts: give one per text")
        self.texts = tuple(texts)
        self.tokenizer = tokenizer
        self._max_length = max_length
        self._labels = labels.long()
        pieces = tokenizer.encode(self.texts, max_length)
        self._lengths = torch.tensor([len(one) for one in pieces], dtype=torch.int64)
        self._starts = _starts(self._lengths)
        flat = [number for one in pieces for number in one]
        self._pieces = torch.tensor(flat, dtype=torch.int32)  # half the memory of int64

    @property
    def labels(self) -> Tensor:
        """Class of every text, int64 ``[samples]``."""
        return self._labels

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Empty: inputs are dictionaries."""
        return ()

    @property
    def lengths(self) -> Tensor:
        """Pieces of every text, int64 ``[samples]``."""
        return self._lengths

    @property
    def augments(self) -> bool:
        """Texts are taken as they are."""
        return False

    @property
    def max_length(self) -> int:
        """Most pieces of a text."""
        return self._max_length

    def read(self, indices: Tensor, augment: torch.Generator | None) -> tuple[Inputs, Tensor]:
        """Texts as ``input_ids`` and ``attention_mask``, int64 ``[batch, longest]``; never augmented."""
        del augment
        longest = max(1, int(self._lengths[indices].max()))
        ids = torch.full((len(indices), longest), self.tokenizer.pad_id, dtype=torch.int64)
        mask = torch.zeros(len(indices), longest, dtype=torch.int64)
        for row, index in enumerate(indices.tolist()):
            start, end = int(self._starts[index]), int(self._starts[index + 1])
            ids[row, : end - start] = self._pieces[start:end]
            mask[row, : end - start] = 1
        return {"input_ids": ids, "attention_mask": mask}, self._labels[indices]

    def digest(self, indices: Tensor) -> str:
        """SHA-256 of all pieces and labels."""
        part = self.take(indices)
        return tensors_digest(
            {"pieces": part._pieces, "lengths": part._lengths, "labels": part._labels}
        )

    def take(self, indices: Tensor) -> "TokenStore":
        """A store of these texts alone."""
        part = TokenStore((), self._labels[:0], self.tokenizer, self._max_length)
        part.texts = tuple(self.texts[index] for index in indices.tolist())
        part._labels = self._labels[indices]
        part._lengths = self._lengths[indices]
        part._starts = _starts(part._lengths)
        # Copied, not split again: that takes seconds for a large set, and splits are taken often.
        moved = (self._starts[indices] - part._starts[:-1]).repeat_interleave(part._lengths)
        part._pieces = self._pieces[moved + torch.arange(len(moved))]
        return part

    def spelled(self, tokenizer: TextTokenizer) -> "TokenStore":
        """The same texts in other pieces."""
        return TokenStore(self.texts, self._labels, tokenizer, self._max_length)


def _starts(lengths: Tensor) -> Tensor:
    """Where every text begins among all pieces, and where the last one ends."""
    return torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
