"""ldseg_report: one HTML page on a trained model."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ldseg_auto.cli import common
from ldseg_auto.folders import DEFAULT_CHECKPOINT
from ldseg_auto.report.run import DEFAULT_CASES


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return common.run(_report, _parser(), arguments)


def _parser() -> argparse.ArgumentParser:
    parser = common.parser("Write one HTML page on a trained model: plans, training, every validation case, "
                           "reliability, reverse diffusion and a volume viewer. It needs no network.")
    parser.add_argument("dataset", metavar="DATASET", help="ID or name of the data set")
    parser.add_argument("-c", dest="configuration", metavar="CONFIGURATION", default=argparse.SUPPRESS,
                        help="configuration (default: the trained one; 3d_fullres if there are several)")
    common.add_model(parser)
    parser.add_argument("-f", dest="folds", metavar="FOLD", nargs="+", default=argparse.SUPPRESS,
                        help="folds to report on (default: those that are trained)")
    parser.add_argument("-chk", dest="checkpoint_name", metavar="CHECKPOINT", default=DEFAULT_CHECKPOINT,
                        help="name of the checkpoint (default: %(default)s)")
    parser.add_argument("-o", dest="output", metavar="FILE", default=argparse.SUPPRESS,
                        help="file to write (default: report.html in the model's folder)")
    parser.add_argument("--cases", metavar="N", type=common.positive_int, default=DEFAULT_CASES,
                        help="how many of the worst and of the best cases to show (default: %(default)s)")
    common.add_device(parser)
    return parser


def _report(arguments: argparse.Namespace) -> None:
    from ldseg_auto.report.run import write_report

    print(f"Report: {write_report(**vars(arguments))}")


if __name__ == "__main__":  # python -m, where the console scripts are not on PATH
    raise SystemExit(main())
