"""What the commands share: how they end, and the arguments that mean the same everywhere."""

from __future__ import annotations

import argparse
import errno
import sys
from collections.abc import Callable, Sequence

from ldseg_auto.devices import DEVICES, limit_processes
from ldseg_auto.errors import Interrupted, LDSegError
from ldseg_auto.folders import DEFAULT_PLANS, DEFAULT_TRAINER

_FULL_DISK = (errno.ENOSPC, errno.EDQUOT)


def run(command: Callable[[argparse.Namespace], None], parser: argparse.ArgumentParser,
        arguments: Sequence[str] | None = None) -> int:
    """Parse and run a command.

    Args:
        command: called with the parsed arguments.
        parser: the command's arguments.
        arguments: instead of `sys.argv[1:]`.

    Returns:
        The exit code: 0, or 1 after a foreseeable mistake (one line on stderr, and one for each of a list), or after a
        signal 128 + its number (130 after Ctrl-C).
    """
    parsed = parser.parse_args(arguments)
    limit_processes()
    try:
        command(parsed)
    except LDSegError as error:
        print("error:", " ".join(f"{error.cause} {error.cure}".split()), file=sys.stderr)
        for line in error.details:
            print("  " + " ".join(line.split()), file=sys.stderr)
        return 1
    except OSError as error:
        if error.errno not in _FULL_DISK:
            raise
        print(f"error: {error.filename or 'A file'} could not be written: {error.strerror}. Make room, then run the "
              "same command again.", file=sys.stderr)
        return 1
    except Interrupted as interruption:
        print(interruption, file=sys.stderr)
        return interruption.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


def parser(description: str) -> argparse.ArgumentParser:
    """A parser that takes no abbreviations: `--c` is an option of its own in nnU-Net's commands."""
    return argparse.ArgumentParser(description=description, allow_abbrev=False)


def add_model(parser: argparse.ArgumentParser) -> None:
    """-tr, -p: which model of a data set."""
    parser.add_argument("-tr", dest="trainer_name", metavar="TRAINER", default=DEFAULT_TRAINER,
                        help="trainer class (default: %(default)s)")
    parser.add_argument("-p", dest="plans_name", metavar="PLANS", default=DEFAULT_PLANS,
                        help="name of the plans (default: %(default)s)")


def add_device(parser: argparse.ArgumentParser) -> None:
    """-device."""
    parser.add_argument("-device", choices=DEVICES, default=argparse.SUPPRESS,
                        help="where to compute (default: cuda if there is a GPU, else cpu); "
                             "choose among GPUs with CUDA_VISIBLE_DEVICES")


def seed(text: str) -> int:
    """A seed that every random generator takes: 0 to 2**32 - 1."""
    if not text.isdecimal() or int(text) >= 2 ** 32:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to {2 ** 32 - 1}")
    return int(text)


def positive_int(text: str) -> int:
    """An argument of 1 or more."""
    return _positive(int, text)


def positive_float(text: str) -> float:
    """An argument above 0."""
    return _positive(float, text)


def _positive(kind: type, text: str):
    try:
        value = kind(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of type {kind.__name__}") from error
    if not value > 0:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value
