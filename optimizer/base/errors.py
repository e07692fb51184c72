"""Every error that prumux raises on purpose, and the exit code that each one means."""

from typing import ClassVar

INTERRUPTED = 130
"""The exit code after Ctrl-C; it is no error."""


class PrumuxError(Exception):
    """Base class. The message is at most five lines and says what to do next."""

    exit_code: ClassVar[int] = 1


class UsageError(PrumuxError):
    """A wrong option, file or configuration: the user can mend it."""

    exit_code = 2


class SpecError(UsageError):
    """A pipeline text that does not parse or names something that does not exist."""


class DataError(UsageError):
    """A data file that cannot be read, or does not fit the model."""


class ModelError(UsageError):
    """A model that cannot be read, is damaged, or is not supported."""


class GateError(PrumuxError):
    """A parity or safety check failed."""

    exit_code = 4


class VerifyError(GateError):
    """A model whose weights do not have the names and shapes that its sizes say."""


class MissingError(PrumuxError):
    """Something that is needed is not installed or not present."""

    exit_code = 5


class LostError(PrumuxError):
    """A process that trained along is gone: the run ends, no candidate is at fault."""


class PassError(PrumuxError):
    """A pass failed inside a pipeline; carries the exit code of what went wrong."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code  # type: ignore[misc]
