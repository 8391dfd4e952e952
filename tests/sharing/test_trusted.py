"""The tables against what an attacker would write, and against the nnU-Net that is installed."""

import importlib
import inspect
import json
import pkgutil
import pydoc
import sys
from pathlib import Path

import pytest

from ldseg_auto.errors import LDSegError
from ldseg_auto.sharing import trusted
from ldseg_auto.sharing.trusted import require_trainer_name, require_trusted

DESCRIPTION = {"labels": {"background": 0}, "file_ending": ".nii.gz"}
ARCHITECTURE = ("configurations", "3d_fullres", "architecture")
ARGUMENTS = (*ARCHITECTURE, "arch_kwargs")


def _with(content: dict, path: tuple, value) -> dict:
    content = json.loads(json.dumps(content))
    inside = content
    for key in path[:-1]:
        inside = inside[key]
    inside[path[-1]] = value
    return content


@pytest.mark.parametrize("path, value", [
    (("image_reader_writer",), "os"), (("image_reader_writer",), None), (("image_reader_writer",), ["SimpleITKIO"]),
    (("label_manager",), "np"),
    (("configurations", "3d_fullres", "preprocessor_name"), "shutil"),
    (("configurations", "3d_lowres", "preprocessor_name"), "multiprocessing"),
    (("configurations", "3d_fullres", "normalization_schemes"), ["CTNormalization", "abstractmethod"]),
    (("configurations", "3d_fullres", "resampling_fn_data"), "rearrange"),
    (("configurations", "3d_fullres", "resampling_fn_seg"), "torch"),
    (("configurations", "3d_fullres", "resampling_fn_probabilities"), "os.system"),
    (("configurations", "3d_fullres", "UNet_class_name"), "os.system"),
    ((*ARCHITECTURE, "network_class_name"), "os.system"),
    ((*ARCHITECTURE, "network_class_name"), "subprocess.Popen"),
    ((*ARCHITECTURE, "network_class_name"), "ldseg_auto.networks.ldseg_net.torch.hub.load"),
    ((*ARCHITECTURE, "network_class_name"), "ldseg_auto.networks.ldseg_net.LDSegNet "),
    ((*ARGUMENTS, "conv_op"), "os.system"), ((*ARGUMENTS, "norm_op"), "torch.nn.modules.module.torch.load"),
    ((*ARGUMENTS, "nonlin"), "builtins.eval"), ((*ARGUMENTS, "dropout_op"), {"a": 1}),
    ((*ARGUMENTS, "block"), "antigravity"),
    ((*ARCHITECTURE, "_kw_requires_import"), ["network_class"]),
])
def test_code_that_is_not_in_the_tables_is_refused(path, value, tools):
    plans = _with(tools["plans"](), path, value)
    plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["network_class"] = "os.system"
    with pytest.raises(LDSegError, match=f"{'network_class' if path[-1] == '_kw_requires_import' else path[-1]} .*"
                                         "not among what a shared model may name"):
        require_trusted(plans, DESCRIPTION)


@pytest.mark.parametrize("path, value", [
    (ARGUMENTS[:1], []), (ARGUMENTS[:2], None), (ARCHITECTURE, "x"), (ARGUMENTS, None),
    ((*ARCHITECTURE, "_kw_requires_import"), "conv_op"),
    (("configurations", "3d_fullres", "normalization_schemes"), {"0": "CTNormalization"})])
def test_other_shapes_are_refused(path, value, tools):
    with pytest.raises(LDSegError, match="not a (table|list)"):
        require_trusted(_with(tools["plans"](), path, value), DESCRIPTION)


@pytest.mark.parametrize("path, value", [
    (("dataset_name",), "../.."), (("plans_name",), "a/b"), (("plans_name",), 3),
    (("configurations", "3d_fullres", "data_identifier"), "/tmp"),
    (("configurations", "3d_fullres", "previous_stage"), ".."),
    (("configurations", "3d_fullres", "next_stage"), ["3d_fullres", "..\\.."])])
def test_names_that_leave_their_folder_are_refused(path, value, tools):
    with pytest.raises(LDSegError, match="leaves its folder"):
        require_trusted(_with(tools["plans"](), path, value), DESCRIPTION)


@pytest.mark.parametrize("change, part", [
    ({"file_ending": "/../../x"}, "file_ending"), ({"file_ending": None}, "file_ending"),
    ({"overwrite_image_reader_writer": "os"}, "overwrite_image_reader_writer")])
