"""The pieces that texts are split into: those that a network was trained on, where it was."""

from prunus.artifact.manifest import TOKENIZER_FILE
from prunus.data import DataSplits, TextTokenizer, is_text_data
from prunus.errors import InputError
from prunus.records import Source
from prunus.zoo import find_weights, reads_text
from prunus.zoo.hugging_face import INLINE, padding_number
from prunus.zoo.sources import is_own_file


def takes_pieces(source: Source, data: DataSplits | str | None) -> bool:
    """Whether a network takes pieces of texts; of a user's own file its data tells.

    Raises:
        InputError: The config of an ``hf:`` network cannot be found.
        MissingExtraError: transformers is not installed.
    """
    if not is_own_file(source.model):
        return reads_text(source)
    if isinstance(data, DataSplits):
        return data.tokenizer is not None
    return data is not None and is_text_data(data)


def own_tokenizer(source: Source) -> TextTokenizer | None:
    """What splits texts into the pieces that a network was trained on; None: it has none yet.

    It pads as the config of an ``hf:`` network says: some look for their last piece by that number.

    Raises:
        InputError: Weights bring none: other pieces would have the numbers of those they know.
    """
    name = source.model.removeprefix("hf:")
    named = source.model not in (name, INLINE)
    if source.weights is not None:
        beside = find_weights(source.weights).parent / TOKENIZER_FILE
        if beside.is_file():
            return _padded(TextTokenizer.read(beside), source)
        if not named:
            raise InputError(
                f"weights '{source.weights}' of '{source.model}' have no {TOKENIZER_FILE} beside "
                "them: put the one there that the network was trained with"
            )
    return _padded(TextTokenizer.load(name), source) if named else None


def require_pieces(source: Source, data: DataSplits) -> None:
    """Refuse a trained student that splits texts in other pieces than its teacher's data does.

    Raises:
        InputError: It does.
    """
    if data.tokenizer is None or not (is_own_file(source.model) or reads_text(source)):
        return
    own = own_tokenizer(source)
    if own is not None and own.digest != data.tokenizer.digest:
        raise InputError(
            f"student '{source.model}' was trained on other tokens than '{data.name}' is "
            "split into: give one with the tokenizer of its teacher, or fresh weights (hf:config "
            "with model_type and sizes, or a network of the zoo)"
        )


def _padded(pieces: TextTokenizer, source: Source) -> TextTokenizer:
    number = padding_number(source)
    return pieces if number is None else pieces.padding_with(number)
