"""ldseg_demo: the whole way on data made on the spot."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ldseg_auto.cli import common


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return common.run(_demo, _parser(), arguments)


def _parser() -> argparse.ArgumentParser:
    parser = common.parser("Make a small data set, plan, train one fold, predict and draw cases never trained on.")
    parser.add_argument("-o", dest="folder", metavar="DIR", required=True, help="folder to write to")
    parser.add_argument("--minutes", metavar="MINUTES", type=common.positive_float, default=3.2,
                        help="of training (default: %(default)s)")
    parser.add_argument("--seed", metavar="N", type=common.seed, default=0,
                        help="of the data and of the training (default: %(default)s)")
    common.add_device(parser)
    return parser


def _demo(arguments: argparse.Namespace) -> None:
    from ldseg_auto.demo.demo import run_demo

    run_demo(**vars(arguments))


if __name__ == "__main__":  # python -m, where the console scripts are not on PATH
    raise SystemExit(main())