def test_descriptions_are_checked_too(change, part, tools):
    with pytest.raises(LDSegError, match=part):
        require_trusted(tools["plans"](), DESCRIPTION | change)
    with pytest.raises(LDSegError, match="not a table"):
        require_trusted(tools["plans"](), [])


@pytest.mark.parametrize("parents, part", [
    ({"3d_lowres": "3d_lowres"}, "'3d_lowres'"), ({"3d_lowres": "nowhere"}, "'nowhere'"), ({"3d_lowres": 3}, "3"),
    ({"3d_lowres": "3d_fullres", "3d_fullres": "3d_lowres"}, "inherits from it in turn")])
def test_configurations_inherit_from_what_is_there_and_come_to_an_end(parents, part, tools):
    plans = tools["plans"]()
    for name, parent in parents.items():
        plans["configurations"][name]["inherits_from"] = parent
    with pytest.raises(LDSegError, match=f"inherits from .*{part}|{part}"):
        require_trusted(plans, DESCRIPTION)


@pytest.mark.parametrize("planner", ["os.system", "", 3, None, "a/b", "Planner\n"])
def test_planners_have_names_of_classes(planner, tools):
    with pytest.raises(LDSegError, match="experiment_planner_used .* not the name of a class"):
        require_trusted(tools["plans"]() | {"experiment_planner_used": planner}, DESCRIPTION)
    require_trusted(tools["plans"]() | {"experiment_planner_used": "My_Planner2"}, DESCRIPTION)


