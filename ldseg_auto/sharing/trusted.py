"""Which code the plans and the description of a stranger's model may name.

nnU-Net imports what they name: the network's class and its layers by `pydoc.locate` (any module that is installed),
readers, resampling, normalisation, preprocessor, label manager and trainer by a search of its own packages, which also
finds whatever those modules have imported. Here each name is compared with a table, and nothing is imported but what
the user has listed in the environment variable LDSEG_TRUSTED_MODULES, for networks and other code of one's own.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Mapping
from importlib import import_module
from typing import Any

from ldseg_auto.errors import LDSegError
from ldseg_auto.sharing.manifest import is_plain_name, short

OWN_MODULES = "LDSEG_TRUSTED_MODULES"  # modules or single names, separated by commas, colons or spaces
READERS = frozenset({"SimpleITKIO", "SimpleITKIOWithReorient", "NibabelIO", "NibabelIOWithReorient",
                     "NaturalImage2DIO", "Tiff3DIO"})
LABEL_MANAGERS = frozenset({"LabelManager"})
PREPROCESSORS = frozenset({"DefaultPreprocessor"})
NORMALIZATIONS = frozenset({"ZScoreNormalization", "CTNormalization", "NoNormalization", "RescaleTo01Normalization",
                            "RGBTo01Normalization"})
RESAMPLING = frozenset({"resample_data_or_seg_to_shape", "resample_torch_fornnunet", "resample_torch_simple",
                        "no_resampling_hack"})
OLD_NETWORKS = frozenset({"PlainConvUNet", "ResidualEncoderUNet"})  # UNet_class_name, before nnU-Net 2.4
_UNETS = "dynamic_network_architectures.architectures.unet"
NETWORKS = frozenset({"ldseg_auto.networks.ldseg_net.LDSegNet", f"{_UNETS}.PlainConvUNet",
                      f"{_UNETS}.ResidualEncoderUNet", f"{_UNETS}.ResidualUNet"})
_LAYERS = {
    "conv": ("Conv1d", "Conv2d", "Conv3d"),
    "instancenorm": ("InstanceNorm1d", "InstanceNorm2d", "InstanceNorm3d"),
    "batchnorm": ("BatchNorm1d", "BatchNorm2d", "BatchNorm3d"),
    "normalization": ("GroupNorm", "LayerNorm"),
    "dropout": ("Dropout", "Dropout1d", "Dropout2d", "Dropout3d"),
    "activation": ("CELU", "ELU", "GELU", "Hardswish", "LeakyReLU", "Mish", "PReLU", "ReLU", "ReLU6", "SELU", "SiLU",
                   "Softplus"),
}
_BLOCKS = "dynamic_network_architectures.building_blocks.residual"
LAYERS = frozenset({f"torch.nn.modules.{module}.{name}" for module, names in _LAYERS.items() for name in names}
                   | {f"torch.nn.{name}" for names in _LAYERS.values() for name in names}
                   | {f"{_BLOCKS}.BasicBlockD", f"{_BLOCKS}.BottleneckD"})
# of arch_kwargs; imported even where _kw_requires_import leaves them out (nnUNetTrainerBN locates conv_op itself)
_LAYER_KEYS = ("conv_op", "norm_op", "dropout_op", "nonlin", "block")
_FUNCTIONS = {"preprocessor_name": PREPROCESSORS, "resampling_fn_data": RESAMPLING, "resampling_fn_seg": RESAMPLING,
              "resampling_fn_probabilities": RESAMPLING, "UNet_class_name": OLD_NETWORKS}
# of the plans and of a configuration: nnU-Net makes folders of them
_FOLDERS = ("dataset_name", "plans_name", "data_identifier", "previous_stage", "next_stage")
_ENDING = re.compile(r"(\.[A-Za-z0-9]+)+")
_CLASS = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

Named = Iterator[tuple[str, Any, Collection[str]]]  # where it stands, what stands there, what may stand there


def require_trusted(plans: Any, description: Any) -> None:
    """Raise unless all code that plans.json and dataset.json name is nnU-Net's, torch's layers, ours or listed as the
    user's own.

    Args:
        plans, description: what the two files hold.

    Raises:
        LDSegError: with the first name that is not in the tables above.
    """
    require_trusted_plans(plans)
    require_trusted_description(description)


def require_trusted_plans(plans: Any) -> None:
    """The same for plans.json alone."""
    _require_known(_named_in_plans(plans))
    configurations = plans["configurations"]
    for where, value in _folders_in(plans):
        if not is_plain_name(value):
            raise LDSegError(f"{where} is {short(value)}, which leaves its folder.", "Do not use this model.")
    planner = plans.get("experiment_planner_used", "ExperimentPlanner")
    if not isinstance(planner, str) or not _CLASS.fullmatch(planner):
        raise LDSegError(f"experiment_planner_used in plans.json is {short(planner)}, not the name of a class.",
                         "Do not use this model.")
    for name in configurations:
        _require_parents(configurations, name)


def require_trusted_description(description: Any) -> None:
    """The same for dataset.json alone."""
    _require_known(_named_in_description(description))
    ending = description.get("file_ending", ".nii.gz")  # whether it is there, is asked where it is needed
    if not isinstance(ending, str) or not _ENDING.fullmatch(ending):
        raise LDSegError(f"file_ending in dataset.json is {short(ending)}.", "Endings look like .nii.gz or .png.")


def require_trusted_reader(name: Any, where: str) -> None:
    """Raise unless it is the name of one of nnU-Net's readers, or listed as the user's own."""
    _require_known(iter([(where, name, READERS)]))


def require_trainer_name(name: Any) -> None:
    """Raise unless it can be a class's name; whether nnU-Net knows such a trainer is another question."""
    if not isinstance(name, str) or not _CLASS.fullmatch(name) or "__" in name:
        raise LDSegError(f"{short(name)} is not the name of a trainer.", "Do not use this model.")


