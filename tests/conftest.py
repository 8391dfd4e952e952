"""Tests share nothing with the user's nnU-Net folders and start no more processes than they need."""

import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from multiprocessing.pool import ThreadPool
from pathlib import Path

import pytest
from filelock import FileLock

# Read by nnU-Net when it is imported: before any test module imports it.
os.environ["nnUNet_n_proc_DA"] = "0"
os.environ["nnUNet_def_n_proc"] = "1"
os.environ["nnUNet_compile"] = "false"
os.environ["MPLBACKEND"] = "Agg"
os.environ["LDSEG_CPU_PRECISION"] = "float32"  # the same on every machine; tests/test_precision.py has the other
if "PYTEST_XDIST_WORKER" in os.environ:  # the workers share the cores
    os.environ["OMP_NUM_THREADS"] = "1"
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell starts what it runs in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)
for _variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results", "nnUNet_extTrainer"):
    os.environ.pop(_variable, None)


@pytest.fixture
def nnunet_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """nnU-Net's three folders, empty, with the environment variables that name them."""
    folders = {}
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        folders[variable] = tmp_path / variable
        folders[variable].mkdir()
        monkeypatch.setenv(variable, str(folders[variable]))
    return folders


class _ThreadContext:
    """multiprocessing's context, with threads in its pools."""

    Pool = ThreadPool

    def __init__(self, method: str | None = None):
        self._context = _GET_CONTEXT(method)

    def __getattr__(self, name):
        return getattr(self._context, name)


_GET_CONTEXT = multiprocessing.get_context


@pytest.fixture(autouse=True)
def threads_for_processes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """nnU-Net's pools work in threads, because a spawned process imports torch first, which takes longer than the
    work; not so in tests marked `processes` and on real data."""
    if not any(request.node.get_closest_marker(name) for name in ("processes", "slow")):
        _use_threads(monkeypatch)


@pytest.fixture(scope="session")
def use_threads() -> Callable[[pytest.MonkeyPatch], None]:
    """The same for fixtures that several tests share."""
    return _use_threads


def _use_threads(patch: pytest.MonkeyPatch) -> None:
    from ldseg_auto.checks import apart

    patch.setattr(multiprocessing, "get_context", _ThreadContext)
    patch.setattr("ldseg_auto.inference.workers.start_executor", lambda threads: ThreadPoolExecutor(1))
    run_apart = apart.run_apart
    patch.setattr(apart, "run_apart", lambda work, items, processes, *rest: run_apart(work, items, 0, *rest))


@pytest.fixture(scope="session")
def small_world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A data set of ten tiny volumes, planned and preprocessed (3d_fullres and 2d) and fold 0 of each trained for one
    short epoch by the real commands' functions: the folders, `images` of two unseen cases and the model folders.

    Built once; every worker of pytest-xdist gets a copy of its own. Its trained folds stay as they are:
    `own_small_world` is for tests that train or choose there.
    """
    base = tmp_path_factory.getbasetemp()
    built = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "small_world"
    with FileLock(f"{built}.lock"):
        if not (built / "complete").exists():
            shutil.rmtree(built, ignore_errors=True)
            build_small_world(built)
            (built / "complete").touch()
    root = Path(shutil.copytree(built, tmp_path_factory.mktemp("world") / "small_world"))
    folders = {variable: root / variable for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
    models = folders["nnUNet_results"] / SMALL_DATASET
    world = {**folders, "images": folders["nnUNet_raw"] / SMALL_DATASET / "imagesTs",
             "preprocessed": folders["nnUNet_preprocessed"] / SMALL_DATASET,
             "model": models / "LDSegTrainer__LDSegPlans__3d_fullres",
             "model_2d": models / "LDSegTrainer__LDSegPlans__2d"}
    _AS_BUILT[world["model"]] = _found_by_predict(world)
    return world


def build_small_world(root: Path) -> None:
    """nnU-Net's three folders below `root`, filled."""
    with pytest.MonkeyPatch.context() as patch:
        for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
            (root / variable).mkdir(parents=True)
            patch.setenv(variable, str(root / variable))
        _use_threads(patch)
        write_small_dataset(root / "nnUNet_raw" / SMALL_DATASET)
        from ldseg_auto.planners.api import plan_and_preprocess
        from ldseg_auto.trainers.ldseg_trainer import LDSegTrainer
        from ldseg_auto.trainers.run import train_folds

        plan_and_preprocess([7], num_processes=1, num_processes_fingerprint=1)
        for configuration in ("3d_fullres", "2d"):
            patch.setattr(LDSegTrainer, "validation_mirroring", configuration == "3d_fullres")  # 2d is quicker without
            train_folds("7", ["0"], configuration, device="cpu", epochs=1, iterations_per_epoch=2, seed=0,
                        save_probabilities=True)


