"""ldseg_predict: segment the images of a folder."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from ldseg_auto.checks.files import require_input_folder
from ldseg_auto.cli import common
from ldseg_auto.folders import DEFAULT_CHECKPOINT, RESULTS, require_environment


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return common.run(_predict, _parser(), arguments)


def _parser() -> argparse.ArgumentParser:
    parser = common.parser("Segment the images of a folder with the trained folds of a model.")
    parser.add_argument("-i", dest="input_folder", metavar="IN", required=True,
                        help="folder with CASE_0000, CASE_0001, ... (one file a channel, as in training)")
    parser.add_argument("-o", dest="output_folder", metavar="OUT", required=True, help="folder to write to")
    parser.add_argument("-d", dest="dataset", metavar="DATASET", required=True, help="ID or name of the data set")
    common.add_model(parser)
    parser.add_argument("-c", dest="configurations", metavar="CONFIGURATION", nargs="+", default=argparse.SUPPRESS,
                        help="configuration (default: the one chosen by ldseg_find_best_configuration, or else the "
                             "trained one, 3d_fullres if there are several); of several "
                             "the probabilities are averaged")
    parser.add_argument("-f", dest="folds", metavar="FOLD", nargs="+", default=argparse.SUPPRESS,
                        help="folds to ensemble (default: those that are trained)")
    parser.add_argument("-prev_stage_predictions", dest="previous_stage_folder", metavar="FOLDER",
                        default=argparse.SUPPRESS,
                        help="of a cascade, the segmentations by its first stage (default: they are predicted first)")
    parser.add_argument("-chk", dest="checkpoint_name", metavar="CHECKPOINT", default=DEFAULT_CHECKPOINT,
                        help="name of the checkpoint (default: %(default)s)")
    _add_inference(parser)
    _add_sampling(parser)
    _add_work(parser)
    common.add_device(parser)
    parser.add_argument("--disable_progress_bar", dest="progress_bar", action="store_false", help="no progress bars")
    parser.add_argument("--verbose", action="store_true", help="print more")
    return parser


def _add_inference(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-step_size", dest="tile_step_size", metavar="SHARE", type=common.positive_float, default=0.5,
                        help="distance of tiles as a share of the patch, up to 1 (default: %(default)s)")
    parser.add_argument("--disable_tta", dest="mirroring", action="store_false", default=argparse.SUPPRESS,
                        help="no mirroring; faster")
    parser.add_argument("--whole_volume", action="store_true",
                        help="sample each image as a whole: encoded and decoded tile by tile, denoised at once")
    parser.add_argument("--plans_defaults", dest="use_choice", action="store_false",
                        help="the plans' defaults in place of what ldseg_find_best_configuration chose")
    parser.add_argument("--continue_prediction", action="store_true", help="keep what is there already")
    parser.add_argument("--skip_bad_cases", action="store_true",
                        help="end with exit code 0 although some images cannot be used; they are named in "
                             "OUT/data_check.json")
    parser.add_argument("--save_probabilities", action="store_true", help="also write CASE.npz and CASE.pkl")


def _add_sampling(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--steps", metavar="N", type=common.positive_int, default=argparse.SUPPRESS,
                        help="denoising steps a sample (default: the choice, or else the plans')")
    parser.add_argument("--samples", metavar="N", type=common.positive_int, default=argparse.SUPPRESS,
                        help="samples to average (default: the choice, or else the plans')")
    parser.add_argument("--eta", metavar="ETA", type=float, default=argparse.SUPPRESS,
                        help="noise added at each step, 0 (none) to 1 (ancestral) (default: the choice, or else the "
                             "plans')")
    parser.add_argument("--seed", metavar="N", type=common.seed, default=0,
                        help="of the samples' noise (default: %(default)s)")
    parser.add_argument("--uncertainty", action="store_true", help="also write OUT/uncertainty/CASE_entropy")


def _add_work(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-npp", dest="num_processes_preprocessing", metavar="N", type=int,
                        default=os.environ.get("nnUNet_npp") or "3",
                        help="processes for preprocessing (default: nnUNet_npp or 3; 0 with -nps 0: no others)")
    parser.add_argument("-nps", dest="num_processes_export", metavar="N", type=int,
                        default=os.environ.get("nnUNet_nps") or "3",
                        help="processes for writing (default: nnUNet_nps or 3)")
    parser.add_argument("-num_parts", metavar="N", type=int, default=1,
                        help="commands that share the work (default: %(default)s)")
    parser.add_argument("-part_id", metavar="I", type=int, default=0,
                        help="which of them this is, from 0 (default: %(default)s)")


def _predict(arguments: argparse.Namespace) -> None:
    require_environment(RESULTS)  # before the imports, which take seconds
    require_input_folder(Path(arguments.input_folder))

    from ldseg_auto.inference.run import predict_folder
    from ldseg_auto.trainers.interruption import stop_in_order

    with stop_in_order("Run the same command again with --continue_prediction: cases that are written are kept."):
        written = predict_folder(**vars(arguments))
    print(f"Segmentations in {arguments.output_folder}: {len(written)}")


if __name__ == "__main__":  # python -m, where the console scripts are not on PATH
    raise SystemExit(main())