def _require_known(names: Named) -> None:
    for where, value, allowed in names:
        if not isinstance(value, str) or (value not in allowed and not _is_own(value, allowed)):
            raise LDSegError(f"{where} is {short(value)}, which is not among what a shared model may name: "
                             f"{_listed(allowed)}.", "Such code can do anything: do not use this model. If "
                             f"it is your own, export {OWN_MODULES}={_suggested(value)}")


def _is_own(name: str, allowed: Collection[str]) -> bool:
    """Whether the user has listed it, or the module that defines it.

    A listed module vouches for its own networks and layers, not for what it has imported: my_networks.os.system is not
    in my_networks.
    """
    listed = [each for each in re.split(r"[,:;\s]+", os.environ.get(OWN_MODULES, "")) if each]
    if not any("." in each for each in allowed):  # found by nnU-Net's search of its own packages
        return name in listed
    module, _, attribute = name.rpartition(".")
    if not module or not any(name == each or name.startswith(f"{each}.") for each in listed):
        return False
    from torch import nn

    try:
        found = getattr(import_module(module), attribute, None)
    except ImportError as error:
        raise LDSegError(f"{name} of {OWN_MODULES} cannot be imported ({error}).",
                         "Install its package, or put its folder into PYTHONPATH.") from error
    return isinstance(found, type) and issubclass(found, nn.Module)


def _suggested(name: Any) -> str:
    text = name if isinstance(name, str) else ""
    return text.rpartition(".")[0] or text if re.fullmatch(r"\w+(\.\w+)*", text, re.ASCII) else "my_package"


def _require_parents(configurations: Mapping[str, Any], name: str) -> None:
    """Raise where a configuration inherits from one that is not there, or from itself."""
    seen = [name]
    while (parent := configurations[seen[-1]].get("inherits_from")) is not None:
        if not isinstance(parent, str) or parent not in configurations or parent in seen:
            raise LDSegError(f"The configuration {short(name)} in plans.json inherits from {short(parent)}, which is "
                             "not there or inherits from it in turn.", "The model is damaged: get it again.")
        seen.append(parent)


def _named_in_plans(plans: Any) -> Named:
    plans = _mapping(plans, "plans.json")
    yield "image_reader_writer in plans.json", plans.get("image_reader_writer"), READERS
    if "label_manager" in plans:
        yield "label_manager in plans.json", plans["label_manager"], LABEL_MANAGERS
    for name, configuration in _mapping(plans.get("configurations"), "configurations in plans.json").items():
        where = f"of {short(name)} in plans.json"
        yield from _named_in_configuration(_mapping(configuration, f"The content {where}"), where)


def _named_in_configuration(configuration: dict[str, Any], where: str) -> Named:
    for key, allowed in _FUNCTIONS.items():
        if key in configuration:
            yield f"{key} {where}", configuration[key], allowed
    for scheme in _list(configuration.get("normalization_schemes", []), f"normalization_schemes {where}"):
        yield f"normalization_schemes {where}", scheme, NORMALIZATIONS
    if "architecture" not in configuration:
        return
    architecture = _mapping(configuration["architecture"], f"architecture {where}")
    yield f"network_class_name {where}", architecture.get("network_class_name"), NETWORKS
    arguments = _mapping(architecture.get("arch_kwargs"), f"arch_kwargs {where}")
    imported = _list(architecture.get("_kw_requires_import"), f"_kw_requires_import {where}")
    for key in dict.fromkeys((*_LAYER_KEYS, *map(str, imported))):
        if arguments.get(key) is not None:
            yield f"{key} {where}", arguments[key], LAYERS


def _named_in_description(description: Any) -> Named:
    description = _mapping(description, "dataset.json")
    # read by nnU-Net's evaluation and ensembling
    yield ("overwrite_image_reader_writer in dataset.json", description.get("overwrite_image_reader_writer", "None"),
           READERS | {"None"})


def _folders_in(plans: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for part in (plans, *plans["configurations"].values()):
        for key in _FOLDERS:
            value = part.get(key)
            for name in value if isinstance(value, list) else [value] * (value is not None):
                yield f"{key} in plans.json", name


def _mapping(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise LDSegError(f"{where} is {short(value)}, not a table.", "The model is damaged: get it again.")
    return value


def _list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise LDSegError(f"{where} is {short(value)}, not a list.", "The model is damaged: get it again.")
    return value


def _listed(allowed: Collection[str]) -> str:
    names = sorted(allowed)
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
