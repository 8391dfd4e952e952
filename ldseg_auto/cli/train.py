"""ldseg_train: train and validate folds."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ldseg_auto.cli import common
from ldseg_auto.errors import LDSegError


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return common.run(_train, _parser(), arguments)


def _parser() -> argparse.ArgumentParser:
    parser = common.parser("Train folds of a data set, one after the other, and validate each.")
    parser.add_argument("dataset", metavar="DATASET", help="ID or name of a preprocessed data set")
    parser.add_argument("folds", metavar="FOLD", nargs="+", help="0 to 4, or all (train on every case)")
    parser.add_argument("-c", dest="configuration", metavar="CONFIGURATION", default=argparse.SUPPRESS,
                        help="configuration (default: 3d_fullres if it is planned, else 2d)")
    common.add_model(parser)
    common.add_device(parser)
    parser.add_argument("-pretrained_weights", metavar="CHECKPOINT", default=argparse.SUPPRESS,
                        help="start from the weights of this checkpoint of ours, as far as they fit")
    parser.add_argument("--encoder_weights", metavar="CHECKPOINT", default=argparse.SUPPRESS,
                        help="start the image encoder from this checkpoint of nnU-Net's own U-Nets, as far as it fits")
    parser.add_argument("-num_gpus", metavar="N", type=common.positive_int, default=1,
                        help="GPUs for one fold (default: 1)")
    parser.add_argument("--restart", action="store_true",
                        help="train anew (default: finished folds are left alone, interrupted ones continued)")
    parser.add_argument("--c", dest="continue_training", action="store_true",
                        help="continue; a finished fold is trained on if --epochs asks for more, and validated again")
    parser.add_argument("--val", dest="only_validate", action="store_true", help="only validate a trained fold")
    parser.add_argument("--val_best", dest="validate_best", action="store_true",
                        help="validate checkpoint_best.pth, into validation_best/")
    parser.add_argument("--npz", dest="save_probabilities", action="store_true",
                        help="save the validation's probabilities")
    parser.add_argument("--disable_checkpointing", action="store_true", help="write no checkpoints")
    _add_schedule(parser)
    _add_split(parser)
    _add_cluster(parser)
    return parser


def _add_schedule(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--epochs", metavar="N", type=common.positive_int, default=argparse.SUPPRESS,
                        help="epochs (default: the trainer's)")
    parser.add_argument("--iterations_per_epoch", metavar="N", type=common.positive_int, default=argparse.SUPPRESS,
                        help="training iterations an epoch (default: the trainer's)")
    parser.add_argument("--max_minutes", metavar="MINUTES", type=common.positive_float, default=argparse.SUPPRESS,
                        help="end each fold's training within this time, learning rate annealed to it "
                             "(validation comes on top)")
    parser.add_argument("--seed", metavar="N", type=common.seed, default=argparse.SUPPRESS,
                        help="make a training repeatable on the same machine")


def _add_split(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--group_by", metavar="CSV", default=argparse.SUPPRESS,
                        help="file with the columns case,patient: no patient is in both parts of a fold")
    parser.add_argument("--allow_unused_cases", action="store_true", help="accept a split that leaves cases out")


def _add_cluster(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cluster", choices=("slurm", "local"), default=argparse.SUPPRESS,
                        help="one job a fold: submitted to Slurm, or run here, one at a time or one a GPU "
                             "(needs the extra ldseg_auto[cluster])")
    parser.add_argument("--cluster_options", metavar="NAME=VALUE", nargs="+", default=argparse.SUPPRESS,
                        help="of submitit, such as timeout_min=1440 slurm_partition=gpu mem_gb=32")


def _train(arguments: argparse.Namespace) -> None:
    from ldseg_auto.trainers.cluster import train_on_cluster
    from ldseg_auto.trainers.ranks import leads, number_of_ranks
    from ldseg_auto.trainers.run import train_folds

    if "cluster" in arguments:
        if number_of_ranks(1) > 1:
            raise LDSegError("torchrun starts several processes, and each would submit all jobs.",
                             "Submit the jobs without torchrun; -num_gpus lets each use several GPUs.")
        train_on_cluster(**vars(arguments))
        return
    if "cluster_options" in arguments:
        raise LDSegError("--cluster_options is given without --cluster.", "Add --cluster slurm or --cluster local.")
    for folder in train_folds(**vars(arguments)):
        if leads():
            print(f"Trained fold: {folder}")


if __name__ == "__main__":  # python -m, where the console scripts are not on PATH
    raise SystemExit(main())
