"""For which engine a network is written, and in which number formats."""

from fnmatch import fnmatchcase
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from prunus.plan import Record

Engine = Literal["torch", "onnxruntime", "openvino"]
Weights = Literal["float32", "float16", "bfloat16", "int8"]


class Deployment(Record):
    """What a network is deployed as.

    Attributes:
        engine: That runs it.
        weights: Number format of linear, convolutional and recurrent layers. ``int8`` computes in
            int8, with activations quantized as they come (dynamic) or by ranges seen before (static).
        embeddings: Of word embeddings alone: tables of positions and token types are small, and
            their expanded index views break the quantized kernels.
        calibration: Where the ranges of activations come from.
        calibration_samples: Training samples that they, OpenVINO's int8, or what ``auto`` stands for
            below is measured on.
        activations: What shares a scale in dynamic int8 of ONNX Runtime: all inputs of a layer in a
            batch (``tensor``), or those of one ``token`` (one sample, of layers after pooling), which
            is nearer to the network, the same for a text whatever stands beside it, and slower.
            ``auto``: by token where the inputs of a layer have outliers, so far as there are samples
            to see them on; else by tensor.
        rounding: Of the weights of linear layers in int8. ``nearest``, each by itself; ``gptq`` by
            what the layers read, so that errors make up for each other. ``auto``: the latter where
            there are samples, and never in OpenVINO, whose quantizer changes weights before it rounds.
        smoothing: ``auto`` moves outliers from the inputs of linear layers into their weights where
            that at least halves the error of their outputs on samples, for one multiplication of the
            inputs. ``off``: nowhere. Neither is for ``activations="token"``, nor for
            OpenVINO, whose quantizer smooths by itself.
        exclude: Glob patterns of layers that stay in float32 beside int8, or of modules whose layers all
            do. A layer of several names is left alone if one of them is excluded.
        rest: How tensors that are not quantized lie in the file. ``float16`` halves them; they are
            float32 again when the network is loaded, rounded to 11 bits. Tensors that float16 cannot
            hold stay as they are.
        shape: Fixed shape of a request in OpenVINO, which plans ahead for it and is faster: samples,
            as in ``[1]``, and tokens of texts, as in ``[1, 128]``. A session fills up what is smaller
            with padding, takes more samples by turns, and refuses longer texts. Any shape where left
            out.
    """

    engine: Engine = "onnxruntime"
    weights: Weights = "float32"
    embeddings: Literal["float32", "int8"] = "float32"
    calibration: Literal["dynamic", "static"] = "dynamic"
    calibration_samples: int = Field(default=128, ge=1)
    activations: Literal["auto", "tensor", "token"] = "auto"
    rounding: Literal["auto", "nearest", "gptq"] = "auto"
    smoothing: Literal["auto", "off"] = "auto"
    exclude: tuple[str, ...] = ()
    rest: Literal["float32", "float16"] = "float32"
    shape: tuple[Annotated[int, Field(ge=1)], ...] | None = Field(
        default=None, min_length=1, max_length=2
    )

    @field_validator("smoothing", mode="before")
    @classmethod
    def _word(cls, value: object) -> object:
        """``off`` is false in YAML."""
        return "off" if value is False else value

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.calibration == "static" and self.weights != "int8":
            raise ValueError(
                f"calibration=static is for weights=int8, not {self.weights}; leave it out"
            )
        if self.calibration == "static" and self.engine == "torch":
            raise ValueError(
                "calibration=static is not there for engine=torch, whose int8 is dynamic; use "
                "engine=onnxruntime or openvino"
            )
        if self.activations == "token" and not self._has_dynamic_scales:
            raise ValueError(
                "activations=token is for engine=onnxruntime with weights=int8 and "
                f"calibration=dynamic, not {self.engine} with {self.weights} and {self.calibration}; "
                "leave it out"
            )
        if self.rounding == "gptq" and not self._fits_weights:
            raise ValueError(
                "rounding=gptq is for weights=int8 with engine=torch or onnxruntime, not "
                f"{self.weights} with {self.engine}; leave it out"
            )
        if self.rest == "float16" and "int8" not in (self.weights, self.embeddings):
            raise ValueError(
                f"rest=float16 is for what int8 leaves, and weights={self.weights}, "
                f"embeddings={self.embeddings} have none; use weights=float16 with engine=openvino or "
                "torch"
            )
        if self.shape is not None and self.engine != "openvino":
            raise ValueError(
                f"shape is for engine=openvino, which plans ahead for it; leave it out with engine={self.engine}"
            )
        return self

    @model_validator(mode="after")
    def _possible_in_halves(self) -> Self:
        if self.weights not in ("float16", "bfloat16"):
            return self
        if self.engine == "onnxruntime":
            raise ValueError(
                f"weights={self.weights} gains nothing in engine=onnxruntime, which computes in "
                "float32 on a CPU; use engine=openvino or torch"
            )
        if self.engine == "openvino" and self.weights == "bfloat16":
            raise ValueError(
                "weights=bfloat16 is chosen by engine=openvino itself where the CPU has it; use "
                "weights=float16"
            )
        if self.embeddings == "int8":
            raise ValueError(
                f"embeddings=int8 beside weights={self.weights} is not there; use weights=int8 or "
                "float32"
            )
        return self

    @property
    def is_float32(self) -> bool:
        """Whether nothing is quantized."""
        return self.weights == "float32" and self.embeddings == "float32"

    @property
    def is_calibrated(self) -> bool:
        """Whether ranges of activations are measured on batches."""
        return self.weights == "int8" and (
            self.calibration == "static" or self.engine == "openvino"
        )

    @property
    def reads_samples(self) -> bool:
        """Whether something is measured on batches, where there are any."""
        by_token = self._has_dynamic_scales and self.activations == "auto"
        return self.is_calibrated or by_token or self.is_smoothed or self.is_gptq

    @property
    def is_smoothed(self) -> bool:
        """Whether outliers are moved into weights, where there are samples to see them on."""
        return self._fits_weights and self.smoothing == "auto" and self.activations != "token"

    @property
    def is_gptq(self) -> bool:
        """Whether weights are rounded by what layers read, where there are samples of it."""
        return self._fits_weights and self.rounding != "nearest"

    @property
    def _fits_weights(self) -> bool:
        return self.weights == "int8" and self.engine != "openvino"

    @property
    def _has_dynamic_scales(self) -> bool:
        int8 = self.weights == "int8" and self.calibration == "dynamic"
        return int8 and self.engine == "onnxruntime"

    def excludes(self, layer: str) -> bool:
        """Whether a layer, or a module that it is in, stays in float32."""
        parts = layer.split(".")
        paths = [".".join(parts[: end + 1]) for end in range(len(parts))]
        return any(fnmatchcase(path, pattern) for path in paths for pattern in self.exclude)
