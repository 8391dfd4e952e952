"""ldseg_export: a trained model as one zip, to share or to keep."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ldseg_auto.cli import common
from ldseg_auto.folders import DEFAULT_CHECKPOINT


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return common.run(_export, _parser(), arguments)


def _parser() -> argparse.ArgumentParser:
    parser = common.parser("Write what prediction needs of a trained model into one zip that ldseg_import installs. "
                           "It holds no images and nothing to continue the training with, but the names of the "
                           "validation cases.")
    parser.add_argument("-d", dest="dataset", metavar="DATASET", required=True, help="ID or name of the data set")
    common.add_model(parser)
    parser.add_argument("-c", dest="configurations", metavar="CONFIGURATION", nargs="+", default=argparse.SUPPRESS,
                        help="configurations (default: those that are trained)")
    parser.add_argument("-f", dest="folds", metavar="FOLD", nargs="+", default=argparse.SUPPRESS,
                        help="folds (default: those that are trained)")
    parser.add_argument("-chk", dest="checkpoint_name", metavar="CHECKPOINT", default=DEFAULT_CHECKPOINT,
                        help="name of the checkpoint (default: %(default)s); imported it is always called "
                             f"{DEFAULT_CHECKPOINT}")
    parser.add_argument("-o", dest="output_file", metavar="MODEL.zip", required=True, help="file to write")
    parser.add_argument("--licence", metavar="FILE", default=argparse.SUPPRESS,
                        help="text of the licence under which others may use the model (default: what an imported "
                             "model came with, or else a note that there is none)")
    parser.add_argument("--overwrite", action="store_true", help="replace MODEL.zip if it exists")
    return parser


def _export(arguments: argparse.Namespace) -> None:
    from ldseg_auto.sharing.export import export_model

    manifest = export_model(**vars(arguments))
    for configuration, folds in manifest.configurations.items():
        print(f"{manifest.dataset}, {configuration}: fold {' '.join(map(str, folds))}")
    print(f"Exported model: {arguments.output_file}")


if __name__ == "__main__":  # python -m, where the console scripts are not on PATH
    raise SystemExit(main())
