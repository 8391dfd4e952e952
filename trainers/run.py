"""Training folds, as nnUNetv2_train does it, with the checks that it lacks."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from shutil import rmtree
from typing import Any

from ldseg_auto import run_locks
from ldseg_auto.devices import select_device
from ldseg_auto.errors import LDSegError
from ldseg_auto.folders import (
    DEFAULT_PLANS,
    DEFAULT_TRAINER,
    PREPROCESSED,
    RESULTS,
    Fold,
    choose_configuration,
    find_dataset,
    folder_of,
    load_plans,
    model_folder,
    parse_folds,
    preprocessed_cases,
    preprocessed_folder,
    read_json,
    require_environment,
    require_folds_to_train,
    require_preprocessed,
    resolved,
)
from ldseg_auto.locks import one_at_a_time
from ldseg_auto.sharing.opening import weights_only
from ldseg_auto.trainers.cascade import require_handed_on, withdraw
from ldseg_auto.trainers.cases import require_openable
from ldseg_auto.trainers.consistency import require_checkpoints, require_consistent
from ldseg_auto.trainers.crossval import (
    FINISHED,
    NEW,
    STARTED,
    TRAINED,
    fold_state,
    folds_begun,
    is_merged,
    merge_folds,
    require_same_plans,
    require_same_split,
)
from ldseg_auto.trainers.interruption import stop_in_order
from ldseg_auto.trainers.loggers import require_loggers
from ldseg_auto.trainers.ranks import led_by_first, number_of_ranks, require_devices, require_equal_shares, together
from ldseg_auto.trainers.splits import Split, prepare_splits
from ldseg_auto.trainers.validation import validate
from ldseg_auto.trainers.weight_transfer import Start, read_start, save_list


@led_by_first
@one_at_a_time(run_locks.training)
def train_folds(dataset: str, folds: Sequence[str | int], configuration: str | None = None, *,
                trainer_name: str = DEFAULT_TRAINER, plans_name: str = DEFAULT_PLANS, device: str | None = None,
                pretrained_weights: str | None = None, encoder_weights: str | None = None, num_gpus: int = 1,
                restart: bool = False, continue_training: bool = False, only_validate: bool = False,
                validate_best: bool = False, save_probabilities: bool = False, disable_checkpointing: bool = False,
                epochs: int | None = None, iterations_per_epoch: int | None = None, max_minutes: float | None = None,
                seed: int | None = None, group_by: str | None = None, allow_unused_cases: bool = False) -> list[Path]:
    """Train folds one after the other and validate each on its validation cases; when the last fold of the data set is
    finished, put all validations into one folder.

    A finished fold is left alone and an interrupted one continued. Arguments left at None keep what the plans and the
    trainer say.

    Args:
        dataset: name or ID.
        folds: numbers, or "all".
        device: "cuda", "cpu" or "mps"; None takes the GPU if there is one.
        pretrained_weights: a checkpoint of ours to start from, as far as it fits (`trainers.weight_transfer`).
        encoder_weights: a checkpoint of nnU-Net's own U-Nets, from which the image encoder starts, as far as it fits.
        num_gpus: processes that train each fold together, each on a GPU of its own (or sharing the CPU).
        restart: train anew; earlier checkpoints are kept as previous_checkpoint_*.pth.
        continue_training: a finished fold is trained on if `epochs` asks for more, and validated again.
        only_validate: validate a finished training again.
        max_minutes: wall time of each fold's training, without its validation.
        seed: for a repeatable training; augmentation then runs in this process unless nnUNet_n_proc_DA says otherwise.
        group_by: a CSV file of case,patient: a new split keeps each patient's cases together, one that is there is
            checked.
        allow_unused_cases: the split may leave cases out.

    Returns:
        The folder of each fold.

    Raises:
        LDSegError: anything asked for does not exist or does not fit together.
    """
    work = prepare_training(dataset, folds, configuration, trainer_name=trainer_name, plans_name=plans_name,
                            pretrained_weights=pretrained_weights, encoder_weights=encoder_weights, num_gpus=num_gpus,
                            restart=restart, continue_training=continue_training, only_validate=only_validate,
                            validate_best=validate_best, save_probabilities=save_probabilities,
                            disable_checkpointing=disable_checkpointing, group_by=group_by,
                            allow_unused_cases=allow_unused_cases)
    require_devices(num_gpus, select_device(device).type)
    attributes = _attributes(epochs, iterations_per_epoch, max_minutes, seed, disable_checkpointing)
    how_to_go_on = _how_to_go_on(restart, disable_checkpointing)
    with stop_in_order(how_to_go_on):
        for fold, state in work.states.items():
            if state == FINISHED and not (continue_training or only_validate or validate_best):
                print(f"Fold {fold} is finished and left as it is; --restart trains it anew.")
                continue
            if state == TRAINED and not only_validate:
                print(f"Fold {fold} is trained; its validation{' with probabilities' * save_probabilities} is still to "
                      "do.")
            longer = continue_training and epochs is not None
            is_trained = only_validate or (state in (TRAINED, FINISHED) and not longer)
            if not is_trained and fold != "all":
                withdraw(work.model, _validation_cases(fold, work.splits, work.cases))
            together(partial(_train_fold, work.dataset, work.configuration, fold, trainer_name, plans_name, device,
                             is_new=state == NEW, resume=continue_training or state == STARTED,
                             only_validate=is_trained, start=work.start, validate_best=validate_best,
                             save_probabilities=save_probabilities, attributes=attributes,
                             how_to_go_on=how_to_go_on), num_gpus, device)
        _merge_if_finished(work, allow_unused_cases)
    return [work.model / f"fold_{fold}" for fold in work.states]


@weights_only()  # nnU-Net's torch.load would run what a checkpoint holds
def _train_fold(dataset: str, configuration: str, fold: Fold, trainer_name: str, plans_name: str, device: str | None, *,
                is_new: bool, resume: bool, only_validate: bool, start: Start | None, validate_best: bool,
                save_probabilities: bool, attributes: Mapping[str, Any], how_to_go_on: str) -> None:
    """What each of the processes does that train a fold together, or the only one."""
    from ldseg_auto.collectives import world_size

    with stop_in_order(how_to_go_on):
        torch_device = select_device(device, world_size())
        _make_repeatable(attributes.get("seed"))
        _leave_cores(torch_device.type)
        trainer = _get_trainer(dataset, configuration, fold, trainer_name, plans_name, not is_new, torch_device)
        for name, value in attributes.items():
            setattr(trainer, name, value)
        _train(trainer, resume, only_validate, start)
        validate(trainer, validate_best, save_probabilities)


def _how_to_go_on(restart: bool, disable_checkpointing: bool) -> str:
    """What to do after an interruption."""
    if disable_checkpointing:
        return "Nothing of this training was saved: --disable_checkpointing was given."
    return (f"Run the same command again{' without --restart' * restart}: it goes on after the last finished epoch; a "
            "validation is made again.")


@dataclass(frozen=True)
class Work:
    """What is to be trained, into the folder `model`, the state of each fold that is asked for, and the weights that
    new ones start from."""

    dataset: str
    configuration: str
    model: Path
    cases: Sequence[str]
    splits: Sequence[Split]
    ending: str
    states: Mapping[Fold, str]
    start: Start | None


def prepare_training(dataset: str, folds: Sequence[str | int], configuration: str | None, *, trainer_name: str,
                     plans_name: str, pretrained_weights: str | None, encoder_weights: str | None, num_gpus: int,
                     restart: bool, continue_training: bool, only_validate: bool, validate_best: bool,
                     save_probabilities: bool, disable_checkpointing: bool, group_by: str | None,
                     allow_unused_cases: bool) -> Work:
    """Check everything that `train_folds` (see there) is asked for; make the split where there is none."""
    require_environment(PREPROCESSED, RESULTS)
    require_loggers()
    dataset = find_dataset(dataset, [PREPROCESSED])
    plans = load_plans(dataset, plans_name)
    configuration = choose_configuration(plans, configuration)
    chosen = parse_folds(map(str, folds))
    require_folds_to_train(dataset, chosen)
    require_preprocessed(dataset, plans, configuration)
    model = model_folder(dataset, trainer_name, plans_name, configuration)
    require_consistent(restart, continue_training, only_validate, validate_best, disable_checkpointing,
                       pretrained_weights, encoder_weights)
    start = read_start(pretrained_weights, encoder_weights)
    require_checkpoints(model, chosen, only_validate, validate_best)
    if (number := number_of_ranks(num_gpus)) > 1:
        require_equal_shares(number, resolved(plans, configuration)["batch_size"])

    cases = preprocessed_cases(dataset, plans, configuration)
    description = read_json(folder_of(PREPROCESSED) / dataset / "dataset.json")
    ending = description["file_ending"]
    if len(cases) < description["numTraining"] and not allow_unused_cases:
        raise LDSegError(f"Only {len(cases)} of {description['numTraining']} cases are preprocessed for "
                         f"{configuration}: preprocessing was interrupted.", "Run ldseg_plan_and_preprocess again, or "
                         "train without the others: --allow_unused_cases.")
    require_openable(preprocessed_folder(dataset, plans, configuration), cases)
    splits = prepare_splits(folder_of(PREPROCESSED) / dataset, cases, group_by, allow_unused_cases)
    states = {fold: NEW if restart else fold_state(model / f"fold_{fold}", _validation_cases(fold, splits, cases),
                                                   ending, save_probabilities) for fold in chosen}
    for fold, state in states.items():
        if state != NEW and fold != "all":
            require_same_split(model / f"fold_{fold}", _validation_cases(fold, splits, cases), ending)
    used = {case for fold in chosen for case in (cases if fold == "all" else sum(map(list, splits[int(fold)].values()),
                                                                                 []))}
    require_handed_on(model, dataset, plans, configuration, sorted(used), splits)
    require_same_plans(model, plans, configuration, [fold for fold in folds_begun(model) if states.get(fold) != NEW])
    return Work(dataset, configuration, model, cases, splits, ending, states, start)


def _validation_cases(fold: Fold, splits: Sequence[Split], cases: Sequence[str]) -> Sequence[str]:
    if fold == "all":
        return cases
    if int(fold) >= len(splits):
        raise LDSegError(f"There are {len(cases)} preprocessed cases (or patients in them), too few for folds.",
                         "Train fold all, or write your own split into splits_final.json.")
    return splits[int(fold)]["val"]


@one_at_a_time(lambda work, **_: [run_locks.merging(work.model)])
def _merge_if_finished(work: Work, allow_unused_cases: bool) -> None:
    folds = [work.model / f"fold_{number}" for number in range(len(work.splits))]
    if len(folds) > 1 and all(fold_state(fold, split["val"], work.ending) == FINISHED
                              for fold, split in zip(folds, work.splits, strict=True)):
        if is_merged(work.model, len(folds)):
            return
        merged = merge_folds(work.model, work.splits, work.cases, work.ending, allow_unused_cases=allow_unused_cases)
        print(f"Validations of all folds: {merged}")


def _train(trainer: Any, continue_training: bool, only_validate: bool, start: Start | None) -> None:
    from nnunetv2.run.run_training import maybe_load_checkpoint

    from ldseg_auto.collectives import rank, wait_for_all

    resumed = continue_training and not only_validate
    maybe_load_checkpoint(trainer, resumed, only_validate)
    if only_validate:
        return
    loaded = start.load_into(trainer) if start is not None and not resumed else None
    wait_for_all()  # what is set aside, another process may still read
    if rank() == 0:
        _set_aside(Path(trainer.output_folder), with_checkpoints=not resumed)
        if not resumed:
            save_list(Path(trainer.output_folder), loaded)
    trainer.run_training()


def _set_aside(fold: Path, with_checkpoints: bool) -> None:
    """Keep what an earlier training left under other names: its validation would be taken for that of the new one, and
    its checkpoints, where training begins anew, would be continued."""
    for path in fold.glob("checkpoint_*.pth") if with_checkpoints else ():
        path.replace(path.with_name(f"previous_{path.name}"))
    validation, previous = fold / "validation", fold / "previous_validation"
    if validation.exists():
        rmtree(previous, ignore_errors=True)
        validation.rename(previous)


def _get_trainer(dataset: str, configuration: str, fold: Fold, trainer_name: str, plans_name: str, goes_on: bool,
                 device: Any) -> Any:
    """nnU-Net's.

    Args:
        goes_on: with what is there of the fold, be it only its validation; otherwise nnU-Net removes its W&B run.
    """
    from nnunetv2.run.run_training import get_trainer_from_args

    from ldseg_auto import nnunet_ext

    nnunet_ext.register()
    try:
        return get_trainer_from_args(dataset, configuration, fold, trainer_name, plans_name, goes_on, device)
    except RuntimeError as error:
        if "Could not find requested nnunet trainer" not in str(error):
            raise
        raise LDSegError(f"There is no trainer named {trainer_name}.",
                         f"Use -tr {DEFAULT_TRAINER}, or put your trainer's folder into nnUNet_extTrainer.") from error


def _attributes(epochs: int | None, iterations_per_epoch: int | None, max_minutes: float | None, seed: int | None,
                disable_checkpointing: bool) -> dict[str, Any]:
    """What is set on the trainer; what the user left open is left to the trainer."""
    from ldseg_auto.trainers.budget import VALIDATION_SHARE

    attributes: dict[str, Any] = {"disable_checkpointing": disable_checkpointing}
    if iterations_per_epoch is not None:
        attributes["num_val_iterations_per_epoch"] = max(1, iterations_per_epoch // VALIDATION_SHARE)
    optional = {"num_epochs": epochs, "num_iterations_per_epoch": iterations_per_epoch, "max_minutes": max_minutes,
                "seed": seed}
    return attributes | {name: value for name, value in optional.items() if value is not None}


def _make_repeatable(seed: int | None) -> None:
    """With a seed: fixed algorithms and augmentation in this process (nnU-Net does not seed its workers)."""
    import torch

    torch.backends.cudnn.benchmark = seed is None
    torch.backends.cudnn.deterministic = seed is not None
    if seed is not None:
        os.environ.setdefault("nnUNet_n_proc_DA", "0")


def _leave_cores(device_type: str) -> None:
    """On a CPU the network needs the cores that nnU-Net would give to twelve augmentation workers."""
    if device_type == "cpu":
        os.environ.setdefault("nnUNet_n_proc_DA", "1")
