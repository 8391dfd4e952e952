"""Cases that could not be predicted, each with its cause and cure; they do not stop the others."""

from __future__ import annotations

import errno
import traceback
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass

from ldseg_auto.errors import LDSegError, named
from ldseg_auto.inference.fallback import is_out_of_memory

_MEMORY_CURE = "Free memory, or predict with fewer processes (-npp 1 -nps 1)."


@dataclass(frozen=True)
class Failure:
    """A case that was not predicted.

    Args:
        case: its name.
        cause, cure: as of `LDSegError`.
    """

    case: str
    cause: str
    cure: str


class CasesFailed(LDSegError):
    """Some cases were not predicted; all others are written.

    Args:
        failures: one a case.
        total: of the cases that were to be predicted.
        more: lines on cases that were refused before.
    """

    def __init__(self, failures: Sequence[Failure], total: int, more: Sequence[str] = ()):
        self.failures = list(failures)
        super().__init__(f"{len(self.failures)} of {total} cases failed: "
                         f"{named([failure.case for failure in self.failures])}.",
                         "Correct what is listed here, then run the command again with --continue_prediction:",
                         [*(f"{failure.case}: {failure.cause} {failure.cure}" for failure in failures), *more])


def failure_of(case: str, step: str, error: BaseException, verbose: bool = False) -> Failure:
    """What stopped a case.

    Args:
        step: "preprocessing", "prediction" or "writing".
        verbose: print the traceback of what was not foreseen.
    """
    if isinstance(error, LDSegError):
        return Failure(case, error.cause, error.cure)
    if isinstance(error, BrokenProcessPool):
        return Failure(case, f"Its process was ended by the system during {step}, most often for lack of memory.",
                       _MEMORY_CURE)
    if is_out_of_memory(error):
        return Failure(case, f"Memory did not suffice for {step}.", _MEMORY_CURE)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return Failure(case, f"The disk is full ({step}).", "Free space, or give another folder to -o.")
    if verbose:
        traceback.print_exception(error)
    said = " ".join(str(error).split())
    return Failure(case, f"{step.capitalize()} failed: {type(error).__name__}{f': {said}' if said else ''}.",
                   "Check the case's files; run with --verbose to see where it happened.")
