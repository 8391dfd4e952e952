"""ldseg_evaluate: score predictions against references, or compare two folders of predictions."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from ldseg_auto.cli import common


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return common.run(_evaluate, _parser(), arguments)


def _parser() -> argparse.ArgumentParser:
    parser = common.parser("Score predictions against references: Dice, normalised surface Dice (NSD), HD95, ASSD and "
                           "size of each class or region, with intervals. A structure that was missed, or predicted "
                           "where there is none, counts as Dice and NSD 0, HD95 and ASSD the image's diagonal; where "
                           "neither has it, the case is left out of that class's means.")
    parser.add_argument("-i", dest="predictions", metavar="PREDICTIONS", required=True, help="folder of predictions")
    parser.add_argument("-r", dest="references", metavar="REFERENCES", required=True,
                        help="folder of reference label maps of the same names")
    parser.add_argument("-o", dest="output_folder", metavar="OUT", default=argparse.SUPPRESS,
                        help="folder to write evaluation.json and .csv to (default: PREDICTIONS/evaluation)")
    labels = parser.add_mutually_exclusive_group()
    labels.add_argument("-d", dest="dataset", metavar="DATASET", default=argparse.SUPPRESS,
                        help="ID or name of the data set (default: the dataset.json that nnU-Net wrote beside "
                             "predictions, or into the model's folder above them)")
    labels.add_argument("-djfile", dest="dataset_json", metavar="FILE", default=argparse.SUPPRESS,
                        help="this dataset.json instead")
    parser.add_argument("-pfile", dest="plans_json", metavar="FILE", default=argparse.SUPPRESS,
                        help="plans.json: reader and default tolerance (default: as dataset.json)")
    parser.add_argument("--tolerance", metavar="MM", type=_tolerance, nargs="+", default=argparse.SUPPRESS,
                        help="distance in mm up to which surfaces agree in the NSD: one number for all classes, "
                             "CLASS=MM for one (default: the largest of the data set's median spacings in its plans, "
                             "the same for every case; 1 without plans)")
    parser.add_argument("--compare", dest="second", metavar="PREDICTIONS", default=argparse.SUPPRESS,
                        help="other predictions of the same cases: also write comparison.json and .csv, with paired "
                             "differences and Wilcoxon's signed-rank test for each class")
    parser.add_argument("--chill", action="store_true",
                        help="score what both folders have, instead of refusing where a prediction or reference is "
                             "missing")
    parser.add_argument("-np", dest="num_processes", metavar="N", type=common.positive_int, default=argparse.SUPPRESS,
                        help="processes (default: nnUNet_def_n_proc, or the number of cores, at most 8)")
    parser.add_argument("--disable_progress_bar", dest="progress_bar", action="store_false", help="no progress bars")
    return parser


def _tolerance(text: str) -> tuple[str | None, float]:
    name, equals, number = text.rpartition("=")
    return (name if equals else None), common.positive_float(number)


def _evaluate(arguments: argparse.Namespace) -> None:
    from ldseg_auto.evaluation import evaluate, tables

    options = vars(arguments)
    if "tolerance" in options:
        options["tolerance_mm"] = dict(options.pop("tolerance"))
    predictions, references = options.pop("predictions"), options.pop("references")
    if "second" in options:
        scored, compared = evaluate.compare_folders(predictions, options.pop("second"), references, **options)
        texts = [tables.evaluation_table(scored), tables.comparison_table(compared)]
    else:
        texts = [tables.evaluation_table(evaluate.evaluate_folder(predictions, references, **options))]
    folder = options.get("output_folder", Path(predictions) / evaluate.DEFAULT_FOLDER)
    print(*texts, f"Written to {folder}", sep="\n\n")


if __name__ == "__main__":  # python -m, where the console scripts are not on PATH
    raise SystemExit(main())
