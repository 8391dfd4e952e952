"""ldseg_predict without -c and -f is the mean of the folds' probabilities: for regions, transposed axes and pictures.

`tests/trainers/test_crossval.py` shows the same of two folds that were really trained.
"""

import numpy as np
import pytest
import SimpleITK as sitk

from ldseg_auto.cli import predict


@pytest.mark.parametrize("model", ["regions", "transposed", "pictures"], indirect=True)
def test_the_mean_of_the_folds(request, model, tmp_path, capsys):
    folder, images = model
    image, = images.iterdir()
    quicker = [] if image.suffix == ".png" else ["--disable_tta"]

    def probabilities(name: str, *flags: str) -> np.ndarray:
        assert predict.main(["-i", str(images), "-o", str(tmp_path / name), "-d", "8", "-npp", "0", "-nps", "0",
                             "--samples", "1", "--save_probabilities", "-device", "cpu", "--disable_progress_bar",
                             *quicker, *flags]) == 0
        return np.load(tmp_path / name / "case.npz")["probabilities"].astype(np.float32)

    single = [probabilities(fold, "-f", fold) for fold in "01"]
    assert np.abs(single[0] - single[1]).max() > 0.01 and all(part.std(axis=(1, 2, 3)).min() > 0.003 for part in single)
    both = probabilities("both")
    assert f"Predicting with {folder.name}, fold 0 1" in capsys.readouterr().out
    assert np.abs(both - (single[0] + single[1]) / 2).max() < 1e-3
    written = tmp_path / "both" / f"case{image.name.removeprefix('case_0000')}"
    segmentation = sitk.GetArrayFromImage(sitk.ReadImage(str(written)))
    size = sitk.ReadImage(str(image)).GetSize()
    assert segmentation.shape == size[::-1] and both[0].size == segmentation.size
    if "transposed" in request.node.name:
        expected = both.argmax(0)
    else:  # the later region of the order lies over the earlier one
        expected = np.where(both[1] > 0.5, 3 if "pictures" in request.node.name else 2, both[0] > 0.5)
    assert np.array_equal(segmentation, expected.reshape(segmentation.shape))
