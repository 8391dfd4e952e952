"""An array in memory by nnU-Net's own method, which resamples logits (test_array_predictor.py: by ours)."""

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from ldseg_auto.cli import predict
from ldseg_auto.inference.predictor import LDSegPredictor


@pytest.fixture
def predictor(in_small_world):
    predictor = LDSegPredictor(device=torch.device("cpu"), use_mirroring=False, samples=2, seed=3, allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(in_small_world["model"]), use_folds=(0,))
    return predictor


def test_an_array_gives_what_the_command_gives_for_its_file(in_small_world, predictor, tmp_path):
    file = in_small_world["nnUNet_raw"] / "Dataset007_Small" / "imagesTr" / "case_03_0000.nii.gz"
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / file.name).symlink_to(file)
    assert predict.main(["-i", str(tmp_path / "images"), "-o", str(tmp_path), "-d", "7", "-c", "3d_fullres",
                         "-f", "0", "--samples", "2", "--seed", "3", "--disable_tta", "--save_probabilities", "-npp",
                         "0", "-nps", "0", "-device", "cpu", "--disable_progress_bar"]) == 0
    image = sitk.ReadImage(str(file))
    array, properties = sitk.GetArrayFromImage(image)[None].astype(np.float32), {"spacing": image.GetSpacing()[::-1]}
    segmentation, probabilities = predictor.predict_single_npy_array(array, properties,
                                                                     save_or_return_probabilities=True)
    assert np.abs(probabilities - np.load(tmp_path / "case_03.npz")["probabilities"]).max() < 1e-3
    assert np.array_equal(segmentation, sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "case_03.nii.gz"))))
    assert np.array_equal(segmentation, predictor.predict_single_npy_array(array, properties)), "same seed, same result"
