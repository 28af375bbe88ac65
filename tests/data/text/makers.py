"""Small sets of texts, written to files."""

from collections.abc import Sequence
from pathlib import Path

import torch

from prunus.data import Split, TextTokenizer, TokenStore

GOOD_WORDS = ("good", "fine", "great", "warm", "bright")
BAD_WORDS = ("bad", "poor", "cold", "dull", "grim")


def rows(per_class: int = 20) -> list[tuple[str, str]]:
    """Texts all different, their classes taking turns."""
    found = []
    for i in range(per_class):
        found.append((f"a {GOOD_WORDS[i % 5]} day number {i}", "pos"))
        found.append((f"one {BAD_WORDS[i % 5]} night number {i}", "neg"))
    return found


def csv_text(lines: Sequence[tuple[str, str]], header: str = "text,label") -> str:
    return "\n".join([header, *(f"{text},{label}" for text, label in lines)]) + "\n"


def write_csv(path: Path, lines: Sequence[tuple[str, str]] | None = None) -> Path:
    path.write_text(csv_text(rows() if lines is None else lines), encoding="utf-8")
    return path


def tiny_tokenizer() -> TextTokenizer:
    return TextTokenizer.train_wordpiece([text for text, _ in rows()], 120)


def token_store(texts: Sequence[str], max_length: int = 16) -> TokenStore:
    labels = torch.arange(len(texts)) % 2
    return TokenStore(texts, labels, tiny_tokenizer(), max_length)


def store_of(split: Split) -> TokenStore:
    """What holds the texts of a split."""
    store = split.samples.store
    assert isinstance(store, TokenStore)
    return store
