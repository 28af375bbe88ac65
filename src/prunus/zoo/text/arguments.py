"""What the networks for texts can be asked for."""

from pydantic import Field, ValidationInfo, field_validator

from prunus.plan import SEEDS, Record


class TextArguments(Record):
    """What every network for texts takes.

    Attributes:
        vocab_size: Rows of the embedding table; the tokenizer's ids are below it.
        num_classes: Logits.
        pad_id: Id of the padding; its embedding is zero and stays so.
        width: Scales the embedding width and the hidden width.
        seed: Draws the initial weights, apart from the global random state.
    """

    vocab_size: int = Field(ge=5)
    num_classes: int = Field(default=2, ge=1)
    pad_id: int = Field(default=0, ge=0)
    width: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    seed: int = Field(default=0, ge=0, lt=SEEDS)

    @field_validator("pad_id")
    @classmethod
    def _in_vocabulary(cls, pad_id: int, info: ValidationInfo) -> int:
        size = info.data.get("vocab_size")
        if size is not None and pad_id >= size:
            raise ValueError(f"must be below vocab_size={size}")
        return pad_id


class BiLstmArguments(TextArguments):
    """Of ``bilstm``: ``hidden`` is the width of each direction."""

    embedding: int = Field(default=80, ge=1)
    hidden: int = Field(default=80, ge=1)
    layers: int = Field(default=1, ge=1)
    dropout: float = Field(default=0.3, ge=0, lt=1)


class TextCnnArguments(TextArguments):
    """Of ``textcnn``: ``hidden`` is the number of filters of each of the three widths."""

    embedding: int = Field(default=128, ge=1)
    hidden: int = Field(default=100, ge=1)
    dropout: float = Field(default=0.5, ge=0, lt=1)


class BertTinyArguments(TextArguments):
    """Of ``bert_tiny``: ``max_length`` is the number of positions, no text may be longer."""

    hidden: int = Field(default=128, ge=1)
    layers: int = Field(default=2, ge=1)
    dropout: float = Field(default=0.1, ge=0, lt=1)
    max_length: int = Field(default=512, ge=1)


class BertSmallArguments(BertTinyArguments):
    """Of ``bert_small``: as ``bert_tiny``, four layers of width 256."""

    hidden: int = Field(default=256, ge=1)
    layers: int = Field(default=4, ge=1)
