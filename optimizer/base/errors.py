"""The errors that prumux raises on purpose, each with its exit code."""

from typing import ClassVar

INTERRUPTED = 130
"""Exit code after Ctrl-C."""


class PrumuxError(Exception):
    """Base class. A message has at most five lines and says what to do next."""

    exit_code: ClassVar[int] = 1


class UsageError(PrumuxError):
    """A wrong option, file or configuration, which the user can correct."""

    exit_code = 2


class SpecError(UsageError):
    """A pipeline text that does not parse, or that names an unknown pass or option."""


class DataError(UsageError):
    """A data file that cannot be read or does not fit the model."""


class ModelError(UsageError):
    """A model that cannot be read, is damaged, or is not supported."""


class GateError(PrumuxError):
    """A parity or safety check failed."""

    exit_code = 4


class VerifyError(GateError):
    """A model whose weight names or shapes differ from its sizes."""


class MissingError(PrumuxError):
    """A required library, device or file is missing."""

    exit_code = 5


class LostError(PrumuxError):
    """A training process died. The run ends; the candidate is not at fault."""


class PassError(PrumuxError):
    """A pass failed inside a pipeline. The exit code is that of the original error."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code  # type: ignore[misc]
