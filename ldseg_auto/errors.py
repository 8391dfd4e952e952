"""The one exception for mistakes we foresee, which names the cause and the cure; and the one for signals."""

from __future__ import annotations

import re
from collections.abc import Sequence

# where torch says what a file holds beside weights, between advice to open it all the same
_OF_TORCH = re.compile(r"(?:WeightsUnpickler error: |Trying to load )(.+?)(?:\. |\n|$)")


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

    def __reduce__(self) -> tuple:
        """Sent between processes by its parts."""
        return LDSegError, (self.cause, self.cure, self.details)


class Interrupted(KeyboardInterrupt):
    """A signal ends the command.

    Args:
        name: of the signal.
        number: of the signal; a shell expects the exit code 128 + number.
        advice: how to go on.
    """

    def __init__(self, name: str, number: int, advice: str):
        self.exit_code = 128 + number
        super().__init__(f"interrupted by {name}. {advice}")


def reason_of(error: BaseException) -> str:
    """The kind of an error and what it says, on one line that a terminal can show."""
    found = _OF_TORCH.search(str(error))
    said = found[1] if found else next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {''.join(each if each.isprintable() else '?' for each in said)}"


def named(names: Sequence[str], most: int = 5, separator: str = ", ") -> str:
    """The first names of a list that may be long, for a message."""
    return separator.join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
