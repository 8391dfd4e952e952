"""One job a fold, on Slurm or in the background of this machine, through submitit."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping, Sequence
from inspect import signature
from pathlib import Path
from time import sleep
from typing import Any

from ldseg_auto.devices import limit_processes
from ldseg_auto.errors import LDSegError
from ldseg_auto.folders import Fold
from ldseg_auto.trainers.interruption import stop_in_order
from ldseg_auto.trainers.run import prepare_training, train_folds

_DAY_MINUTES = 24 * 60
_RESTARTS = 100  # of one job, at its time limit
_POLL_SECONDS = 1
_LOCAL_OPTIONS = {"timeout_min", "gpus_per_node", "visible_gpus", "setup"}  # submitit ignores others
_LISTS = {"setup", "slurm_setup"}  # of shell commands
DEFAULTS: dict[str, dict[str, Any]] = {
    "slurm": {"timeout_min": _DAY_MINUTES, "cpus_per_task": 8, "gpus_per_node": 1},
    "local": {"timeout_min": 365 * _DAY_MINUTES}}


class FoldJob:
    """The training of one fold; submitit calls it on the machine that gets the job.

    Args:
        dataset: name or ID.
        fold: number or "all".
        options: of `ldseg_auto.trainers.run.train_folds`.
    """

    def __init__(self, dataset: str, fold: Fold, options: Mapping[str, Any]):
        self.dataset, self.fold, self.options = dataset, fold, dict(options)

    def __call__(self) -> str:
        limit_processes()
        return str(train_folds(self.dataset, [self.fold], **self.options)[0])

    def checkpoint(self) -> Any:
        """What goes on after the time limit: the same fold, from its last checkpoint even if it began anew."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(FoldJob(self.dataset, self.fold, {**self.options, "restart": False}))


def train_on_cluster(cluster: str, dataset: str, folds: Sequence[str | int], cluster_options: Sequence[str] = (),
                     **options: Any) -> None:
    """Check what is asked for, then train each fold in a job of its own; waits for the jobs of "local" only.

    Args:
        cluster: "slurm" or "local".
        dataset, folds, options: as in `ldseg_auto.trainers.run.train_folds`.
        cluster_options: NAME=VALUE, parameters of submitit's executor.

    Raises:
        LDSegError: anything asked for does not exist or does not fit together, a job is not accepted, or one of the
            local jobs failed.
    """
    parameters = parse_options(cluster_options)
    checked = signature(prepare_training).parameters
    defaults = {name: p.default for name, p in signature(train_folds).parameters.items() if name in checked}
    work = prepare_training(**{**defaults, **{name: value for name, value in options.items() if name in checked},
                               "dataset": dataset, "folds": folds})
    folder = work.model / "jobs"
    if cluster == "local":
        with stop_in_order("Run the same command again (without --restart): finished folds stay, the others go on."):
            run_locally(folder, work.dataset, list(work.states), options, parameters)
        return
    for fold, job in zip(work.states, submit_folds(cluster, folder, work.dataset, list(work.states), options,
                                                   parameters), strict=True):
        print(f"Fold {fold}: job {job.job_id}, log {job.paths.stdout}")


def submit_folds(cluster: str, folder: Path, dataset: str, folds: Sequence[Fold], options: Mapping[str, Any],
                 cluster_options: Mapping[str, Any]) -> list[Any]:
    """Submit one job for each fold.

    Args:
        cluster: "slurm" or "local".
        folder: gets the jobs' logs, ID_0_log.out and ID_0_log.err.
        dataset, folds, options: see FoldJob.
        cluster_options: parameters of submitit's executor, such as timeout_min, slurm_partition, mem_gb; they replace
            DEFAULTS.

    Returns:
        submitit's jobs, in the order of the folds.

    Raises:
        LDSegError: submitit is not installed, there is no Slurm here, or it refuses an option.
    """
    submitit = _submitit()
    missing = [name for name in ("sbatch", "srun") if shutil.which(name) is None] if cluster == "slurm" else []
    if missing:
        raise LDSegError(f"There is no {missing[0]} on this machine.",
                         "Run the command where jobs are submitted to Slurm, or use --cluster local.")
    gpus = 0 if options.get("device") == "cpu" else options.get("num_gpus", 1)
    parameters = DEFAULTS[cluster] | ({"gpus_per_node": gpus} if cluster == "slurm" or not gpus else {}) | dict(
        cluster_options)
    unknown = sorted(set(parameters) - _LOCAL_OPTIONS) if cluster == "local" else []
    if unknown:
        raise LDSegError(f"Local jobs have no option {', '.join(unknown)}.",
                         f"--cluster_options of local jobs are: {', '.join(sorted(_LOCAL_OPTIONS))}.")
    jobs = []
    for fold in folds:
        # AutoExecutor would not let local jobs choose their GPUs
        executor = (submitit.LocalExecutor(folder) if cluster == "local" else
                    submitit.AutoExecutor(folder, cluster, slurm_max_num_timeout=_RESTARTS))
        try:
            executor.update_parameters(**{"name": f"ldseg_{dataset[7:10]}_fold_{fold}"} if cluster == "slurm" else {},
                                       **parameters)
            jobs.append(executor.submit(FoldJob(dataset, fold, options)))
        except (NameError, ValueError, TypeError, submitit.core.utils.FailedJobError) as error:
            raise LDSegError(f"The job of fold {fold} was not accepted: {error}",
                             "Correct --cluster_options (names as in submitit's documentation).") from error
    return jobs