@pytest.fixture
def own_package(tmp_path, monkeypatch):
    """A package of the user's own, which imports others."""
    package = tmp_path / "own_package"
    (package / "deep").mkdir(parents=True)
    (package / "__init__.py").write_text("import os\n")
    (package / "deep" / "__init__.py").write_text("")
    (package / "deep" / "nets.py").write_text(
        "import os\nfrom os import system\nfrom torch import nn\nclass Net(nn.Module):\n    pass\n"
        "def build(**_):\n    pass\nclass Other:\n    pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "own_package"
    for name in [name for name in sys.modules if name.startswith("own_package")]:
        del sys.modules[name]


NET = "own_package.deep.nets.Net"


@pytest.mark.parametrize("listed", ["own_package", "own_package.deep", "own_package.deep.nets", NET,
                                    "other:own_package", "other, own_package", "other own_package.deep"])
def test_networks_and_layers_of_ones_own(listed, own_package, tools, monkeypatch):
    for key in ((*ARCHITECTURE, "network_class_name"), (*ARGUMENTS, "nonlin")):
        plans = _with(tools["plans"](), key, NET)
        monkeypatch.delenv(trusted.OWN_MODULES, raising=False)
        with pytest.raises(LDSegError, match="export LDSEG_TRUSTED_MODULES=own_package.deep.nets$"):
            require_trusted(plans, DESCRIPTION)
        monkeypatch.setenv(trusted.OWN_MODULES, listed)
        require_trusted(plans, DESCRIPTION)


@pytest.mark.parametrize("name", ["own_package.os.system", "own_package.deep.nets.os.system",
                                  "own_package.deep.nets.system", "own_package.deep.nets.build",
                                  "own_package.deep.nets.Other", "own_package.deep.nets.Nothing", "own_package_2.Net",
                                  "own_package.deep", "own_package", "os.system", "own_package.."])
def test_what_ones_own_module_has_imported_is_not_ones_own(name, own_package, tools, monkeypatch):
    monkeypatch.setenv(trusted.OWN_MODULES, "own_package")
    with pytest.raises(LDSegError, match="not among what|cannot be imported"):
        require_trusted(_with(tools["plans"](), (*ARCHITECTURE, "network_class_name"), name), DESCRIPTION)


def test_nothing_is_imported_that_is_not_listed(own_package, tools, monkeypatch):
    monkeypatch.setenv(trusted.OWN_MODULES, "own_package.other")
    with pytest.raises(LDSegError):
        require_trusted(_with(tools["plans"](), (*ARCHITECTURE, "network_class_name"), NET), DESCRIPTION)
    assert own_package not in sys.modules


def test_readers_and_functions_of_ones_own_are_listed_by_their_names(tools, monkeypatch):
    """nnU-Net finds them in its own packages, where their author has put them."""
    for key in (("image_reader_writer",), ("configurations", "3d_fullres", "resampling_fn_data")):
        plans = _with(tools["plans"](), key, "MyOwn")
        with pytest.raises(LDSegError, match="export LDSEG_TRUSTED_MODULES=MyOwn"):
            require_trusted(plans, DESCRIPTION)
        with monkeypatch.context() as patch:
            patch.setenv(trusted.OWN_MODULES, "MyOwn")
            require_trusted(plans, DESCRIPTION)


@pytest.mark.parametrize("name", ["os.system", "../x", "", None, 3, "A__B", "Trainer\n", "1st"])
def test_trainers_have_names_of_classes(name):
    with pytest.raises(LDSegError, match="not the name of a trainer"):
        require_trainer_name(name)


def test_what_our_planners_write_is_trusted(small_world):
    files = [*small_world["preprocessed"].glob("LDSegPlans.json"), small_world["model"] / "plans.json"]
    assert len(files) == 2
    for file in files:
        require_trusted(json.loads(file.read_text()), json.loads((file.parent / "dataset.json").read_text()))


def test_nnunets_residual_encoder_and_older_plans_are_trusted(tools):
    plans = _with(tools["plans"](), (*ARCHITECTURE, "network_class_name"),
                  "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet")
    plans["configurations"]["old"] = {"UNet_class_name": "PlainConvUNet", "next_stage": "3d_lowres"}
    require_trusted(plans, DESCRIPTION | {"overwrite_image_reader_writer": "NibabelIOWithReorient"})


def test_errors_show_no_control_characters(tools):
    with pytest.raises(LDSegError) as error:
        require_trusted(_with(tools["plans"](), ("image_reader_writer",), "\x1b[2J" + 1000 * "x"), DESCRIPTION)
    assert "\x1b" not in str(error.value) and len(str(error.value)) < 500


# --- the tables against the installed packages


def _classes_below(package: str, parent: type | None = None) -> dict[str, type]:
    root = importlib.import_module(package)
    found = {}
    for info in pkgutil.walk_packages(root.__path__, f"{package}."):
        module = importlib.import_module(info.name)
        for name, member in inspect.getmembers(module, inspect.isclass):
            if member.__module__ == info.name and (parent is None or issubclass(member, parent)):
                found[name] = member
    return found


def test_readers_preprocessors_normalizations_and_label_managers_are_all_that_nnunet_has():
    from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
    from nnunetv2.preprocessing.normalization.default_normalization_schemes import ImageNormalization

    assert set(_classes_below("nnunetv2.imageio", BaseReaderWriter)) - {"BaseReaderWriter"} == trusted.READERS
    assert (set(_classes_below("nnunetv2.preprocessing.normalization", ImageNormalization)) - {"ImageNormalization"}
            == trusted.NORMALIZATIONS)
    assert set(_classes_below("nnunetv2.preprocessing.preprocessors")) == trusted.PREPROCESSORS
    assert set(_classes_below("nnunetv2.utilities.label_handling")) == trusted.LABEL_MANAGERS


def test_resampling_functions_take_what_nnunet_passes():
    from nnunetv2.preprocessing.resampling.utils import recursive_find_resampling_fn_by_name

    for name in trusted.RESAMPLING:
        function = recursive_find_resampling_fn_by_name(name)
        assert inspect.isfunction(function) and function.__module__.startswith("nnunetv2.preprocessing.resampling")
        assert {"data", "new_shape"} <= set(inspect.signature(function).parameters)


@pytest.mark.parametrize("name", sorted(trusted.LAYERS | trusted.NETWORKS))
def test_layers_and_networks_are_modules(name):
    from torch import nn

    assert issubclass(pydoc.locate(name), nn.Module)


def test_no_other_name_in_the_plans_is_imported():
    """Where nnU-Net begins to import by another key, this fails."""
    import nnunetv2

    root = Path(nnunetv2.__path__[0])
    searching = {str(file.relative_to(root)) for file in root.rglob("*.py")
                 if any(call in file.read_text() for call in ("recursive_find_", "locate(", "import_module("))}
    assert {file for file in searching if not file.startswith(("training/nnUNetTrainer/variants", "tests"))} == {
        "experiment_planning/plan_and_preprocess_api.py", "imageio/reader_writer_registry.py",
        "inference/predict_from_raw_data.py", "preprocessing/preprocessors/default_preprocessor.py",
        "preprocessing/resampling/utils.py", "run/run_training.py", "utilities/find_class_by_name.py",
        "utilities/find_objects.py", "utilities/get_network_from_plans.py",
        "utilities/label_handling/label_handling.py", "utilities/plans_handling/plans_handler.py"}
