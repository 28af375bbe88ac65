"""The network and the data that the command line asks for."""

from prunus.cli.given import Subject, read_image_size, read_pairs
from prunus.data import TextOptions, is_text_data, named_size, with_image_size
from prunus.errors import InputError
from prunus.records import Source


def make_source(subject: Subject) -> Source:
    """The network that is asked for.

    Raises:
        InputError: None is.
    """
    if subject.model is None:
        raise InputError(
            "--model is missing; name a zoo network, hf:NAME, timm:NAME or FILE.py:FACTORY"
        )
    return Source(
        model=subject.model,
        arguments=read_pairs(subject.arguments, "--arguments"),
        weights=subject.weights,
    )


def data_name(subject: Subject, recipes: str | None = None) -> str | None:
    """The data that is asked for, or the recipe's, with the size of its images.

    Raises:
        InputError: A size is given for data that has its own.
    """
    name = subject.data if subject.data is not None else recipes
    if subject.image_size is None:
        return name
    if not name:
        raise InputError(
            f"--image-size {subject.image_size} is given without --data; name the images: "
            "--data imagefolder:DIR"
        )
    size = read_image_size(subject.image_size)
    if subject.data is not None and named_size(name) is not None:  # a recipe's own is overridden
        raise InputError(
            f"--image-size {subject.image_size} is given, and --data {name} names a size: give one of "
            "them"
        )
    try:
        return with_image_size(name, size)
    except InputError as error:
        raise InputError(f"--image-size {subject.image_size}: {error}") from error


def text_options(subject: Subject, recipes: str | None = None) -> TextOptions | None:
    """How texts are read, where something is said of it.

    Args:
        subject: As given.
        recipes: The recipe's data, where the command line names none.

    Raises:
        InputError: The data is no text, there is no such setting, or a value cannot be used.
    """
    given = read_pairs(subject.text, "--text")
    name = subject.data or recipes
    if given and name and not is_text_data(name):
        raise InputError(
            f"--text '{subject.text[0]}' is given, but data '{name}' is no set of texts; leave it out"
        )
    return TextOptions.from_pairs(given, "--text") if given else None
