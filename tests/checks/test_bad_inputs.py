"""Bad inputs of every kind: each is named with its file, its cause and a cure, and none ends in a traceback."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
from data_sets import NAME, RGB, SHAPE, DataSet, read, write
from skimage import io

from ldseg_auto.checks.prediction import check_inputs, find_inputs
from ldseg_auto.checks.problem import ERROR, PLANS_KEY, WARNING, Problem
from ldseg_auto.checks.training import check_training
from ldseg_auto.cli import plan_and_preprocess, predict
from ldseg_auto.errors import LDSegError

PLAN, PREDICT = "plan", "predict"
READERS = {".nii.gz": "SimpleITKIO", ".png": "NaturalImage2DIO", ".nrrd": "SimpleITKIO", ".mha": "SimpleITKIO",
           ".tif": "Tiff3DIO", ".nii": "NibabelIO", ".gipl": "SimpleITKIO"}


@dataclass
class Bad:
    """How a data set is damaged, and what must be said of it."""

    command: str
    damage: Callable[[DataSet], object]
    cause: str
    file: str = ""
    severity: str = ERROR
    made: dict = field(default_factory=dict)  # arguments of DataSet


def _plan(damage, cause, file="", severity=ERROR, **made) -> Bad:
    return Bad(PLAN, damage, cause, file, severity, made)


def _predict(damage, cause, file="", severity=ERROR, **made) -> Bad:
    return Bad(PREDICT, damage, cause, file, severity, made)


def _changed(data: DataSet, **changes) -> None:
    data.describe(**changes)


def _without_key(data: DataSet, key: str) -> None:
    data.description.pop(key)
    data.describe()


def _version_1(data: DataSet) -> None:
    data.describe(modality=data.description.pop("channel_names"))


def _listed_but_missing(data: DataSet) -> None:
    data.describe(dataset={"c0": {"images": ["imagesTr/c0_0000.nii.gz", "imagesTr/gone.nii.gz"],
                                  "label": "labelsTr/c0.nii.gz"}}, numTraining=1)


def _move(source, target) -> None:
    source.rename(target)


def _cut(file, bytes_lost: int = 30) -> None:
    file.write_bytes(file.read_bytes()[:-bytes_lost])


def _flip_byte(file) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 255
    file.write_bytes(content)


def _rewrite(file, change: Callable[[np.ndarray], np.ndarray] = lambda voxels: voxels, **header) -> None:
    write(file, change(read(file)), **header)


def _with_value(file, value: float) -> None:
    voxels = read(file).astype(np.float32)
    voxels[0, 0, 0] = value
    write(file, voxels)


def _pixdim(file, step: float) -> None:
    """No library writes it, other software does."""
    image = nibabel.load(file)
    image.header.set_sform(None, 0)
    image.header.set_qform(None, 0)
    voxels = np.asarray(image.dataobj)
    header = image.header.copy()
    header["pixdim"][2] = step
    content = bytearray(header.binaryblock + b"\0\0\0\0" + voxels.astype(header.get_data_dtype()).tobytes("F"))
    content[344:348] = b"n+1\0"
    opener = nibabel.openers.ImageOpener(str(file), "wb")
    opener.write(bytes(content))
    opener.close()


def _four_d(file) -> None:
    nibabel.save(nibabel.Nifti1Image(np.random.default_rng(0).normal(size=(8, 7, 6, 5)).astype(np.float32),
                                     np.eye(4)), file)


def _compress(file) -> None:
    sitk.WriteImage(sitk.ReadImage(str(file)), str(file), True)


def _pages(file, share_kept: float) -> None:
    with tifffile.TiffWriter(file) as pages:
        for page in np.random.default_rng(0).normal(size=(SHAPE[0], 60, 80)).astype(np.float32):
            pages.write(page, contiguous=False)
    _cut(file, int(file.stat().st_size * (1 - share_kept)))


def _vector(file) -> None:
    voxels = np.random.default_rng(0).normal(size=(*SHAPE, 3)).astype(np.float32)
    sitk.WriteImage(sitk.GetImageFromArray(voxels, isVector=True), str(file))


def _link_to_nothing(file) -> None:
    file.unlink()
    file.symlink_to("nowhere")


def _folder_instead(file) -> None:
    file.unlink()
    file.mkdir()


def _twin(data: DataSet, other_label: bool) -> None:
    for channel in range(2):
        shutil.copy(data.image("c0", channel), data.image("c1", channel))
    shutil.copy(data.label("c0"), data.label("c1"))
    if other_label:
        _rewrite(data.label("c1"), lambda voxels: np.roll(voxels, 1, axis=1))


def _copy_images(data: DataSet, source: str, target: str) -> None:
    for channel in range(2):
        shutil.copy(data.image(source, channel, "imagesTs"), data.image(target, channel, "imagesTs"))


def _no_foreground(*files) -> None:
    for file in files:
        _rewrite(file, np.zeros_like)


def _blank(*files) -> None:
    for file in files:
        _rewrite(file, lambda voxels: np.full_like(voxels, 7))


def _turn(data: DataSet, case: str = "c1", part: str = "imagesTr") -> None:
    for file in (*(data.image(case, channel, part) for channel in range(2)), data.label(case)):
        if file.exists():
            _rewrite(file, direction=(-1, 0, 0, 0, -1, 0, 0, 0, 1))


def _swap(data: DataSet, case: str, part: str) -> None:
    first, second = data.image(case, 0, part), data.image(case, 1, part)
    first.rename(first.with_name("x"))
    second.rename(first)
    first.with_name("x").rename(second)


def _picture(file, *channels) -> None:
    shape = (SHAPE[1], SHAPE[2], *channels)
    io.imsave(file, np.random.default_rng(0).integers(0, 255, shape, np.uint8), check_contrast=False)


PICTURES = {"ending": ".png", "channels": RGB, "flat": True}
DIRECTION = (-1, 0, 0, 0, 1, 0, 0, 0, 1)
BAD = {
    # dataset.json
    "not JSON": _plan(lambda d: (d.folder / "dataset.json").write_text("{"), "is not valid JSON", "dataset.json"),
    "a list": _plan(lambda d: (d.folder / "dataset.json").write_text("[]"), "is no JSON object", "dataset.json"),
    "no dataset.json": _plan(lambda d: (d.folder / "dataset.json").unlink(), "lacks dataset.json"),
    "no labels folder": _plan(lambda d: shutil.rmtree(d.folder / "labelsTr"), "lacks labelsTr"),
    "no channel names": _plan(lambda d: _without_key(d, "channel_names"), "lacks channel_names", "dataset.json"),
    "version 1": _plan(_version_1, "nnU-Net v1 called it modality", "dataset.json"),
    "no file ending": _plan(lambda d: _without_key(d, "file_ending"), "lacks file_ending", "dataset.json"),
    "two keys missing": _plan(lambda d: (_without_key(d, "labels"), _without_key(d, "numTraining")),
                              "lacks labels, numTraining", "dataset.json"),
    "channels as a list": _plan(lambda d: _changed(d, channel_names=["T1", "T2"]), "has channel_names that are not"),
    "channels from 1 on": _plan(lambda d: _changed(d, channel_names={"1": "T1", "2": "T2"}), "1, 2, not 0, 1"),
    "labels reversed": _plan(lambda d: _changed(d, labels={"0": "background", "1": "organ"}), "the wrong way round"),
    "labels with a gap": _plan(lambda d: _changed(d, labels={"background": 0, "organ": 255}), "[0, 255]"),
    "labels as text": _plan(lambda d: _changed(d, labels={"background": "0", "organ": "1"}), "no whole numbers"),
    "no background": _plan(lambda d: _changed(d, labels={"thing": 0, "organ": 1}), 'no label "background": 0'),
    "regions without order": _plan(lambda d: _changed(d, labels={"background": 0, "all": [1, 2], "core": 2}),
                                   "regions_class_order"),
    "count too high": _plan(lambda d: _changed(d, numTraining=30), "says numTraining 30, but there are 3 cases",
                            "dataset.json"),
    "count as text": _plan(lambda d: _changed(d, numTraining="3"), "has numTraining '3'"),
    "ending without dot": _plan(lambda d: _changed(d, file_ending="nii.gz"), "without its dot: .nii.gz"),
    "ending that none reads": _plan(lambda d: (_move(d.image(), d.folder / "imagesTr" / "c9_0000.jpg"),
                                               _changed(d, file_ending=".jpg")), "nnU-Net reads no .jpg"),
    "ending of other files": _plan(lambda d: _changed(d, file_ending=".mha"), "no image that ends in .mha"),
    "unknown reader": _plan(lambda d: _changed(d, overwrite_image_reader_writer="MyIO"), "no reader 'MyIO'"),
    "malformed list of files": _plan(lambda d: _changed(d, dataset={"c0": {"images": "c0.nii.gz"}}),
                                     "has a dataset that is not like"),
    "listed file is missing": _plan(_listed_but_missing, "is missing", "imagesTr/gone.nii.gz"),
    # names
    "channel missing": _plan(lambda d: d.image("c1", 1).unlink(), "has 1 channels instead of 2 (T1, T2)", "c1_0000"),
    "first channel missing": _plan(lambda d: d.image("c1", 0).unlink(), "are numbered 0001", "c1_0001"),
    "channel too many": _plan(lambda d: shutil.copy(d.image("c1", 1), d.image("c1", 2)), "has 3 channels", "c1_0000"),
    "gap in the numbers": _plan(lambda d: _move(d.image("c1", 1), d.image("c1", 3)), "are numbered 0000, 0003"),
    "no channel number": _plan(lambda d: shutil.copy(d.image(), d.folder / "imagesTr" / "extra.nii.gz"),
                               "has no channel number", "extra.nii.gz"),
    "other ending": _plan(lambda d: write(d.folder / "imagesTr" / "c9_0000.mha", np.ones(SHAPE)),
                          "does not end in .nii.gz", "c9_0000.mha"),
    "macOS": _plan(lambda d: (d.folder / "imagesTr" / "._c1_0000.nii.gz").write_bytes(b"x"), "macOS puts such files",
                   "._c1_0000.nii.gz"),
    "label missing": _plan(lambda d: d.label().unlink(), "is missing", "labelsTr/c1.nii.gz"),
    "label in another format": _plan(lambda d: _move(d.label(), d.folder / "labelsTr" / "c1.mha"),
                                     "is missing (there is c1.mha)", "labelsTr/c1.nii.gz"),
    "label without image": _plan(lambda d: shutil.copy(d.label(), d.label("c9")), "has no image", "c9.nii.gz"),
    # files
    "empty file": _plan(lambda d: d.image().write_bytes(b""), "is empty", "c1_0000"),
    "image cut off": _plan(lambda d: _cut(d.image()), "is cut off or damaged", "c1_0000"),
    "label cut off": _plan(lambda d: _cut(d.label()), "is cut off or damaged", "labelsTr/c1"),
    "a byte changed": _plan(lambda d: _flip_byte(d.image("c1", 1)), "is cut off or damaged", "c1_0001"),
    "first image damaged": _plan(lambda d: _cut(d.image("c0")), "is cut off or damaged", "c0_0000"),
    "no image": _plan(lambda d: d.image().write_bytes(b"no image"), "is cut off or damaged", "c1_0000"),
    "a text file": _plan(lambda d: d.image("c0").write_text("no image"), "cannot be read by nnU-Net's", "c0_0000.nrrd",
                         ending=".nrrd"),
    "a folder": _plan(lambda d: _folder_instead(d.image()), "is no file", "c1_0000"),
    "link to nothing": _plan(lambda d: _link_to_nothing(d.image()), "is a link to nothing", "c1_0000"),
    "NRRD cut off": _plan(lambda d: _cut(d.image()), "c1_0000.nrrd cannot be read", ending=".nrrd"),
    "MHA cut off": _plan(lambda d: _cut(d.image(), 200), "c1_0000.mha cannot be read", ending=".mha"),
    "NIfTI cut off": _plan(lambda d: _cut(d.image()), "c1_0000.nii cannot be read", ending=".nii"),
    "TIFF cut off": _plan(lambda d: _cut(d.image(), 1300), "c1_0000.tif cannot be read", ending=".tif"),
    "TIFF without its last pages": _plan(lambda d: _pages(d.image(), 0.8), "is cut off or damaged", "c1_0000.tif",
                                         ending=".tif"),
    "compressed MHA, a byte changed": _plan(lambda d: (_compress(d.image()), _flip_byte(d.image())),
                                            "is cut off or damaged", "c1_0000.mha", ending=".mha"),
    "GIPL cut off": _plan(lambda d: _cut(d.image()), "is cut off", "c1_0000.gipl", ending=".gipl"),
    "TIFF of one page": _plan(lambda d: write(d.image(), np.ones((1, 7, 8), np.uint8)), "c1_0000.tif cannot be read",
                              ending=".tif"),
    "4D": _plan(lambda d: _four_d(d.image()), "is 4D (8 x 7 x 6 x 5)", "c1_0000"),
    "vectors": _plan(lambda d: _vector(d.image()), "holds 3 values a voxel", "c1_0000.mha", ending=".mha"),
    # geometry
    "label of another size": _plan(lambda d: _rewrite(d.label(), lambda v: v[:-1]), "has 8 x 7 x 5 voxels", "labelsTr"),
    "channel of another size": _plan(lambda d: _rewrite(d.image("c1", 1), lambda v: v[:, 1:]), "has 8 x 6 x 6",
                                     "c1_0001"),
    "label of another spacing": _plan(lambda d: _rewrite(d.label(), spacing=(1, 1.2, 2)), "differs in spacing",
                                      "labelsTr/c1"),
    "channel of another spacing": _plan(lambda d: _rewrite(d.image("c1", 1), spacing=(1, 1.001, 2)),
                                        "differs in spacing", "c1_0001"),
    "label at another place": _plan(lambda d: _rewrite(d.label(), origin=(0, 5, 0)), "differs in origin",
                                    "labelsTr/c1"),
    "label flipped": _plan(lambda d: _rewrite(d.label(), direction=DIRECTION), "differs in direction", "labelsTr/c1"),
    "label nearly at its place": _plan(lambda d: _rewrite(d.label(), origin=(0, 0.1, 0)), "differs in origin",
                                       "labelsTr/c1", WARNING),
    "spacing 0": _plan(lambda d: _pixdim(d.image(), 0), "has the spacing 1 x 0 x 2", "c1_0000"),
    "spacing below 0": _plan(lambda d: _pixdim(d.image(), -1), "has the spacing 1 x -1 x 2", "c1_0000"),
    "TIFF with spacing 0": _plan(lambda d: (d.folder / "imagesTr" / "c1.json").write_text('{"spacing": [1, 0, 1]}'),
                                 "has the spacing 1 x 0 x 1", "c1_0000.tif", ending=".tif", channels={"0": "CT"}),
    "several orientations": _plan(_turn, "different orientations", severity=WARNING),
    # voxels
    "NaN": _plan(lambda d: _with_value(d.image(), np.nan), "holds NaN or infinite", "c1_0000", ending=".nrrd"),
    "infinite": _plan(lambda d: _with_value(d.image("c1", 1), -np.inf), "holds NaN or infinite", "c1_0001",
                      ending=".mha"),
    "NaN in NIfTI": _plan(lambda d: _with_value(d.image(), np.nan), "takes them for 0", "c1_0000", WARNING),
    "blank volume": _plan(lambda d: _blank(d.image("c1", 0), d.image("c1", 1)), "holds one value only", "c1_0000"),
    "blank picture": _plan(lambda d: io.imsave(d.image(), np.zeros((7, 8, 3), np.uint8), check_contrast=False),
                           "holds one value only", "c1_0000", WARNING, **PICTURES),
    "blank channel": _plan(lambda d: _blank(d.image("c1", 1)), "of one value only", "c1_0001", WARNING),
    "channels swapped": _plan(lambda d: _swap(d, "c1", "imagesTr"), "may be in a wrong order", "c1_0000", WARNING,
                              cases=7),
    "CT and PET swapped": _plan(lambda d: _changed(d, channel_names={"0": "PET", "1": "CT"}), "holds no CT in channel",
                                severity=WARNING, channels={"0": "CT", "1": "PET"}),
    # labels
    "label with fractions": _plan(lambda d: _with_value(d.label(), 0.5), "0.5, which are no whole numbers", "labelsTr"),
    "label with NaN": _plan(lambda d: _with_value(d.label(), np.nan), "holds NaN", "labelsTr"),
    "NRRD label with NaN": _plan(lambda d: _with_value(d.label(), np.nan), "holds nan", "labelsTr", ending=".nrrd"),
    "label not named": _plan(lambda d: _with_value(d.label(), 7), "holds 7, which dataset.json does not name",
                             "labelsTr/c1"),
    "label below 0": _plan(lambda d: _with_value(d.label(), -1), "holds -1", "labelsTr/c1"),
    "label without foreground": _plan(lambda d: _no_foreground(d.label()), "holds background only", "labelsTr/c1",
                                      WARNING),
    "no label with foreground": _plan(lambda d: _no_foreground(*map(d.label, ("c0", "c1", "c2"))),
                                      "all 3 cases of Dataset004_Small hold background only"),
    "the image as label": _plan(lambda d: shutil.copy(d.image(), d.label()), "which are no whole numbers", "labelsTr"),
    # duplicates
    "a case twice": _plan(lambda d: _twin(d, False), "holds the same voxels as", "c1_0000"),
    "an image with two labels": _plan(lambda d: _twin(d, True), "the labels differ", "c1_0000", WARNING),
    # pictures
    "RGBA": _plan(lambda d: _picture(d.image(), 4), "has an alpha channel: 4 channels instead of 3", "c1_0000.png",
                  **PICTURES),
    "grey and alpha": _plan(lambda d: _picture(d.image(), 2), "c1_0000.png cannot be read", **PICTURES),
    "a grey picture": _plan(lambda d: _picture(d.image()), "has 1 channels instead of 3", "c1_0000.png", **PICTURES),
    "picture cut off": _plan(lambda d: _cut(d.image(), 40), "c1_0000.png cannot be read", **PICTURES),
    "first picture damaged": _plan(lambda d: d.image("c0").write_bytes(b"PNG"), "c0_0000.png cannot be read",
                                   **PICTURES),
    "a coloured label": _plan(lambda d: _picture(d.label(), 3), "is a coloured picture", "labelsTr/c1.png", **PICTURES),
    "a label of 255": _plan(lambda d: write(d.label(), np.full((1, 7, 8), 255, np.uint8)), "holds 255", "labelsTr",
                            **PICTURES),
    # prediction
    "predict: nowhere": _predict(lambda d: shutil.rmtree(d.folder / "imagesTs"), "does not exist"),
    "predict: empty folder": _predict(lambda d: [f.unlink() for f in (d.folder / "imagesTs").iterdir()],
                                      "holds no .nii.gz files"),
    "predict: channel missing": _predict(lambda d: d.image("t1", 1, "imagesTs").unlink(), "has 1 channels", "t1_0000"),
    "predict: channel too many": _predict(lambda d: shutil.copy(d.image("t1", 1, "imagesTs"),
                                                                d.image("t1", 2, "imagesTs")), "has 3 channels"),
    "predict: numbers": _predict(lambda d: _move(d.image("t1", 1, "imagesTs"), d.image("t1", 3, "imagesTs")),
                                 "are numbered 0000, 0003", "t1_0000"),
    "predict: no number": _predict(lambda d: shutil.copy(d.image("t1", 1, "imagesTs"), d.folder / "imagesTs" /
                                                         "t9.nii.gz"), "has no channel number", "t9.nii.gz"),
    "predict: other ending": _predict(lambda d: write(d.folder / "imagesTs" / "t9_0000.nrrd", np.ones(SHAPE)),
                                      "does not end in .nii.gz", "t9_0000.nrrd"),
    "predict: cut off": _predict(lambda d: _cut(d.image("t1", 1, "imagesTs")), "is cut off", "t1_0001"),
    "predict: no image": _predict(lambda d: d.image("t1", 1, "imagesTs").write_text("no"), "cannot be read by",
                                  "t1_0001.nrrd", ending=".nrrd"),
    "predict: 4D": _predict(lambda d: _four_d(d.image("t1", 0, "imagesTs")), "is 4D", "t1_0000"),
    "predict: sizes": _predict(lambda d: _rewrite(d.image("t1", 1, "imagesTs"), lambda v: v[1:]), "has 8 x 7 x 5",
                               "t1_0001"),
    "predict: spacing": _predict(lambda d: _pixdim(d.image("t1", 0, "imagesTs"), 0), "has the spacing", "t1_0000"),
    "predict: NaN": _predict(lambda d: _with_value(d.image("t1", 1, "imagesTs"), np.nan), "holds NaN", "t1_0001",
                              ending=".nrrd"),
    "predict: NaN in NIfTI": _predict(lambda d: _with_value(d.image("t1", 1, "imagesTs"), np.nan), "takes them for 0",
                                      "t1_0001", WARNING),
    "predict: blank": _predict(lambda d: _blank(*(d.image("t1", c, "imagesTs") for c in range(2))), "holds one value",
                               "t1_0000"),
    "predict: RGBA": _predict(lambda d: _picture(d.image("t1", 0, "imagesTs"), 4), "has an alpha channel", "t1_0000",
                              **PICTURES),
    "predict: orientation": _predict(lambda d: _turn(d, "t1", "imagesTs"), "has the orientation", "t1_0000", WARNING),
    "predict: channels swapped": _predict(lambda d: _swap(d, "t1", "imagesTs"), "channel 0000 (T1) looks like T2",
                                          "t1_0000", WARNING, cases=7),
    "predict: an image twice": _predict(lambda d: _copy_images(d, "t0", "t1"), "holds the same voxels as", "t1_0000",
                                        WARNING),
}


def _train_and_check(data: DataSet, damage: Callable[[DataSet], object]) -> tuple[list[str], list[Problem]]:
    """The good cases of imagesTs, and the problems, for a model of the undamaged training set."""
    plans = {"image_reader_writer": READERS[data.ending], PLANS_KEY: check_training(NAME).facts}
    damage(data)
    good, problems = check_inputs(find_inputs(data.folder / "imagesTs", data.description), data.description, plans)
    return list(good), problems


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name, raw):
    bad = BAD[name]
    data = DataSet(raw, **bad.made)
    if bad.severity == ERROR and (bad.command == PLAN or not bad.file and "has 3" not in bad.cause):
        with pytest.raises(LDSegError) as caught:
            if bad.command == PLAN:
                bad.damage(data)
                check_training(NAME)
            else:
                _train_and_check(data, bad.damage)
        said = [line for line in (caught.value.cause, *caught.value.details) if bad.cause in line]
        assert said and bad.file in said[0] and caught.value.cure
        assert len(caught.value.details) <= 1, "one thing is wrong, and said once"
        return
    if bad.command == PLAN:
        bad.damage(data)
        problems = check_training(NAME).problems
    else:
        good, problems = _train_and_check(data, bad.damage)
        assert ("t1" in good) == (bad.severity == WARNING or "t9" in bad.file)
        assert "t0" in good, "one bad case does not stop the others"
    (problem,) = problems
    assert problem.severity == bad.severity and bad.cause in problem.cause and bad.file in problem.file
    assert problem.cure.endswith(".") or problem.cure.endswith("?")


REGIONS = {"labels": {"background": 0, "all": [1, 2], "core": 2, "ignore": 3}, "regions_class_order": [1, 2],
           "values": (0, 1, 2, 3)}
GOOD = {
    "MR": {}, "MR of seven": {"cases": 7}, "CT": {"channels": {"0": "CT"}}, "CT and PET": {"channels": {
        "0": "CT", "1": "PET"}, "cases": 6}, "pictures": PICTURES, "regions and ignored voxels": REGIONS,
    "NRRD": {"ending": ".nrrd"}, "GIPL": {"ending": ".gipl"}, "MHA": {"ending": ".mha"}, "NIfTI": {"ending": ".nii"},
    "TIFF": {"ending": ".tif"},
    "2D TIFF": {"ending": ".tif", "flat": True}, "2D NIfTI": {"flat": True},
    "a reader of choice": {"overwrite_image_reader_writer": "NibabelIOWithReorient"},
}
EXPECTED_READERS = {"2D TIFF": "NaturalImage2DIO", "a reader of choice": "NibabelIOWithReorient"}


@pytest.mark.parametrize("name", GOOD)
def test_good_input(name, raw):
    data = DataSet(raw, **GOOD[name])
    checked = check_training(NAME)
    assert checked.problems == [] and checked.left_out == [] and checked.counted_rightly
    assert len(checked.cases) == data.description["numTraining"]
    assert checked.reader == EXPECTED_READERS.get(name, READERS[data.ending])
    plans = {"image_reader_writer": checked.reader, PLANS_KEY: checked.facts}
    good, problems = check_inputs(find_inputs(raw / "imagesTs", data.description), data.description, plans)
    assert list(good) == ["t0", "t1"] and problems == []


def test_cases_are_listed_as_nnunet_lists_them(raw):
    from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

    DataSet(raw)
    listed = check_training(NAME).cases
    assert listed == get_filenames_of_train_images_and_targets(str(raw))


def test_files_may_be_listed_in_dataset_json(raw, monkeypatch):
    """With variables, and outside of imagesTr, as nnU-Net reads them."""
    from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

    data = DataSet(raw)
    os.rename(raw / "imagesTr", raw / "elsewhere")
    os.rename(raw / "labelsTr", raw / "truth")
    monkeypatch.setenv("TRUTH", str(raw / "truth"))
    data.describe(dataset={case: {"images": [f"elsewhere/{case}_{i:04d}.nii.gz" for i in range(2)],
                                  "label": f"$TRUTH/{case}.nii.gz"} for case in ("c2", "c0", "c1")})
    checked = check_training(NAME)
    assert checked.problems == [] and list(checked.cases) == ["c2", "c0", "c1"]
    assert checked.cases == get_filenames_of_train_images_and_targets(str(raw))


def test_mr_of_any_scale_is_no_wrong_order(raw):
    data = DataSet(raw, cases=7)
    checked = check_training(NAME)
    data.write_images("imagesTs", "t1", 101, scale=1000)
    plans = {"image_reader_writer": checked.reader, PLANS_KEY: checked.facts}
    assert check_inputs(find_inputs(raw / "imagesTs", data.description), data.description, plans)[1] == []


def test_a_model_of_earlier_plans_is_checked_without_what_they_lack(raw):
    data = DataSet(raw, cases=7)
    _turn(data, "t1", "imagesTs")
    _swap(data, "t1", "imagesTs")
    plans = {"image_reader_writer": "SimpleITKIO"}
    assert check_inputs(find_inputs(raw / "imagesTs", data.description), data.description, plans)[1] == []


def test_all_bad_cases_are_listed_at_once(raw):
    data = DataSet(raw, cases=5)
    data.label("c0").unlink()
    data.image("c0").write_bytes(b"")
    _with_value(data.label("c1"), 9)
    _cut(data.image("c2", 1))
    data.image("c3", 1).unlink()
    with pytest.raises(LDSegError) as caught:
        check_training(NAME)
    assert caught.value.cause == "4 of 5 training cases of Dataset004_Small cannot be used."
    assert len(caught.value.details) == 5 and "--skip_bad_cases" in caught.value.cure
    for part in ("labelsTr/c0.nii.gz is missing", "c0_0000.nii.gz is empty", "labelsTr/c1.nii.gz holds 9",
                 "c2_0001.nii.gz is cut off", "c3_0000.nii.gz has 1 channels"):
        assert any(part in line for line in caught.value.details), part


@pytest.mark.parametrize("damage, part", [
    (lambda d: d.image().write_bytes(b"PNG"), "c1_0000.png cannot be read"),
    (lambda d: _changed(d, numTraining=9), "says numTraining 9"),
    (lambda d: [f.write_bytes(b"") for f in (d.folder / "imagesTr").iterdir()], "c2_0000.png is empty")])
def test_the_planning_command_ends_without_a_traceback(damage, part, raw, capfd):
    damage(DataSet(raw, **PICTURES))
    assert plan_and_preprocess.main(["-d", "4"]) == 1
    error = capfd.readouterr().err
    assert error.startswith("error: ") or "\nerror: " in error
    assert part in error and "Traceback" not in error


@pytest.fixture
def model(raw, nnunet_folders):
    """A trained model as far as it is looked at before the images are."""
    data = DataSet(raw)
    folder = nnunet_folders["nnUNet_results"] / NAME / "LDSegTrainer__LDSegPlans__3d_fullres"
    (folder / "fold_0").mkdir(parents=True)
    (folder / "fold_0" / "checkpoint_final.pth").write_bytes(b"")
    (folder / "dataset.json").write_text(json.dumps(data.description))
    (folder / "plans.json").write_text(json.dumps({"image_reader_writer": "SimpleITKIO",
                                                   "configurations": {"3d_fullres": {}}}))
    return data


def test_the_prediction_command_ends_without_a_traceback(model, tmp_path, capfd):
    _cut(model.image("t0", 1, "imagesTs"))
    _four_d(model.image("t1", 0, "imagesTs"))
    arguments = ["-i", str(model.folder / "imagesTs"), "-o", str(tmp_path / "out"), "-d", "4"]
    for skip in ([], ["--skip_bad_cases"]):
        assert predict.main(arguments + skip) == 1, "with no good case there is nothing to go on with"
        error = capfd.readouterr().err
        assert "t0_0001.nii.gz is cut off" in error and "t1_0000.nii.gz is 4D" in error
        assert "error: None of the cases can be predicted" in error and "Traceback" not in error
    recorded = json.loads((tmp_path / "out" / "data_check.json").read_text())
    assert recorded["left_out"] == ["t0", "t1"] and recorded["problems"][0]["cure"]
