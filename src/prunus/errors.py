"""Every error a user of Prunus can cause: one line that names the argument, the value and the remedy."""


class PrunusError(Exception):
    """Base of all errors that are the user's to mend; the command line prints it and exits with 2."""


class InputError(PrunusError):
    """An argument, a file or a setting has a value that cannot be used."""


class SettingError(InputError, ValueError):
    """A setting of a record, such as a step of a recipe, is missing, unknown or out of range."""


class GraphError(PrunusError):
    """The network cannot be traced, or an edit cannot be applied to it."""


class CertificateError(GraphError):
    """The cut network and the masked dense network disagree: the cut is refused."""


class PlanMismatchError(GraphError):
    """A plan made for one network was given another."""


class BudgetError(PrunusError):
    """A target cannot be met; the message says what is reachable."""


class DataError(PrunusError):
    """A data set is missing, unreadable or too small."""


class MissingExtraError(PrunusError):
    """An optional package is not installed; the message holds the command that installs it."""


class TemporaryFolderError(InputError):
    """The folder for temporary files takes no more, or was emptied while it was used."""


class StorageError(PrunusError):
    """The disk that a run keeps its results on is full or fails; what it says it holds is safe."""


def moved_away(path: object) -> StorageError:
    """The error of a file or folder of a run that is no longer where it was."""
    return StorageError(
        f"'{path}' was moved or deleted while it was in use: move it back and resume"
    )


def kind_and_line(error: BaseException) -> str:
    """The kind of a foreign error, and the first line of its message, as ``ValueError: too many``."""
    return f"{type(error).__name__}: {first_line(error)}"


def first_line(error: BaseException) -> str:
    """The first line of a foreign error's message, or its kind where it has none; at most 300 characters."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
