"""How texts are read, cleaned and split into pieces."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from prunus.errors import InputError
from prunus.plan import Record, complaint


class Cleaning(Record):
    """What is done to texts before they are split into tokens, in this order.

    Attributes:
        lower: Lower case.
        stop_words: Leave out words such as "the".
        lemmas: Words by their dictionary form.
        language: Of lemmas and stop words.
    """

    lower: bool = False
    stop_words: bool = False
    lemmas: bool = False
    language: Literal["en", "ru"] = "en"

    @property
    def does_nothing(self) -> bool:
        """Whether texts stay as they are."""
        return not (self.lower or self.lemmas or self.stop_words)


class TextOptions(Record):
    """How texts are read. Settings of the cleaning may stand beside the others, as ``lower=True``.

    Attributes:
        text_column: Column of the texts; guessed where left out.
        label_column: Column of the classes; likewise.
        encoding: Of a text file.
        drop_empty: Leave out rows without text, instead of refusing them.
        deduplicate: Keep one of texts that are equal after cleaning, before anything is split, and leave
            out training texts that are test texts, too. Off: copies are in several splits, and told.
        test_fraction: Of all texts where there is no test file; the paper's 4 : 1.
        test_file: Texts to report on.
        unlabeled_file: Texts without labels, for a teacher.
        train_size: Train on so many of the training texts, every class in proportion.
        max_length: Most tokens of a text, the special ones included; the rest is cut off.
        vocab_size: Tokens of a vocabulary that is trained here; in a record those of the network's
            tokenizer, where it brought one.
        cleaning: Before all else.
    """

    text_column: str | None = None
    label_column: str | None = None
    encoding: str = "utf-8"
    drop_empty: bool = False
    deduplicate: bool = True
    test_fraction: float = Field(default=0.2, gt=0, lt=1)
    test_file: str | None = None
    unlabeled_file: str | None = None
    train_size: int | None = Field(default=None, ge=4)
    max_length: int = Field(default=128, ge=4, le=8192)
    vocab_size: int = Field(default=8000, ge=1)  # a network's own may be as small as that
    cleaning: Cleaning = Cleaning()

    @model_validator(mode="before")
    @classmethod
    def _gather(cls, given: Any) -> Any:
        """Settings of the cleaning that stand beside the others."""
        if not isinstance(given, Mapping) or "cleaning" in given:
            return given
        names = [name for name in given if name in Cleaning.model_fields]
        rest = {name: value for name, value in given.items() if name not in names}
        return {**rest, "cleaning": {name: given[name] for name in names}} if names else given

    def is_changed(self, name: str) -> bool:
        """Whether a setting is another than by default: records write out the defaults, too."""
        return bool(getattr(self, name) != type(self).model_fields[name].default)

    def overridden(self, given: "TextOptions") -> "TextOptions":
        """These settings, but for those that ``given`` was made with."""
        says = given.model_dump(exclude_unset=True)
        says["cleaning"] = {**self.cleaning.model_dump(), **says.get("cleaning", {})}
        return TextOptions.model_validate({**self.model_dump(), **says})

    @classmethod
    def from_pairs(cls, given: Mapping[str, Any], where: str) -> "TextOptions":
        """Options by name, as on the command line.

        Raises:
            InputError: A name is unknown, or a value cannot be used.
        """
        known = {*cls.model_fields, *Cleaning.model_fields} - {"cleaning"}
        for name in given:
            if name not in known:
                raise InputError(
                    f"{where}: no setting '{name}'; settings are {', '.join(sorted(known))}"
                )
        try:
            return cls.model_validate(dict(given))
        except ValidationError as error:
            first = error.errors()[0]
            name = str(first["loc"][-1])
            raise InputError(f"{where} {name}={first['input']!r}: {complaint(first)}") from error
