"""Exceptions with a meaning of their own: user errors, storage outages, stalled input, requested stops."""

import contextlib
from collections.abc import Iterator, Sequence


class UserError(ValueError):
    """A problem that the user must fix: in a command, a config, a data set or a run directory.

    The message says what is wrong, where, and what to do. Programs print it and exit with status 2.
    """


class DamagedFileError(UserError):
    """A file does not hold the bytes that were written. The message names the file."""


class DataError(UserError):
    """A data set cannot be used. `problems` holds one message per problem."""

    def __init__(self, problems: Sequence[str]):
        super().__init__("\n".join(problems))
        self.problems = list(problems)


class StorageUnavailableError(OSError):
    """An object store did not answer within the retry limit. The same command resumes the run."""


class InputTimeoutError(RuntimeError):
    """A read did not return within the time limit. Its thread cannot be joined."""


class StopRequested(Exception):
    """The run was asked to stop, and everything needed to resume is saved."""


@contextlib.contextmanager
def as_user_errors() -> Iterator[None]:
    """Converts any ValueError raised in the body to a UserError."""
    try:
        yield
    except UserError:
        raise
    except ValueError as error:
        raise UserError(str(error)) from error
