"""What the study compares; without torch, for the tables are drawn by it, too."""

METHODS = (
    "genetic",
    "l2",
    "random-search",
    "random",
    "genetic-paper",
    "scratch",
    "genetic-kernels",
    "taylor",
)
"""Most telling first: a queue that is cut short still has the method beside its nulls."""
