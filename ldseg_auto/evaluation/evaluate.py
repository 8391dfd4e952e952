"""Scoring a folder of predictions against references, and two such folders against each other."""

from __future__ import annotations

from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import ldseg_auto
from ldseg_auto.errors import LDSegError
from ldseg_auto.evaluation import statistics, tables
from ldseg_auto.evaluation.pairs import Pair, find_pairs, problem_of, read_pair, require_folders
from ldseg_auto.evaluation.policy import POLICY
from ldseg_auto.evaluation.scores import HIGHER_IS_BETTER, SIZE_UNITS, StructureScores, score_structures
from ldseg_auto.evaluation.setting import Setting, Tolerance, find_setting
from ldseg_auto.evaluation.summary import CaseScores, compare, summarise
from ldseg_auto.evaluation.workers import Workers

DEFAULT_FOLDER = "evaluation"  # below the predictions: nnU-Net's folder commands look at the folder itself alone
EVALUATION, COMPARISON = "evaluation", "comparison"
_FORMAT = 1
_DEFINITIONS = {
    "dice": "2 |P and R| / (|P| + |R|)",
    "nsd": "share of both surfaces that lies within tolerance_mm of the other (MONAI, surfaces between voxels)",
    "hd95_mm": "larger of the two directed 95th percentiles of the distances between surface voxels",
    "assd_mm": "mean of the distances between surface voxels, both directions taken together",
    "difference": "size of the prediction less that of the reference",
    "border": "a structure that the image's border cuts has a surface there",
    "ignored": "voxels that the reference ignores count as background in both, for every metric and size",
    "no geometry": "in images without spacing (PNG and the like) a pixel counts as 1 mm"}
_COMPARED = ("a case counts for a class where the reference or either prediction has it; difference: first less "
             "second; p: two-sided Wilcoxon signed-rank test, zeros after Pratt, 1 where nothing differs, by "
             "scipy.stats.wilcoxon (exact for up to 50 cases without ties or zeros, all permutations for up to 13 "
             "with them, else normal approximation); p_holm: corrected for the number of classes")
_BOOTSTRAP = {"method": "percentile, cases drawn with replacement; of few cases (about ten) too narrow",
              "confidence": statistics.CONFIDENCE, "resamples": statistics.RESAMPLES, "seed": statistics.SEED}


def evaluate_folder(predictions: str | Path, references: str | Path, *, output_folder: str | Path | None = None,
                    dataset: str | None = None, dataset_json: str | None = None, plans_json: str | None = None,
                    tolerance_mm: Tolerance = None, chill: bool = False, num_processes: int | None = None,
                    progress_bar: bool = True, write: bool = True) -> dict[str, Any]:
    """Score every case of a folder.

    Args:
        predictions, references: folders of label maps of the same names.
        output_folder: gets evaluation.json and evaluation.csv; None: PREDICTIONS/evaluation.
        dataset: name or ID; None takes the dataset.json and plans.json that nnU-Net wrote beside predictions.
        dataset_json, plans_json: these files instead.
        tolerance_mm: of the NSD, see `find_setting`.
        chill: leave out cases that only one folder has, instead of refusing.
        num_processes: None takes nnU-Net's number.
        write: whether files are written at all.

    Returns:
        What evaluation.json holds: `mean`, `classes` (see `summarise`), `cases` (each with its files and, under
        `classes`, its scores), `policy`, `definitions`, `tolerance_mm`, `bootstrap`, `versions`, `left_out`.

    Raises:
        LDSegError: folders or files that are missing or do not fit; every unusable case is named.
    """
    require_folders(Path(predictions), Path(references))
    setting = find_setting(Path(predictions), Path(references), dataset, dataset_json, plans_json, tolerance_mm)
    pairs, left_out = find_pairs(Path(predictions), Path(references), setting.file_ending, chill)
    out = _open(output_folder, Path(predictions)) if write else None
    with _workers(num_processes, progress_bar) as workers:
        _require_usable(workers, pairs, setting)
        scored = _score(workers, pairs, setting)
    evaluation = _evaluation(pairs, scored, setting, left_out)
    if out is not None:
        _write_evaluation(evaluation, out)
    return evaluation


