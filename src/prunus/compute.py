"""Where and how a run computes: settings of the machine, not of a method."""

from typing import Literal

from pydantic import Field, model_validator

from prunus.plan import Record


class Compute(Record):
    """How candidates of a search are scored. The same seed and settings give the same plan.

    Attributes:
        engine: ``serial``: in this process; ``processes``: in worker processes on this machine;
            ``ray``: on a Ray cluster (extra ``ray``).
        workers: How many candidates are scored at a time; 1 for ``serial``.
        threads: CPU threads of each candidate; by default all of torch's threads shared among the
            workers of this machine. The number decides rounding: it is the same everywhere.
        address: Of the Ray cluster: ``auto`` joins the one of this machine; None starts one.
        memory_mb: Most megabytes (10^6 bytes) of activations that a worker keeps for candidates that
            agree in their first layers; 0: none.
        precision: Of scoring; ``auto``: measured, once per run. ``int8``: of 2-D convolutions, the
            rest in float32, for CPUs with VNNI; ``int7``: the same with weights of 7 bits, for CPUs
            with AVX2, whose sums of bytes saturate with 8.
        layout: Of images and 2-D convolutions; ``auto``: measured, once per run.
        batch_size: Images per forward pass.
    """

    engine: Literal["serial", "processes", "ray"] = "serial"
    workers: int = Field(default=1, ge=1)
    threads: int | None = Field(default=None, ge=1)
    address: str | None = None
    memory_mb: int = Field(default=256, ge=0)
    precision: Literal["auto", "float32", "bfloat16", "int7", "int8"] = "auto"
    layout: Literal["auto", "contiguous", "channels_last"] = "auto"
    batch_size: int = Field(default=64, ge=1)

    @model_validator(mode="after")
    def _fits(self) -> "Compute":
        if self.engine == "serial" and self.workers > 1:
            raise ValueError(
                f"workers={self.workers} needs an engine that has them: processes or ray"
            )
        if self.address is not None and self.engine != "ray":
            raise ValueError(
                f"address={self.address!r} is for engine ray, not {self.engine}; leave it out"
            )
        return self
