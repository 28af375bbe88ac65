"""A small set of texts that words tell apart, as a file; and steps of a short training."""

import random
from pathlib import Path

from prunus.data import DataSplits, TextOptions, load_data
from prunus.recipe import Train
from prunus.records import Source

GOOD = ("bright", "fine", "gentle", "lovely", "superb", "warm")
BAD = ("awful", "bleak", "clumsy", "dreadful", "grim", "weary")
PLAIN = ("a", "film", "of", "scene", "story", "the", "this", "very", "with", "actor")
OPTIONS = TextOptions(vocab_size=160, max_length=16)
SMALL_BERT = {
    "model_type": "bert",
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
}
NETWORK = Source(model="textcnn", arguments={"embedding": 12, "hidden": 8})


def write(folder: Path, samples: int = 240) -> Path:
    """Texts with their classes as CSV."""
    draw = random.Random(0)
    lines = ["text,label"]
    for index in range(samples):
        words = draw.choices(PLAIN, k=draw.randint(3, 9))
        words.insert(draw.randrange(len(words)), draw.choice(GOOD if index % 2 else BAD))
        lines.append(f"{' '.join(words)} {index},{index % 2}")
    file = folder / "texts.csv"
    file.write_text("\n".join(lines), encoding="utf-8")
    return file


def load(folder: Path) -> DataSplits:
    """The texts in three splits."""
    return load_data(f"text:{write(folder)}", text=OPTIONS)


def training(epochs: int = 3, *, taught: bool = False) -> Train:
    """AdamW, pinned."""
    return Train(
        epochs=epochs,
        lr=5e-3,
        batch_size=16,
        optimizer="adamw",
        augment=False,
        precision="float32",
        layout="contiguous",
        distill_alpha=0.5 if taught else 0.0,
    )
