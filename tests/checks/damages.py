"""Ways in which data sets get damaged."""

from __future__ import annotations

import shutil
from collections.abc import Callable

import nibabel
import numpy as np
import SimpleITK as sitk
import tifffile
from data_sets import SHAPE, DataSet, read, write
from skimage import io


def changed(data: DataSet, **changes) -> None:
    data.describe(**changes)


def without_key(data: DataSet, key: str) -> None:
    data.description.pop(key)
    data.describe()


def version_1(data: DataSet) -> None:
    data.describe(modality=data.description.pop("channel_names"))


def listed_but_missing(data: DataSet) -> None:
    data.describe(dataset={"c0": {"images": ["imagesTr/c0_0000.nii.gz", "imagesTr/gone.nii.gz"],
                                  "label": "labelsTr/c0.nii.gz"}}, numTraining=1)


def move(source, target) -> None:
    source.rename(target)


def cut(file, bytes_lost: int = 30) -> None:
    file.write_bytes(file.read_bytes()[:-bytes_lost])


def flip_byte(file) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 255
    file.write_bytes(content)


def rewrite(file, change: Callable[[np.ndarray], np.ndarray] = lambda voxels: voxels, **header) -> None:
    write(file, change(read(file)), **header)


def with_value(file, value: float) -> None:
    voxels = read(file).astype(np.float32)
    voxels[0, 0, 0] = value
    write(file, voxels)


def pixdim(file, step: float) -> None:
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


def sheared(file) -> None:
    image = nibabel.load(file)
    affine = image.affine.copy()
    affine[0, 1] = affine[1, 1] / 2
    nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj), affine), file)


def four_d(file) -> None:
    nibabel.save(nibabel.Nifti1Image(np.random.default_rng(0).normal(size=(8, 7, 6, 5)).astype(np.float32),
                                     np.eye(4)), file)


def compress(file) -> None:
    sitk.WriteImage(sitk.ReadImage(str(file)), str(file), True)


def pages(file, share_kept: float) -> None:
    with tifffile.TiffWriter(file) as pages:
        for page in np.random.default_rng(0).normal(size=(SHAPE[0], 60, 80)).astype(np.float32):
            pages.write(page, contiguous=False)
    cut(file, int(file.stat().st_size * (1 - share_kept)))


def vector(file) -> None:
    voxels = np.random.default_rng(0).normal(size=(*SHAPE, 3)).astype(np.float32)
    sitk.WriteImage(sitk.GetImageFromArray(voxels, isVector=True), str(file))


def link_to_nothing(file) -> None:
    file.unlink()
    file.symlink_to("nowhere")


def folder_instead(file) -> None:
    file.unlink()
    file.mkdir()


def twin(data: DataSet, other_label: bool) -> None:
    for channel in range(2):
        shutil.copy(data.image("c0", channel), data.image("c1", channel))
    shutil.copy(data.label("c0"), data.label("c1"))
    if other_label:
        rewrite(data.label("c1"), lambda voxels: np.roll(voxels, 1, axis=1))


def copy_images(data: DataSet, source: str, target: str) -> None:
    for channel in range(2):
        shutil.copy(data.image(source, channel, "imagesTs"), data.image(target, channel, "imagesTs"))


def no_foreground(*files) -> None:
    for file in files:
        rewrite(file, np.zeros_like)


def blank(*files) -> None:
    for file in files:
        rewrite(file, lambda voxels: np.full_like(voxels, 7))


def turn(data: DataSet, case: str = "c1", part: str = "imagesTr") -> None:
    for file in (*(data.image(case, channel, part) for channel in range(2)), data.label(case)):
        if file.exists():
            rewrite(file, direction=(-1, 0, 0, 0, -1, 0, 0, 0, 1))


def swap(data: DataSet, case: str, part: str) -> None:
    first, second = data.image(case, 0, part), data.image(case, 1, part)
    first.rename(first.with_name("x"))
    second.rename(first)
    first.with_name("x").rename(second)


def picture(file, *channels) -> None:
    shape = (SHAPE[1], SHAPE[2], *channels)
    io.imsave(file, np.random.default_rng(0).integers(0, 255, shape, np.uint8), check_contrast=False)
