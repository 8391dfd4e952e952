"""ldseg_find_best_configuration: choose how to predict, by cross-validation."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ldseg_auto.cli import common


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return common.run(_find, _parser(), arguments)


def _parser() -> argparse.ArgumentParser:
    parser = common.parser("Choose sampler, mirroring, configuration or pair of them, and postprocessing, on cases "
                           "that the folds did not train on. ldseg_predict uses the choice from then on.")
    parser.add_argument("dataset", metavar="DATASET", help="ID or name of a data set with trained folds")
    parser.add_argument("-c", dest="configurations", metavar="CONFIGURATION", nargs="+", default=argparse.SUPPRESS,
                        help="choose among these (default: all that are trained)")
    parser.add_argument("-f", dest="folds", metavar="FOLD", nargs="+", default=argparse.SUPPRESS,
                        help="folds to use (default: those that are trained)")
    common.add_model(parser)
    parser.add_argument("--cases", dest="max_cases", metavar="N", type=common.positive_int, default=40,
                        help="cases of the search, from small to large; the winner is then confirmed on all "
                             "(default: %(default)s)")
    common.add_device(parser)
    parser.add_argument("--disable_progress_bar", dest="progress_bar", action="store_false", help="no progress bars")
    return parser


def _find(arguments: argparse.Namespace) -> None:
    from ldseg_auto.inference.find_best import find_best_configuration

    best = find_best_configuration(**vars(arguments))
    print(f"Chosen: {' and '.join(best.configurations)}; ldseg_predict uses it from now on")


if __name__ == "__main__":  # python -m, where the console scripts are not on PATH
    raise SystemExit(main())
