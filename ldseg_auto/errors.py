"""The one exception for mistakes we foresee: it names the cause and the cure."""

from __future__ import annotations

from collections.abc import Sequence


class LDSegError(RuntimeError):
    """A foreseeable mistake.

    Args:
        cause: what is wrong, with the value that came.
        cure: what to do about it.
        details: a line each for what there is a list of.
    """

    def __init__(self, cause: str, cure: str, details: Sequence[str] = ()):
        self.cause = cause
        self.cure = cure
        self.details = list(details)
        super().__init__("\n  ".join([f"{cause} {cure}", *details]))


def named(names: Sequence[str], most: int = 5, separator: str = ", ") -> str:
    """The first names of a list that may be long, for a message."""
    return separator.join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
