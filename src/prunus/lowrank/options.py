"""What all low-rank methods let the user set."""

from typing import Self

from pydantic import Field, model_validator

from prunus.plan import Names, Record


class LowRankOptions(Record):
    """How small the factors get, from what they are computed, and which layers stay whole.

    ``rank``: Share of the full rank that every layer keeps.
    ``energy``: Share of its squared weights that every layer keeps at least; in place of ``rank``.
    With neither, the highest common energy of every mode within the target is taken.
    ``calibration``: Training samples that weigh the directions of a layer's inputs; 0: all alike.
    ``batch_size``: Of them, at a time.
    ``embeddings``: Factorize embedding tables as well.
    ``classifier``: Factorize the last layer as well.
    ``ignore``: Globs of layers that stay whole.
    """

    rank: float | None = Field(default=None, gt=0, le=1)
    energy: float | None = Field(default=None, gt=0, le=1)
    calibration: int = Field(default=0, ge=0)
    batch_size: int = Field(default=32, ge=1)
    embeddings: bool = False
    classifier: bool = False
    ignore: Names = ()

    @model_validator(mode="after")
    def _one_size(self) -> Self:
        if self.rank is not None and self.energy is not None:
            raise ValueError(
                f"rank={self.rank:g} and energy={self.energy:g} both say how small; give one"
            )
        return self
