"""The one error that a person is meant to read: what is wrong, where, which value, and the way out."""

from __future__ import annotations


class PrivFedError(Exception):
    """A wrong setting, file or message, in one line.

    Args:
        what: What is wrong, as a sentence without a final stop.
        where: The key path, file or argument it is wrong in.
        value: The offending value, shown with ``repr``; omitted when ``None``.
        remedy: What to do about it.
    """

    def __init__(self, what: str, *, where: str = "", value: object = None, remedy: str = "") -> None:
        self.what, self.where, self.value, self.remedy = what, where, value, remedy
        place = f"{where}: " if where else ""
        shown = f" (got {_shorten(repr(value))})" if value is not None else ""
        advice = f". {remedy}" if remedy else ""
        super().__init__(" ".join(f"{place}{what}{shown}{advice}".split()))


class SettingError(PrivFedError):
    """A setting that is unknown, out of range, or contradicts another."""


class DataError(PrivFedError):
    """A dataset that is missing, corrupt, empty or not finite."""


class OutputError(PrivFedError):
    """An output folder that cannot be written or already belongs to another run."""


def _shorten(text: str, limit: int = 120) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


class Stopped(PrivFedError):  # noqa: N818 - nothing went wrong
    """A training was asked to stop and did, with everything saved.

    Attributes:
        exit_code: As a shell expects it after the signal.
    """

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code