def compare_folders(first: str | Path, second: str | Path, references: str | Path, *,
                    output_folder: str | Path | None = None, dataset: str | None = None,
                    dataset_json: str | None = None, plans_json: str | None = None, tolerance_mm: Tolerance = None,
                    chill: bool = False, num_processes: int | None = None, progress_bar: bool = True,
                    write: bool = True) -> tuple[dict[str, Any], dict[str, Any]]:
    """Score two folders of predictions of the same cases and compare them case by case.

    Args:
        first, second: folders of predictions; dataset.json and plans are the first one's.
        output_folder: gets evaluation.json and .csv of the first, comparison.json and .csv; None: FIRST/evaluation.
        dataset, dataset_json, ...: as for `evaluate_folder`.

    Returns:
        The first's evaluation, and what comparison.json holds: see `compare`.

    Raises:
        LDSegError: as `evaluate_folder`; or the folders hold different cases, which are named.
    """
    require_folders(Path(first), Path(references))
    require_folders(Path(second), Path(references))
    if Path(first).resolve() == Path(second).resolve():
        raise LDSegError(f"{first} would be compared with itself.", "Give another folder to --compare.")
    setting = find_setting(Path(first), Path(references), dataset, dataset_json, plans_json, tolerance_mm)
    pairs, left_out = find_pairs(Path(first), Path(references), setting.file_ending, chill)
    others, _ = find_pairs(Path(second), Path(references), setting.file_ending, chill)
    different = sorted({pair.case for pair in pairs} ^ {pair.case for pair in others})
    if different:
        raise LDSegError(f"Not in both {first} and {second} ({len(different)} cases): {', '.join(different)}.",
                         "Compare predictions of the same cases.")
    out = _open(output_folder, Path(first)) if write else None
    with _workers(num_processes, progress_bar) as workers:
        _require_usable(workers, [*pairs, *others], setting)
        scored, scored_others = (_score(workers, some, setting) for some in (pairs, others))
    evaluation = _evaluation(pairs, scored, setting, left_out)
    comparison = {**_described(setting, references), "first": str(first), "second": str(second),
                  "compared": _COMPARED, "higher_is_better": HIGHER_IS_BETTER,
                  **compare(_scores(pairs, scored), _scores(others, scored_others))}
    if out is not None:
        _write_evaluation(evaluation, out)
        tables.write_json(comparison, out / f"{COMPARISON}.json")
        tables.write_csv(tables.comparison_rows(comparison), out / f"{COMPARISON}.csv")
    return evaluation, comparison


def _open(folder: str | Path | None, predictions: Path) -> Path:
    """The output folder, made before the work begins."""
    out = predictions / DEFAULT_FOLDER if folder is None else Path(folder)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LDSegError(f"The output folder {out} cannot be made: {error.strerror}.", "Give another one to -o."
                         ) from error
    return out


def _workers(num_processes: int | None, progress_bar: bool) -> Workers:
    from nnunetv2.configuration import default_num_processes

    return Workers(default_num_processes if num_processes is None else num_processes, progress_bar)


def _require_usable(workers: Workers, pairs: list[Pair], setting: Setting) -> None:
    """Before anything is scored, which may take hours."""
    problems = list(filter(None, workers.map(partial(problem_of, setting=setting), pairs, "checking")))
    if problems:
        raise LDSegError(f"{len(problems)} of {len(pairs)} cases cannot be scored: {'; '.join(problems)}.",
                         "Predictions and references must be label maps of the same images, with the labels of "
                         "dataset.json.")


def _score(workers: Workers, pairs: list[Pair], setting: Setting) -> list[tuple[dict[str, StructureScores], int, str]]:
    import monai.metrics  # noqa: F401, seconds that would be taken for the first case's

    return workers.map(partial(_score_pair, setting=setting), pairs, "scoring")


def _score_pair(pair: Pair, setting: Setting) -> tuple[dict[str, StructureScores], int, str]:
    """Scores of one case, how many voxels were ignored, and the unit of sizes."""
    maps = read_pair(pair, setting)
    scores = score_structures(maps.prediction, maps.reference, setting.groups, maps.spacing_mm, setting.tolerance_mm)
    return scores, maps.ignored_voxels, SIZE_UNITS[maps.reference.ndim]


def _scores(pairs: list[Pair], scored: list[tuple[dict[str, StructureScores], int, str]]) -> CaseScores:
    return {pair.case: scores for pair, (scores, _, _) in zip(pairs, scored, strict=True)}


def _evaluation(pairs: list[Pair], scored: list[tuple[dict[str, StructureScores], int, str]], setting: Setting,
                left_out: dict[str, list[str]]) -> dict[str, Any]:
    units = {unit for _, _, unit in scored}
    if len(units) > 1:
        raise LDSegError("Some of the images are 2D, others 3D.", "Score them apart.")
    unit = units.pop()
    cases = {pair.case: {"prediction_file": str(pair.prediction), "reference_file": str(pair.reference),
                         "ignored_voxels": ignored,
                         "classes": {name: s.as_dict(unit) for name, s in scores.items()}}
             for pair, (scores, ignored, _) in zip(pairs, scored, strict=True)}
    return {**_described(setting, pairs[0].reference.parent), "predictions": str(pairs[0].prediction.parent),
            "left_out": left_out, "size_unit": unit, **summarise(_scores(pairs, scored), unit), "cases": cases}


def _described(setting: Setting, references: str | Path) -> dict[str, Any]:
    """What evaluation.json and comparison.json tell alike."""
    packages = ("nnunetv2", "monai", "scikit-learn", "scipy", "numpy")
    return {"format": _FORMAT, "references": str(references), "dataset_json": str(setting.dataset_json),
            "labels": setting.groups, "ignore_label": setting.ignore_label, "policy": POLICY,
            "definitions": _DEFINITIONS, "tolerance_mm": setting.tolerance_mm,
            "tolerance_from": setting.tolerance_from, "bootstrap": _BOOTSTRAP,
            "versions": {"ldseg_auto": ldseg_auto.__version__, **{name: version(name) for name in packages}}}


def _write_evaluation(evaluation: dict[str, Any], out: Path) -> None:
    tables.write_json(evaluation, out / f"{EVALUATION}.json")
    tables.write_csv(tables.evaluation_rows(evaluation), out / f"{EVALUATION}.csv")
