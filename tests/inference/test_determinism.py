"""The same seed gives the same bytes; how the work is cut up changes no probability by more than rounding."""

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from ldseg_auto.inference.predictor import LDSegPredictor
from ldseg_auto.inference.run import predict_folder

CASES = ("case_10", "case_11")


@pytest.fixture
def predict(in_small_world, tmp_path):
    def predict(name, **options):
        options = {"samples": 2, "steps": 2, "eta": 1.0, "mirroring": False, "num_processes_preprocessing": 0,
                   "num_processes_export": 0, "save_probabilities": True, "uncertainty": True, "progress_bar": False,
                   "device": "cpu"} | options
        predict_folder(str(options.pop("images", in_small_world["images"])), str(tmp_path / name), "7", **options)
        return tmp_path / name

    return predict


@pytest.fixture
def expected(predict):
    return predict("expected")


def require_same(a: Path, b: Path, cases=CASES) -> None:
    """Within rounding; segmentations only differ where the two largest probabilities are as close."""
    for case in cases:
        p, q = (np.load(folder / f"{case}.npz")["probabilities"] for folder in (a, b))
        assert np.abs(p - q).max() < 1e-5
        s, t = (sitk.GetArrayFromImage(sitk.ReadImage(str(folder / f"{case}.nii.gz"))) for folder in (a, b))
        first, second = np.sort(p, 0)[:-3:-1]
        assert (first - second)[s != t].max(initial=0) < 1e-5


def test_same_seed_same_bytes(predict, expected):
    again = predict("again")
    files = {path.relative_to(expected) for path in expected.rglob("*") if path.suffix in (".gz", ".npz")}
    files |= {path.relative_to(expected) for path in (expected / "uncertainty").iterdir()}
    assert len(files) == 2 * (2 + 6 + 1)
    for file in files:
        assert (again / file).read_bytes() == (expected / file).read_bytes(), file
    other = predict("other", seed=1)
    assert (other / "case_10.npz").read_bytes() != (expected / "case_10.npz").read_bytes()


@pytest.mark.parametrize("images", [1, 16])
def test_images_per_batch(predict, expected, monkeypatch, images):
    monkeypatch.setattr(LDSegPredictor, "_images_per_batch", lambda self: images)
    require_same(predict("other"), expected)


@pytest.mark.parametrize("workers", [
    (3, 2), pytest.param((2, 1), marks=[pytest.mark.processes, pytest.mark.slow], id="real processes")])
def test_workers(predict, expected, workers):
    require_same(predict("other", num_processes_preprocessing=workers[0], num_processes_export=workers[1]), expected)


def test_parts_and_other_cases(predict, expected, in_small_world, tmp_path):
    for part, case in enumerate(CASES):
        out = predict(f"part_{part}", num_parts=2, part_id=part)
        assert [path.name for path in out.glob("*.nii.gz")] == [f"{case}.nii.gz"]
        require_same(out, expected, [case])
    (tmp_path / "alone").mkdir()
    source = in_small_world["images"] / "case_11_0000.nii.gz"
    (tmp_path / "alone" / "renamed_0000.nii.gz").write_bytes(source.read_bytes())
    out = predict("renamed", images=tmp_path / "alone")
    for ending in (".nii.gz", ".npz"):
        (out / f"renamed{ending}").rename(out / f"case_11{ending}")
    require_same(out, expected, ["case_11"])


def test_order_of_tiles(predict, expected, monkeypatch):
    from ldseg_auto.inference import tiling
    in_order = tiling.tiles

    def reversed_in_plane(*arguments):
        return reversed(list(in_order(*arguments)))

    monkeypatch.setattr(tiling, "tiles", reversed_in_plane)
    require_same(predict("other"), expected)
