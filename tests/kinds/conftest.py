"""Data sets of `worlds.py`, with nnU-Net's environment variables set to them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from worlds import World


@pytest.fixture(scope="module")
def make_world(tmp_path_factory, use_threads):
    """(number, name) -> a `World`, with nnU-Net's environment variables set to it until the module's tests are done.
    Quick: no mirroring in validation, no report of the plans, and not nnU-Net's hundred million voxels for the
    statistics of intensities."""
    from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor

    from ldseg_auto.planners import api
    from ldseg_auto.trainers.ldseg_trainer import LDSegTrainer

    begin = DatasetFingerprintExtractor.__init__

    def begin_with_few_voxels(self, *arguments, **options):
        begin(self, *arguments, **options)
        self.num_foreground_voxels_for_intensitystats = 1e5

    with pytest.MonkeyPatch.context() as patch:
        use_threads(patch)
        patch.setattr(LDSegTrainer, "validation_mirroring", False)
        patch.setattr(DatasetFingerprintExtractor, "__init__", begin_with_few_voxels)
        patch.setattr(api, "write_report", lambda *arguments: None)

        def make(number: int, name: str) -> World:
            world = World(tmp_path_factory.mktemp(name), number, name)
            for variable, folder in world.folders.items():
                patch.setenv(variable, str(folder))
            return world
        yield make


@pytest.fixture(scope="session")
def read() -> Callable[[Path], np.ndarray]:
    return lambda file: sitk.GetArrayFromImage(sitk.ReadImage(str(file)))
