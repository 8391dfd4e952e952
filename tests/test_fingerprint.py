"""Label statistics of known shapes, and complaints about files that cannot be used."""

import multiprocessing
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

from ldseg_auto.errors import LDSegError
from ldseg_auto.fingerprint import extract_label_fingerprint

DATASET = {"labels": {"background": 0, "organ": 1, "lesion": 2}}


def _write(folder: Path, name: str, labels: np.ndarray, spacing_xyz_mm=(1.0, 1.0, 1.0)) -> dict[str, str]:
    image = sitk.GetImageFromArray(labels)
    image.SetSpacing(spacing_xyz_mm)
    file = folder / f"{name}.nii.gz"
    sitk.WriteImage(image, str(file))
    return {"label": str(file)}


def _cases(folder: Path) -> dict[str, dict[str, str]]:
    first = np.zeros((8, 8, 8), np.uint8)
    first[1:3, 1:3, 1:3] = 1
    first[5:7, 5:7, 5:7] = 1
    first[6, 6, 6] = 2
    second = np.zeros((8, 8, 8), np.uint8)
    second[2:6, 2:6, 2:6] = 1
    return {"b": _write(folder, "b", second), "a": _write(folder, "a", first, (1.0, 2.0, 3.0))}


def test_volumes_presence_and_components(tmp_path):
    found = extract_label_fingerprint(_cases(tmp_path), DATASET, SimpleITKIO, tmp_path / "out" / "labels.json")
    assert found["labels"] == [0, 1, 2] and found["num_cases"] == 2 and found["cases"] == ["a", "b"]
    organ, lesion = found["classes"]["organ"], found["classes"]["lesion"]
    assert organ["share_of_cases"] == 1 and lesion["share_of_cases"] == 0.5
    assert (organ["volume_mm3"]["p0"], organ["volume_mm3"]["p100"]) == (64, 15 * 6)
    assert lesion["volume_mm3"]["p50"] == pytest.approx(6)
    assert (organ["components"]["p0"], organ["components"]["p100"], lesion["components"]["p50"]) == (1, 2, 1)


def test_cases_that_hold_a_class_are_named(tmp_path):
    found = extract_label_fingerprint(_cases(tmp_path), DATASET, SimpleITKIO, tmp_path / "labels.json")
    assert {name: found["classes"][name]["example_cases"] for name in ("organ", "lesion")} == {
        "organ": ["a", "b"], "lesion": ["a"]}


def test_other_labels_are_described_anew(tmp_path):
    cases, file = _cases(tmp_path), tmp_path / "labels.json"
    extract_label_fingerprint(cases, DATASET, SimpleITKIO, file)
    merged = DATASET | {"labels": {"background": 0, "all": [1, 2], "lesion": 2}, "regions_class_order": [1, 2]}
    assert set(extract_label_fingerprint(cases, merged, SimpleITKIO, file)["classes"]) == {"all", "lesion"}


def test_a_structure_larger_than_the_window_has_a_thickness(tmp_path, monkeypatch):
    labels = np.zeros((30, 30, 30), np.uint8)
    labels[3:27, 3:27, 3:27] = 1
    cases = {"a": _write(tmp_path, "a", labels)}
    monkeypatch.setattr("ldseg_auto.fingerprint.MAX_THICKNESS_VOXELS", 4000)
    found = extract_label_fingerprint(cases, DATASET, SimpleITKIO, tmp_path / "labels.json")
    assert found["classes"]["organ"]["thickness_mm"]["p100"] == pytest.approx(24, abs=4)


def test_thickness_and_contact(tmp_path):
    cases = _cases(tmp_path)
    found = extract_label_fingerprint(cases, DATASET, SimpleITKIO, tmp_path / "labels.json")
    organ = found["classes"]["organ"]["thickness_mm"]
    assert 1 <= organ["p0"] <= organ["p50"] <= organ["p100"] <= 4 * 3
    contact = {tuple(c.pop("between")): c for c in found["contact"]}
    assert list(contact) == [("background", "organ"), ("background", "lesion"), ("organ", "lesion")]
    assert contact["organ", "lesion"] == {"share_of_cases": 0.5, "area_mm2": dict.fromkeys(
        ("p0", "p10", "p50", "p90", "p100"), pytest.approx(11.0))}  # three faces of 2, 3 and 6 mm^2
    assert contact["background", "organ"]["share_of_cases"] == 1


def test_thickness_is_measured_on_some_cases_only(tmp_path, monkeypatch):
    cases = _cases(tmp_path)
    found = [extract_label_fingerprint(cases, DATASET, SimpleITKIO, tmp_path / "all.json")["classes"]["organ"]]
    monkeypatch.setattr("ldseg_auto.fingerprint.MAX_THICKNESS_CASES", 1)
    found.append(extract_label_fingerprint(cases, DATASET, SimpleITKIO, tmp_path / "one.json")["classes"]["organ"])
    thickness = [f.pop("thickness_mm") for f in found]
    assert thickness[0] != thickness[1] and thickness[1]
    assert found[0] == found[1]


