"""What the paper reports: Torkunova and Milovanov 2023, its table of methods and chains."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Line:
    """A row of the paper: MB of the saved network, F1, and seconds on GPU and CPU."""

    size_mb: float
    f1: float
    gpu_s: float | None
    cpu_s: float


LINES = {
    "none": Line(711.0, 0.966, 0.036, 1.51),
    "int8 linear": Line(454.0, 0.966, None, 1.18),
    "int8 linear + embeddings": Line(179.0, 0.966, None, 0.13),
    "tucker": Line(385.0, 0.966, 0.036, 0.78),
    "tucker + int8 embeddings": Line(109.0, 0.967, None, 0.817),
    "distilled": Line(10.3, 0.952, 0.005, 0.12),
    "distilled + int8": Line(2.68, 0.952, None, 0.105),
    "distilled + tucker": Line(3.43, 0.951, 0.02, 0.11),
    "distilled + tucker + int8 embeddings": Line(1.69, 0.958, None, 0.10),
    "pruning": Line(598.0, 0.975, 0.029, 1.15),
}
"""Its rows by our names; our row may run on any engine."""

MULTILINGUAL_BERT = {
    "vocab_size": 119_547,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "max_position_embeddings": 512,
}
"""The network that 711 MB in float32 identify: 178 M parameters (bert-base-multilingual-cased)."""
