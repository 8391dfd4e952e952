"""The table of bad inputs: how each is made, and what must be said of it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from damages import (
    blank,
    changed,
    compress,
    copy_images,
    cut,
    flip_byte,
    folder_instead,
    four_d,
    link_to_nothing,
    listed_but_missing,
    move,
    no_foreground,
    pages,
    picture,
    pixdim,
    rewrite,
    sheared,
    swap,
    turn,
    twin,
    vector,
    version_1,
    with_value,
    without_key,
)
from data_sets import PICTURES, SHAPE, DataSet, write
from skimage import io

from ldseg_auto.checks.problem import ERROR, WARNING

PLAN, PREDICT = "plan", "predict"

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


DIRECTION = (-1, 0, 0, 0, 1, 0, 0, 0, 1)
BAD = {
    # dataset.json
    "not JSON": _plan(lambda d: (d.folder / "dataset.json").write_text("{"), "is not valid JSON", "dataset.json"),
    "a list": _plan(lambda d: (d.folder / "dataset.json").write_text("[]"), "is no JSON object", "dataset.json"),
    "no dataset.json": _plan(lambda d: (d.folder / "dataset.json").unlink(), "lacks dataset.json"),
    "no labels folder": _plan(lambda d: shutil.rmtree(d.folder / "labelsTr"), "lacks labelsTr"),
    "no channel names": _plan(lambda d: without_key(d, "channel_names"), "lacks channel_names", "dataset.json"),
    "version 1": _plan(version_1, "nnU-Net v1 called it modality", "dataset.json"),
    "no file ending": _plan(lambda d: without_key(d, "file_ending"), "lacks file_ending", "dataset.json"),
    "two keys missing": _plan(lambda d: (without_key(d, "labels"), without_key(d, "numTraining")),
                              "lacks labels, numTraining", "dataset.json"),
    "channels as a list": _plan(lambda d: changed(d, channel_names=["T1", "T2"]), "has channel_names that are not"),
    "channels from 1 on": _plan(lambda d: changed(d, channel_names={"1": "T1", "2": "T2"}), "1, 2, not 0, 1"),
    "labels reversed": _plan(lambda d: changed(d, labels={"0": "background", "1": "organ"}), "the wrong way round"),
    "labels with a gap": _plan(lambda d: changed(d, labels={"background": 0, "organ": 255}), "[0, 255]"),
    "labels as text": _plan(lambda d: changed(d, labels={"background": "0", "organ": "1"}), "no whole numbers"),
    "no background": _plan(lambda d: changed(d, labels={"thing": 0, "organ": 1}), 'no label "background": 0'),
    "regions without order": _plan(lambda d: changed(d, labels={"background": 0, "all": [1, 2], "core": 2}),
                                   "regions_class_order"),
    "count too high": _plan(lambda d: changed(d, numTraining=30), "says numTraining 30, but there are 3 cases",
                            "dataset.json"),
    "count as text": _plan(lambda d: changed(d, numTraining="3"), "has numTraining '3'"),
    "ending without dot": _plan(lambda d: changed(d, file_ending="nii.gz"), "without its dot: .nii.gz"),
    "ending that none reads": _plan(lambda d: (move(d.image(), d.folder / "imagesTr" / "c9_0000.jpg"),
                                               changed(d, file_ending=".jpg")), "nnU-Net reads no .jpg"),
    "ending of other files": _plan(lambda d: changed(d, file_ending=".mha"), "no image that ends in .mha"),
    "unknown reader": _plan(lambda d: changed(d, overwrite_image_reader_writer="MyIO"),
                            "overwrite_image_reader_writer in dataset.json is 'MyIO'"),
    "malformed list of files": _plan(lambda d: changed(d, dataset={"c0": {"images": "c0.nii.gz"}}),
                                     "has a dataset that is not like"),
    "listed file is missing": _plan(listed_but_missing, "is missing", "imagesTr/gone.nii.gz"),
    # names
    "channel missing": _plan(lambda d: d.image("c1", 1).unlink(), "has 1 channels instead of 2 (T1, T2)", "c1_0000"),
    "first channel missing": _plan(lambda d: d.image("c1", 0).unlink(), "are numbered 0001", "c1_0001"),
    "channel too many": _plan(lambda d: shutil.copy(d.image("c1", 1), d.image("c1", 2)), "has 3 channels", "c1_0000"),
    "gap in the numbers": _plan(lambda d: move(d.image("c1", 1), d.image("c1", 3)), "are numbered 0000, 0003"),
    "no channel number": _plan(lambda d: shutil.copy(d.image(), d.folder / "imagesTr" / "extra.nii.gz"),
                               "has no channel number", "extra.nii.gz"),
    "other ending": _plan(lambda d: write(d.folder / "imagesTr" / "c9_0000.mha", np.ones(SHAPE)),
                          "does not end in .nii.gz", "c9_0000.mha"),
    "macOS": _plan(lambda d: (d.folder / "imagesTr" / "._c1_0000.nii.gz").write_bytes(b"x"), "macOS puts such files",
                   "._c1_0000.nii.gz"),
    "label missing": _plan(lambda d: d.label().unlink(), "is missing", "labelsTr/c1.nii.gz"),
    "label in another format": _plan(lambda d: move(d.label(), d.folder / "labelsTr" / "c1.mha"),
                                     "is missing (there is c1.mha)", "labelsTr/c1.nii.gz"),
    "label without image": _plan(lambda d: shutil.copy(d.label(), d.label("c9")), "has no image", "c9.nii.gz"),
    # files
    "empty file": _plan(lambda d: d.image().write_bytes(b""), "is empty", "c1_0000"),
    "image cut off": _plan(lambda d: cut(d.image()), "is cut off or damaged", "c1_0000"),
    "label cut off": _plan(lambda d: cut(d.label()), "is cut off or damaged", "labelsTr/c1"),
    "a byte changed": _plan(lambda d: flip_byte(d.image("c1", 1)), "is cut off or damaged", "c1_0001"),
    "first image damaged": _plan(lambda d: cut(d.image("c0")), "is cut off or damaged", "c0_0000"),
    "unpacked beside packed": _plan(lambda d: write(d.image().with_suffix(""), np.ones(SHAPE)),
                                    "beside it lies c1_0000.nii, whose voxels SimpleITK takes", "c1_0000.nii.gz"),
    "ending in capitals": _plan(lambda d: shutil.copy(d.image(), d.folder / "imagesTr" / "c9_0000.NII.GZ"),
                                "does not end in .nii.gz", "c9_0000.NII.GZ"),
    "no image": _plan(lambda d: d.image().write_bytes(b"no image"), "is cut off or damaged", "c1_0000"),
    "a text file": _plan(lambda d: d.image("c0").write_text("no image"), "cannot be read by nnU-Net's", "c0_0000.nrrd",
                         ending=".nrrd"),
    "a folder": _plan(lambda d: folder_instead(d.image()), "is no file", "c1_0000"),
    "link to nothing": _plan(lambda d: link_to_nothing(d.image()), "is a link to nothing", "c1_0000"),
    "NRRD cut off": _plan(lambda d: cut(d.image()), "c1_0000.nrrd cannot be read", ending=".nrrd"),
    "MHA cut off": _plan(lambda d: cut(d.image(), 200), "c1_0000.mha cannot be read", ending=".mha"),
    "NIfTI cut off": _plan(lambda d: cut(d.image()), "c1_0000.nii cannot be read", ending=".nii"),
    "TIFF cut off": _plan(lambda d: cut(d.image(), 1300), "c1_0000.tif cannot be read", ending=".tif"),
    "TIFF without its last pages": _plan(lambda d: pages(d.image(), 0.8), "is cut off or damaged", "c1_0000.tif",
                                         ending=".tif"),
    "compressed MHA, a byte changed": _plan(lambda d: (compress(d.image()), flip_byte(d.image())),
                                            "is cut off or damaged", "c1_0000.mha", ending=".mha"),
    "GIPL cut off": _plan(lambda d: cut(d.image()), "is cut off", "c1_0000.gipl", ending=".gipl"),
    "TIFF of one page": _plan(lambda d: write(d.image(), np.ones((1, 7, 8), np.uint8)), "c1_0000.tif cannot be read",
                              ending=".tif"),
    "4D": _plan(lambda d: four_d(d.image()), "is 4D (8 x 7 x 6 x 5)", "c1_0000"),
    "vectors": _plan(lambda d: vector(d.image()), "holds 3 values a voxel", "c1_0000.mha", ending=".mha"),
    # geometry
    "label of another size": _plan(lambda d: rewrite(d.label(), lambda v: v[:-1]), "has 8 x 7 x 5 voxels", "labelsTr"),
    "channel of another size": _plan(lambda d: rewrite(d.image("c1", 1), lambda v: v[:, 1:]), "has 8 x 6 x 6",
                                     "c1_0001"),
    "label of another spacing": _plan(lambda d: rewrite(d.label(), spacing=(1, 1.2, 2)), "differs in spacing",
                                      "labelsTr/c1"),
    "channel of another spacing": _plan(lambda d: rewrite(d.image("c1", 1), spacing=(1, 1.001, 2)),
                                        "differs in spacing", "c1_0001"),
    "label at another place": _plan(lambda d: rewrite(d.label(), origin=(0, 5, 0)), "differs in origin",
                                    "labelsTr/c1"),
    "label flipped": _plan(lambda d: rewrite(d.label(), direction=DIRECTION), "differs in direction", "labelsTr/c1"),
    "label nearly at its place": _plan(lambda d: rewrite(d.label(), origin=(0, 0.1, 0)), "differs in origin",
                                       "labelsTr/c1", WARNING),
    "spacing 0": _plan(lambda d: pixdim(d.image(), 0), "has the spacing 1 x 0 x 2", "c1_0000"),
    "spacing below 0": _plan(lambda d: pixdim(d.image(), -1), "has the spacing 1 x -1 x 2", "c1_0000"),
    "TIFF with spacing 0": _plan(lambda d: (d.folder / "imagesTr" / "c1.json").write_text('{"spacing": [1, 0, 1]}'),
                                 "has the spacing 1 x 0 x 1", "c1_0000.tif", ending=".tif", channels={"0": "CT"}),
    "spacing in metres": _plan(lambda d: [rewrite(file, spacing=(.001, .001, .002)) for file in (
        d.image(), d.image("c1", 1), d.label())], "the spacing 0.002 x 0.001 x 0.001, most have 2 x 1 x 1", "c1_0000"),
    "axes not at right angles": _plan(lambda d: sheared(d.image()), "only supports orthonormal", "c1_0000"),
    "several orientations": _plan(turn, "different orientations", severity=WARNING),
    # voxels
    "NaN": _plan(lambda d: with_value(d.image(), np.nan), "holds NaN or infinite", "c1_0000", ending=".nrrd"),
    "infinite": _plan(lambda d: with_value(d.image("c1", 1), -np.inf), "holds NaN or infinite", "c1_0001",
                      ending=".mha"),
    "filled with the largest float": _plan(lambda d: with_value(d.image(), 3e38), "holds values of 3e+38", "c1_0000"),
    "NaN in NIfTI": _plan(lambda d: with_value(d.image(), np.nan), "takes them for 0", "c1_0000", WARNING),
    "blank volume": _plan(lambda d: blank(d.image("c1", 0), d.image("c1", 1)), "holds one value only", "c1_0000"),
    "blank picture": _plan(lambda d: io.imsave(d.image(), np.zeros((7, 8, 3), np.uint8), check_contrast=False),
                           "holds one value only", "c1_0000", WARNING, **PICTURES),
    "blank channel": _plan(lambda d: blank(d.image("c1", 1)), "of one value only", "c1_0001", WARNING),
    "channels swapped": _plan(lambda d: swap(d, "c1", "imagesTr"), "may be in a wrong order", "c1_0000", WARNING,
                              cases=7),
    "CT and PET swapped": _plan(lambda d: changed(d, channel_names={"0": "PET", "1": "CT"}), "holds no CT in channel",
                                severity=WARNING, channels={"0": "CT", "1": "PET"}),
    # labels
    "label with fractions": _plan(lambda d: with_value(d.label(), 0.5), "0.5, which are no whole numbers", "labelsTr"),
    "label that is nearly whole": _plan(lambda d: with_value(d.label(), 1.0000005), "1.00000047", "labelsTr"),
    "label with NaN": _plan(lambda d: with_value(d.label(), np.nan), "holds NaN", "labelsTr"),
    "NRRD label with NaN": _plan(lambda d: with_value(d.label(), np.nan), "holds nan", "labelsTr", ending=".nrrd"),
    "label not named": _plan(lambda d: with_value(d.label(), 7), "holds 7, which dataset.json does not name",
                             "labelsTr/c1"),
    "label below 0": _plan(lambda d: with_value(d.label(), -1), "holds -1", "labelsTr/c1"),
    "label without foreground": _plan(lambda d: no_foreground(d.label()), "holds background only", "labelsTr/c1",
                                      WARNING),
    "no label with foreground": _plan(lambda d: no_foreground(*map(d.label, ("c0", "c1", "c2"))),
                                      "all 3 cases of Dataset004_Small hold background only"),
    "the image as label": _plan(lambda d: shutil.copy(d.image(), d.label()), "which are no whole numbers", "labelsTr"),
    # duplicates
    "a case twice": _plan(lambda d: twin(d, False), "holds the same voxels as", "c1_0000"),
    "an image with two labels": _plan(lambda d: twin(d, True), "the labels differ", "c1_0000", WARNING),
    # pictures
    "RGBA": _plan(lambda d: picture(d.image(), 4), "has an alpha channel: 4 channels instead of 3", "c1_0000.png",
                  **PICTURES),
    "grey and alpha": _plan(lambda d: picture(d.image(), 2), "c1_0000.png cannot be read", **PICTURES),
    "a grey picture": _plan(lambda d: picture(d.image()), "has 1 channels instead of 3", "c1_0000.png", **PICTURES),
    "picture cut off": _plan(lambda d: cut(d.image(), 40), "c1_0000.png cannot be read", **PICTURES),
    "first picture damaged": _plan(lambda d: d.image("c0").write_bytes(b"PNG"), "c0_0000.png cannot be read",
                                   **PICTURES),
    "a coloured label": _plan(lambda d: picture(d.label(), 3), "is a coloured picture", "labelsTr/c1.png", **PICTURES),
    "a label of 255": _plan(lambda d: write(d.label(), np.full((1, 7, 8), 255, np.uint8)), "holds 255", "labelsTr",
                            **PICTURES),
    # prediction
    "predict: nowhere": _predict(lambda d: shutil.rmtree(d.folder / "imagesTs"), "does not exist"),
    "predict: empty folder": _predict(lambda d: [f.unlink() for f in (d.folder / "imagesTs").iterdir()],
                                      "holds no .nii.gz files"),
    "predict: channel missing": _predict(lambda d: d.image("t1", 1, "imagesTs").unlink(), "has 1 channels", "t1_0000"),
    "predict: channel too many": _predict(lambda d: shutil.copy(d.image("t1", 1, "imagesTs"),
                                                                d.image("t1", 2, "imagesTs")), "has 3 channels"),
    "predict: numbers": _predict(lambda d: move(d.image("t1", 1, "imagesTs"), d.image("t1", 3, "imagesTs")),
                                 "are numbered 0000, 0003", "t1_0000"),
    "predict: no number": _predict(lambda d: shutil.copy(d.image("t1", 1, "imagesTs"), d.folder / "imagesTs" /
                                                         "t9.nii.gz"), "has no channel number", "t9.nii.gz"),
    "predict: other ending": _predict(lambda d: write(d.folder / "imagesTs" / "t9_0000.nrrd", np.ones(SHAPE)),
                                      "does not end in .nii.gz", "t9_0000.nrrd"),
    "predict: ending in capitals": _predict(lambda d: shutil.copy(d.image("t1", 0, "imagesTs"), d.folder / "imagesTs" /
                                                                  "t9_0000.NII.GZ"), "does not end", "t9_0000.NII.GZ"),
    "predict: unpacked beside packed": _predict(lambda d: write(d.image("t1", 1, "imagesTs").with_suffix(""),
                                                                np.ones(SHAPE)), "beside it lies", "t1_0001"),
    "predict: cut off": _predict(lambda d: cut(d.image("t1", 1, "imagesTs")), "is cut off", "t1_0001"),
    "predict: no image": _predict(lambda d: d.image("t1", 1, "imagesTs").write_text("no"), "cannot be read by",
                                  "t1_0001.nrrd", ending=".nrrd"),
    "predict: 4D": _predict(lambda d: four_d(d.image("t1", 0, "imagesTs")), "is 4D", "t1_0000"),
    "predict: sizes": _predict(lambda d: rewrite(d.image("t1", 1, "imagesTs"), lambda v: v[1:]), "has 8 x 7 x 5",
                               "t1_0001"),
    "predict: spacing": _predict(lambda d: pixdim(d.image("t1", 0, "imagesTs"), 0), "has the spacing", "t1_0000"),
    "predict: NaN": _predict(lambda d: with_value(d.image("t1", 1, "imagesTs"), np.nan), "holds NaN", "t1_0001",
                              ending=".nrrd"),
    "predict: NaN in NIfTI": _predict(lambda d: with_value(d.image("t1", 1, "imagesTs"), np.nan), "takes them for 0",
                                      "t1_0001", WARNING),
    "predict: blank": _predict(lambda d: blank(*(d.image("t1", c, "imagesTs") for c in range(2))), "holds one value",
                               "t1_0000"),
    "predict: RGBA": _predict(lambda d: picture(d.image("t1", 0, "imagesTs"), 4), "has an alpha channel", "t1_0000",
                              **PICTURES),
    "predict: orientation": _predict(lambda d: turn(d, "t1", "imagesTs"), "has the orientation", "t1_0000", WARNING),
    "predict: channels swapped": _predict(lambda d: swap(d, "t1", "imagesTs"), "channel 0000 (T1) looks like T2",
                                          "t1_0000", WARNING, cases=7),
    "predict: an image twice": _predict(lambda d: copy_images(d, "t0", "t1"), "holds the same voxels as", "t1_0000",
                                        WARNING),
}