def run_locally(folder: Path, dataset: str, folds: Sequence[Fold], options: Mapping[str, Any],
                cluster_options: Mapping[str, Any]) -> None:
    """Run the folds in the background, as many at a time as there are GPUs for, each with its own (`num_gpus` of them),
    or one at a time.

    Raises:
        LDSegError: a fold failed; the others were run all the same.
    """
    gpus = _gpus() if options.get("device") != "cpu" else []
    each = options.get("num_gpus", 1)
    waiting, failed = list(folds), []
    running: dict[Fold, tuple[Any, list[int]]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < max(1, len(gpus) // each):
                fold = waiting.pop(0)
                free = sorted(set(gpus) - {gpu for _, used in running.values() for gpu in used})[:each]
                gpu_options = {"gpus_per_node": len(free), "visible_gpus": free}
                job, = submit_folds("local", folder, dataset, [fold], options, {**gpu_options, **cluster_options})
                print(f"Fold {fold}: job {job.job_id}, log {job.paths.stdout}", flush=True)
                running[fold] = (job, free)
            sleep(_POLL_SECONDS)
            for fold, (job, _) in [item for item in running.items() if item[1][0].done()]:
                if (failure := job.exception()) is not None:
                    failed.append(f"fold {fold} ({job.paths.stderr}): {_last_line(str(failure))}")
                del running[fold]
    finally:
        for job, _ in running.values():  # interrupted: nothing goes on behind the user's back
            job.cancel()
    if failed:
        raise LDSegError(f"Training failed for {'; '.join(failed)}.",
                         "Correct the cause and run the same command again: finished folds stay, the others go on.")


def parse_options(pairs: Sequence[str]) -> dict[str, Any]:
    """["timeout_min=60", "slurm_partition=gpu"] -> {"timeout_min": 60, "slurm_partition": "gpu"}.

    Numbers and true and false are what they look like, but not where that would change them, such as the account 007;
    a line of setup is a list of one.

    Raises:
        LDSegError: one has no equals sign.
    """
    wrong = [pair for pair in pairs if "=" not in pair]
    if wrong:
        raise LDSegError(f"{wrong[0]!r} is no option of a cluster.", "Write NAME=VALUE, such as timeout_min=1440.")
    return {name: [value] if name in _LISTS else _value(value)
            for name, value in (pair.split("=", 1) for pair in pairs)}


def _value(text: str) -> int | float | bool | str:
    if text in ("true", "false"):
        return text == "true"
    if re.fullmatch(r"-?(0|[1-9]\d*)", text):
        return int(text)
    return float(text) if re.fullmatch(r"-?(0|[1-9]\d*)\.\d+", text) else text


def _gpus() -> list[int]:
    """Indices as CUDA_VISIBLE_DEVICES has them, or all."""
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    chosen = [int(gpu) for gpu in visible.split(",") if gpu.strip().isdecimal()]
    return chosen or list(range(torch.cuda.device_count()))


def _last_line(text: str) -> str:
    """Of a job's traceback, the line that says what happened."""
    trace = text.split("----------------------")
    lines = [line for line in (trace[1] if len(trace) > 1 else text).splitlines() if line.strip()]
    return lines[-1].strip() if lines else "no message"


def _submitit() -> Any:
    try:
        import submitit
    except ImportError as error:
        raise LDSegError("--cluster needs submitit, which is not installed.",
                         "Run: pip install 'ldseg_auto[cluster]'") from error
    return submitit