@pytest.fixture
def in_small_world(small_world: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """`small_world`, with nnU-Net's environment variables set to it."""
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(variable, str(small_world[variable]))
    return small_world


@pytest.fixture(autouse=True)
def small_world_stays_as_it_was_built(request: pytest.FixtureRequest) -> Iterator[None]:
    """Tests that change it change what others predict; which ones depends on the order of the tests."""
    uses_it = "small_world" in request.fixturenames
    world = request.getfixturevalue("small_world") if uses_it else None
    yield
    if world is not None:
        assert _found_by_predict(world) == _AS_BUILT[world["model"]], "take own_small_world, or copy it"


_AS_BUILT: dict[Path, dict[Path, bytes]] = {}


def _found_by_predict(world: dict[str, Path]) -> dict[Path, bytes]:
    """What `ldseg_predict` takes without being told: plans, trained folds, and choices of how they are predicted."""
    models = world["model"], world["model_2d"]
    found = [*(path for model in models for path in model.glob("fold_*/checkpoint_final.pth")),
             *(model / "plans.json" for model in models), *world["nnUNet_results"].rglob("ldseg_inference.json")]
    return {path: sha256(path.read_bytes()).digest() for path in found}


@pytest.fixture(scope="session")
def copy_small_world(small_world: dict[str, Path]) -> Callable[[Path], dict[str, Path]]:
    """A function that copies `small_world` to a folder that does not exist yet."""
    def copy(folder: Path) -> dict[str, Path]:
        root = small_world["nnUNet_raw"].parent
        shutil.copytree(root, folder)
        return {name: folder / path.relative_to(root) for name, path in small_world.items()}
    return copy


@pytest.fixture
def own_small_world(copy_small_world: Callable[[Path], dict[str, Path]], tmp_path: Path,
                    monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """A copy of `small_world` for one test, with nnU-Net's environment variables set to it."""
    world = copy_small_world(tmp_path / "world")
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(variable, str(world[variable]))
    return world


SMALL_DATASET = "Dataset007_Small"
# z, y, x; the last is smaller than any patch in one axis, the one before needs several tiles
_SHAPES = [(14, 18, 16)] * 10 + [(14, 40, 16), (5, 18, 30)]


def write_small_dataset(folder: Path) -> None:
    """Ten training cases, and below imagesTs two oblique, flipped and anisotropic ones."""
    import json

    import numpy as np
    import SimpleITK as sitk

    rng = np.random.default_rng(0)
    for name in ("imagesTr", "labelsTr", "imagesTs"):
        (folder / name).mkdir(parents=True)
    for index, shape in enumerate(_SHAPES):
        z, y, x = np.indices(shape)
        centre = [n / 2 + rng.uniform(-1, 1) for n in shape]
        radius = sum(((a - c) / (n / 3)) ** 2 for a, c, n in zip((z, y, x), centre, shape, strict=True))
        labels = (radius < 1).astype(np.uint8) + (radius < 0.3)
        picture = sitk.GetImageFromArray((labels * 100 + rng.normal(0, 20, shape)).astype(np.float32))
        truth = sitk.GetImageFromArray(labels)
        held_out = index >= 10
        for image in (picture, truth):
            image.SetSpacing((1.0, 1.0, 1.0) if not held_out else (1.1, 0.9, 1.6))
            if held_out:
                image.SetOrigin((-31.5, 17.25, 88.0))
                c, s = np.cos(0.3), np.sin(0.3)  # oblique, and the last axis flipped
                image.SetDirection((c, -s, 0, s, c, 0, 0, 0, -1))
        case = f"case_{index:02d}"
        sitk.WriteImage(picture, str(folder / ("imagesTs" if held_out else "imagesTr") / f"{case}_0000.nii.gz"))
        if not held_out:
            sitk.WriteImage(truth, str(folder / "labelsTr" / f"{case}.nii.gz"))
    (folder / "dataset.json").write_text(json.dumps({
        "channel_names": {"0": "MRI"}, "labels": {"background": 0, "shell": 1, "core": 2}, "numTraining": 10,
        "file_ending": ".nii.gz"}))
