"""ldseg_import: check and install a model that ldseg_export wrote."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ldseg_auto.cli import common


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return common.run(_import, _parser(), arguments)


def _parser() -> argparse.ArgumentParser:
    parser = common.parser("Check a zip that ldseg_export wrote and install its models below nnUNet_results. No code "
                           "from it is run; unless all of it is sound, nothing is installed.")
    parser.add_argument("zip_file", metavar="MODEL.zip", help="the zip")
    parser.add_argument("--overwrite", action="store_true",
                        help="replace models that are there, with all of their folds")
    return parser


def _import(arguments: argparse.Namespace) -> None:
    from ldseg_auto.sharing.install import import_model

    for model in import_model(**vars(arguments)):
        print(f"Installed model: {model} (its licence: {model / 'LICENSE'})")


if __name__ == "__main__":  # python -m, where the console scripts are not on PATH
    raise SystemExit(main())
