"""ldseg_plan_and_preprocess: fingerprint, plan and preprocess data sets."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ldseg_auto.checks.description import read_description
from ldseg_auto.cli import common
from ldseg_auto.folders import PREPROCESSED, RAW, dataset_id, find_dataset, folder_of, require_environment


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return common.run(_plan_and_preprocess, _parser(), arguments)


def _parser() -> argparse.ArgumentParser:
    parser = common.parser("Extract the fingerprint, plan the experiment and preprocess the cases of data sets.")
    parser.add_argument("-d", dest="datasets", metavar="DATASET", nargs="+", required=True,
                        help="IDs (or names) of data sets in nnUNet_raw")
    parser.add_argument("-c", dest="configurations", metavar="CONFIGURATION", nargs="+", default=argparse.SUPPRESS,
                        help="configurations to preprocess (default: all that are planned)")
    parser.add_argument("-np", dest="num_processes", metavar="N", type=common.positive_int, nargs="+",
                        default=argparse.SUPPRESS,
                        help="processes for preprocessing, one number or one a configuration")
    parser.add_argument("-npfp", dest="num_processes_fingerprint", metavar="N", type=common.positive_int,
                        default=argparse.SUPPRESS, help="processes for the fingerprint")
    parser.add_argument("-pl", dest="planner", metavar="PLANNER", default=argparse.SUPPRESS,
                        help="LDSegPlanner (default), or LDSegPlannerResEncM, L or XL: nnU-Net's residual encoders "
                             "for 8, 24 or 40 GB, with plans of their own names")
    parser.add_argument("-gpu_memory_target", dest="gpu_memory_target_in_gb", metavar="GB",
                        type=common.positive_float, default=argparse.SUPPRESS,
                        help="GPU memory that training may take; decides patch and batch size")
    parser.add_argument("-overwrite_target_spacing", metavar="MM", type=common.positive_float, nargs="+",
                        default=argparse.SUPPRESS,
                        help="target spacing of 3d_fullres, in the order of the array's axes (z y x)")
    parser.add_argument("-overwrite_plans_name", dest="plans_name", metavar="PLANS", default=argparse.SUPPRESS,
                        help="write the plans under another name")
    parser.add_argument("-s", dest="plans_of", metavar="DATASET", default=argparse.SUPPRESS,
                        help="plan nothing and take over the plans of this data set, so that weights trained by them "
                             "fit (ldseg_train -pretrained_weights)")
    parser.add_argument("-sp", dest="plans_of_name", metavar="PLANS", default=argparse.SUPPRESS,
                        help="name of the plans to take over (default: LDSegPlans)")
    parser.add_argument("--verify_dataset_integrity", action="store_true", help="nnU-Net's own check, too")
    parser.add_argument("--skip_bad_cases", action="store_true",
                        help="go on without the cases that cannot be used; they are named in data_check.json in the "
                             "preprocessed folder")
    parser.add_argument("--clean", action="store_true", help="extract the fingerprint anew; needed after data changed")
    parser.add_argument("--no_pp", dest="no_preprocessing", action="store_true", help="stop before preprocessing")
    parser.add_argument("--explain", action="store_true", help="print each decision, its evidence and the alternatives")
    parser.add_argument("--verbose", action="store_true", help="print more")
    return parser


def _plan_and_preprocess(arguments: argparse.Namespace) -> None:
    require_environment(RAW, PREPROCESSED)
    options = vars(arguments)
    names = [find_dataset(dataset, [RAW]) for dataset in options.pop("datasets")]
    for name in names:
        read_description(folder_of(RAW) / name)  # before the imports, which take seconds
    explain = options.pop("explain")

    from ldseg_auto.planners import api
    from ldseg_auto.planners import explain as explanation

    plans = api.plan_and_preprocess([dataset_id(name) for name in names], **options)
    for name, planned in plans.items():
        for text in [f"{name}\n{explanation.explain(planned)}"] if explain else explanation.warnings(planned):
            print(text)


if __name__ == "__main__":  # python -m, where the console scripts are not on PATH
    raise SystemExit(main())