def test_every_case_weighs_the_same_in_the_thickness(tmp_path):
    thin, thick = np.zeros((40, 40, 9), np.uint8), np.zeros((9, 9, 9), np.uint8)
    thin[1:-1, 1:-1, 4] = 1
    thick[2:7, 2:7, 2:7] = 1
    cases = {name: _write(tmp_path, name, labels) for name, labels in (("thin", thin), ("thick", thick),
                                                                       ("thick2", thick))}
    found = extract_label_fingerprint(cases, DATASET, SimpleITKIO, tmp_path / "labels.json")
    assert found["classes"]["organ"]["thickness_mm"]["p0"] == pytest.approx(1)
    assert found["classes"]["organ"]["thickness_mm"]["p50"] > 2


def test_of_a_large_structure_a_window_is_measured(tmp_path, monkeypatch):
    labels = np.zeros((60, 60, 60), np.uint8)
    labels[:, :, 20:25] = 1
    case = {"a": _write(tmp_path, "a", labels)}
    monkeypatch.setattr("ldseg_auto.fingerprint.MAX_THICKNESS_VOXELS", 1000)
    found = extract_label_fingerprint(case, DATASET, SimpleITKIO, tmp_path / "labels.json")
    assert found["classes"]["organ"]["thickness_mm"]["p50"] == pytest.approx(5, abs=1)


def test_regions_are_unions_and_the_ignore_label_is_no_class(tmp_path):
    dataset = {"labels": {"background": 0, "whole": [1, 2], "lesion": 2, "ignore": 3}, "regions_class_order": [1, 2]}
    cases = _cases(tmp_path)
    labels = np.zeros((8, 8, 8), np.uint8)
    labels[0] = 3
    cases["c"] = _write(tmp_path, "c", labels)
    found = extract_label_fingerprint(cases, dataset, SimpleITKIO, tmp_path / "labels.json")
    assert list(found["classes"]) == ["whole", "lesion"]
    assert ["label 1", "lesion"] in [contact["between"] for contact in found["contact"]]
    assert found["classes"]["whole"]["volume_mm3"]["p100"] == 16 * 6
    assert found["classes"]["whole"]["share_of_cases"] == pytest.approx(2 / 3)


def test_slices_count_as_one_mm_thick(tmp_path):
    case = {"a": _write(tmp_path, "a", np.ones((1, 4, 4), np.uint8), (0.5, 0.5, 999.0))}
    found = extract_label_fingerprint(case, DATASET, SimpleITKIO, tmp_path / "labels.json")
    assert found["classes"]["organ"]["volume_mm3"]["p50"] == 4


def test_result_is_kept_until_cases_change_or_it_is_cleaned(tmp_path):
    file = tmp_path / "labels.json"
    cases = _cases(tmp_path)
    first = extract_label_fingerprint(cases, DATASET, SimpleITKIO, file)
    _write(tmp_path, "b", np.zeros((8, 8, 8), np.uint8))
    assert extract_label_fingerprint(cases, DATASET, SimpleITKIO, file) == first
    assert extract_label_fingerprint(cases, DATASET, SimpleITKIO, file, clean=True) != first
    cases["c"] = _write(tmp_path, "c", np.zeros((8, 8, 8), np.uint8))
    assert extract_label_fingerprint(cases, DATASET, SimpleITKIO, file)["num_cases"] == 3


class _Killed(SimpleITKIO):
    """Dies of the file deadly.nii.gz as a process does for lack of memory."""

    def read_seg(self, seg_fname):
        if Path(seg_fname).name == "deadly.nii.gz":
            os.kill(os.getpid(), signal.SIGKILL)
        return super().read_seg(seg_fname)


@pytest.mark.processes
def test_workers_find_the_same_and_a_dead_one_is_named(tmp_path, monkeypatch):
    cases = _cases(tmp_path)
    alone = extract_label_fingerprint(cases, DATASET, SimpleITKIO, tmp_path / "one.json")
    monkeypatch.setattr("ldseg_auto.evaluation.workers._START_SECONDS", 0)
    fork = multiprocessing.get_context("fork")  # a process that is spawned imports torch first
    monkeypatch.setattr(multiprocessing, "get_context", lambda method: fork)
    assert extract_label_fingerprint(cases, DATASET, SimpleITKIO, tmp_path / "two.json", num_processes=2) == alone
    cases |= {"c": cases["a"], "deadly": _write(tmp_path, "deadly", np.zeros((8, 8, 8), np.uint8))}
    with pytest.raises(LDSegError, match="at (c, )?deadly.*-npfp"):
        extract_label_fingerprint(cases, DATASET, _Killed, tmp_path / "three.json", num_processes=2)
    assert not (tmp_path / "three.json").exists()


def test_all_unusable_files_are_named_at_once(tmp_path):
    cases = _cases(tmp_path)
    cases["high"] = _write(tmp_path, "high", np.full((4, 4, 4), 7, np.uint8))
    cases["broken"] = _write(tmp_path, "broken", np.full((4, 4, 4), 0.5, np.float32))
    cases["gone"] = {"label": str(tmp_path / "gone.nii.gz")}
    damaged = tmp_path / "damaged.nii.gz"
    damaged.write_bytes(b"no image")
    cases["damaged"] = {"label": str(damaged)}
    with pytest.raises(LDSegError) as caught:
        extract_label_fingerprint(cases, DATASET, SimpleITKIO, tmp_path / "labels.json")
    message = str(caught.value)
    assert "4 of 6" in message and "[0, 1, 2]" in message
    assert all(text in message for text in ("high.nii.gz: holds 7", "broken.nii.gz: holds 0.5",
                                            "gone.nii.gz: is missing", "damaged.nii.gz: cannot be read"))
    assert not (tmp_path / "labels.json").exists()
