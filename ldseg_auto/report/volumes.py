"""Reading one case's arrays, all in the axis order of nnU-Net's reader."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import log
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk  # noqa: N813, its usual name
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter

from ldseg_auto.errors import LDSegError
from ldseg_auto.inference.uncertainty import predictive_entropy
from ldseg_auto.report.cases import Case


@dataclass(frozen=True)
class Volumes:
    """One case; a flat picture has one slice z."""

    image: np.ndarray | None  # (C, z, y, x), float32
    truth: np.ndarray  # (z, y, x), labels
    prediction: np.ndarray  # (z, y, x), labels
    probabilities: np.ndarray | None  # (K, z, y, x)
    regions: bool  # the K may overlap
    properties: Mapping[str, Any]  # geometry, as the reader found it
    mutual_information: np.ndarray | None = None  # (z, y, x), mutual information in nats

    @property
    def spacing(self) -> tuple[float, ...]:
        """mm per axis z, y, x (of a flat picture: 1 for y and x)."""
        return tuple(float(each) for each in self.properties["spacing"])

    def uncertainty(self, where: tuple[slice, slice, slice]) -> np.ndarray | None:
        """Predictive entropy of a part (z, y, x) as a share of the highest there can be; None without probabilities.

        Of a part, because logarithms of a whole volume take long.
        """
        if self.probabilities is None:
            return None
        probabilities = self.probabilities[(slice(None), *where)]
        return predictive_entropy(probabilities, self.regions) / highest_entropy(len(probabilities), self.regions)


def highest_entropy(channels: int, regions: bool) -> float:
    """In nats, of probabilities that are all alike: log K, or of regions log 2."""
    return log(2 if regions else channels)


def read_volumes(case: Case, reader: BaseReaderWriter, regions: bool) -> Volumes:
    """The arrays of a case whose truth is there.

    Raises:
        LDSegError: a file cannot be read, or the files do not belong together.
    """
    assert case.truth is not None
    try:
        truth, properties = reader.read_seg(str(case.truth))
        prediction, _ = reader.read_seg(str(case.prediction))
        image = reader.read_images([str(file) for file in case.images])[0] if case.images else None
        probabilities = None
        if case.probabilities is not None:
            with np.load(case.probabilities, allow_pickle=False) as archive:
                probabilities = archive["probabilities"]
        information = None if case.mutual_information is None else _map(case.mutual_information, reader, properties)
    except Exception as error:  # every reader and format has its own
        raise LDSegError(f"Case {case.name} of fold {case.fold} cannot be read ({type(error).__name__}: {error}).",
                         "Replace the damaged file, or validate again.") from error
    shapes = {array.shape[1:] for array in (truth, prediction, image, probabilities, information) if array is not None}
    if len(shapes) > 1:
        raise LDSegError(f"The files of case {case.name} of fold {case.fold} differ in shape: "
                         f"{', '.join(map(str, sorted(shapes)))}.", "The raw data has changed since: validate again.")
    return Volumes(image, truth[0].astype(np.int32), prediction[0].astype(np.int32), probabilities, regions,
                   properties, None if information is None else information[0])


def _map(file: Path, reader: BaseReaderWriter, properties: Mapping[str, Any]) -> np.ndarray:
    """(1, z, y, x) of a map of uncertainty, in the axes in which the reader gives the case's label map."""
    if "sitk_stuff" in properties or "nibabel_stuff" in properties:
        return reader.read_images([str(file)])[0]
    values = sitk.GetArrayFromImage(sitk.ReadImage(str(file)))  # of formats without geometry, see `write_map`
    return values.reshape(-1, *values.shape[-2:])[None]
