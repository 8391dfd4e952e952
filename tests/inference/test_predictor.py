"""The predictor on a model of two iterations: what must hold whatever the weights."""

import itertools

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nnunetv2.inference import predict_from_raw_data

from ldseg_auto.errors import LDSegError
from ldseg_auto.inference.export import ExportOptions
from ldseg_auto.inference.fallback import BatchSizes
from ldseg_auto.inference.predictor import LDSegPredictor
from ldseg_auto.inference.tiling import cut_into_tiles
from ldseg_auto.inference.uncertainty import predictive_entropy, write_map

CPU = torch.device("cpu")


def load(model, folds=(0,), **options):
    options = {"samples": 2, "steps": 2, "allow_tqdm": False, "use_mirroring": False} | options
    predictor = LDSegPredictor(device=CPU, **options)
    predictor.initialize_from_trained_model_folder(str(model), list(folds))
    net = predictor.network
    torch.manual_seed(0)
    for weights in (net.denoiser.from_latent.weight, net.denoiser.out[-1].weight):
        torch.nn.init.normal_(weights, std=0.3)  # samples of two iterations would hardly differ
    predictor.list_of_parameters = [net.state_dict()] * len(predictor.folds)
    return predictor


@pytest.fixture
def image():
    return torch.randn(1, 20, 40, 24, generator=torch.Generator().manual_seed(0))


def probabilities(predictor, image, fold=0):
    result = predictor.mean_probabilities(image, fold)
    assert torch.allclose(result.sum(0), torch.ones(image.shape[1:]), atol=1e-5)
    return result


def test_same_seed_same_bytes_other_seed_other_probabilities(in_small_world, image):
    a, b, c = (probabilities(load(in_small_world["model"], seed=seed), image) for seed in (3, 3, 4))
    assert torch.equal(a, b)
    assert not torch.allclose(a, c, atol=1e-4)


def test_images_are_smoothed_as_the_plans_say(in_small_world, image):
    predictor = load(in_small_world["model"])
    assert predictor.network.config.smoothing_sigma == pytest.approx((0.28, 0.55, 0.55))
    smoothed = probabilities(predictor, image)
    predictor.network.image_encoder.smoothing = torch.nn.Identity()
    assert not torch.allclose(probabilities(predictor, image), smoothed, atol=1e-3)


def test_sample_k_is_sample_k(in_small_world, image, monkeypatch):
    """Whatever the number of samples, every sample of fewer is a sample of more: the same latent at the same place."""
    monkeypatch.setattr(LDSegPredictor, "_images_per_batch", lambda self: 1)  # one tile after the other, 4 samples
    latents = {}
    for number in (1, 2, 3):
        predictor = load(in_small_world["model"], samples=number, steps=3, eta=1.0)
        sample, drawn = predictor.network.sample, []
        predictor.network.sample = lambda *args, sample=sample, drawn=drawn, **kwargs: (
            drawn.append(sample(*args, **kwargs)) or drawn[-1])
        probabilities(predictor, image)
        latents[number] = torch.stack(drawn)  # (tiles, samples, c, *grid)
        assert latents[number].shape[1] == number
    assert torch.allclose(latents[3][:, :2], latents[2], rtol=1e-3, atol=1e-3)  # of another batch size
    assert torch.allclose(latents[3][:, :1], latents[1], rtol=1e-3, atol=1e-3)
    assert not torch.allclose(latents[3][:, 1], latents[3][:, 0], atol=1e-2)


@pytest.mark.parametrize("mirroring", [False, True])
def test_batching_changes_nothing(in_small_world, image, monkeypatch, mirroring):
    predictor = load(in_small_world["model"], use_mirroring=mirroring, steps=2, eta=1.0)
    results = []
    for size in (3, 16):
        monkeypatch.setattr(predictor, "_images_per_batch", lambda size=size: size)
        results.append(probabilities(predictor, image))
    assert torch.allclose(results[0], results[1], atol=1e-5)


@pytest.mark.parametrize("changes", [{"samples": 3}, {"steps": 1}, {"eta": 1.0}, {"use_mirroring": True},
                                     {"tile_step_size": 0.25}, {"use_gaussian": False}], ids=str)
def test_every_option_has_an_effect(in_small_world, image, changes):
    a, b = (probabilities(load(in_small_world["model"], **options), image) for options in ({}, changes))
    assert not torch.allclose(a, b, atol=1e-5)


def test_defaults_come_from_the_plans(in_small_world, image):
    config = load(in_small_world["model"]).network.config
    named = load(in_small_world["model"], samples=config.sampler_samples, steps=config.sampler_steps,
                 eta=config.sampler_eta)
    default = load(in_small_world["model"], samples=None, steps=None, eta=None)
    assert torch.equal(probabilities(named, image), probabilities(default, image))


def test_folds_have_noise_of_their_own_and_are_averaged_as_probabilities(in_small_world, image):
    predictor = load(in_small_world["model"])
    parts = [probabilities(predictor, image, fold) for fold in (0, 1)]
    assert not torch.allclose(*parts, atol=1e-5)
    predictor.folds, predictor.list_of_parameters = [0, 1], predictor.list_of_parameters * 2
    together = predictor.predict_logits_from_preprocessed_data(image).softmax(0)
    assert torch.allclose(together, (parts[0] + parts[1]) / 2, atol=1e-5)


def test_mirrored_views_see_the_mirrored_field(in_small_world):
    """A network that hands the noise through: each view must bring the noise back to where it belongs."""
    predictor = load(in_small_world["model"], samples=1)
    net = predictor.network
    stride = net.config.latent_stride
    patch = predictor.configuration_manager.patch_size
    big = torch.zeros(1, *(p + s for p, s in zip(patch, stride, strict=True)))
    seen = {}
    net.sample = lambda condition, noise, *args, **kwargs: noise
    net.decode = lambda latent: latent[:, :net.num_classes].repeat_interleave(stride[0], 2).repeat_interleave(
        stride[1], 3).repeat_interleave(stride[2], 4)
    tiling = cut_into_tiles(big.shape[1:], patch, stride, 1.0)
    assert len(tiling.tiles) == 8
    for tile in tiling.tiles:
        (result,), _ = predictor._tile_means(net, big, tiling, [tile], 0, [], BatchSizes(8, CPU, CPU))
        for position in itertools.product(*(range(a, a + n, s) for a, n, s in zip(tile.start, tile.size, stride,
                                                                                 strict=True))):
            inside = tuple(p - a for p, a in zip(position, tile.start, strict=True))
            seen.setdefault(position, []).append(result[(slice(None), *inside)])
    assert all(torch.equal(values[0], v) for values in seen.values() for v in values)
    assert max(map(len, seen.values())) == 8


def test_2d_predicts_slice_by_slice(in_small_world):
    predictor = load(in_small_world["model_2d"])
    image = torch.randn(1, 3, 30, 24, generator=torch.Generator().manual_seed(0))
    result = probabilities(predictor, image)
    assert result.shape == (3, 3, 30, 24)
    changed = image.clone()
    changed[:, 1] += 5
    other = probabilities(predictor, changed)
    assert torch.allclose(result[:, [0, 2]], other[:, [0, 2]], atol=1e-6)
    assert not torch.allclose(result[:, 1], other[:, 1], atol=1e-4)


def test_models_of_others_are_refused(in_small_world, tmp_path):
    with pytest.raises(LDSegError, match="no fold"):
        LDSegPredictor(device=CPU).initialize_from_trained_model_folder(str(tmp_path), None)


def test_files_have_the_geometry_of_their_image(in_small_world, tmp_path):
    nnunets = predict_from_raw_data.export_prediction_from_logits
    predictor = load(in_small_world["model"], export=ExportOptions(maps=True), samples=1)
    images = sorted(in_small_world["images"].glob("*.nii.gz"))
    predictor.predict_from_files([[str(p)] for p in images],
                                 [str(tmp_path / p.name.removesuffix("_0000.nii.gz")) for p in images],
                                 save_probabilities=True, num_processes_preprocessing=1,
                                 num_processes_segmentation_export=1)
    assert predict_from_raw_data.export_prediction_from_logits is nnunets, "stock prediction is as it was"
    for path in images:
        case = path.name.removesuffix("_0000.nii.gz")
        image = sitk.ReadImage(str(path))
        segmentation = sitk.ReadImage(str(tmp_path / f"{case}.nii.gz"))
        entropy = sitk.ReadImage(str(tmp_path / "uncertainty" / f"{case}_entropy.nii.gz"))
        for written in (segmentation, entropy):
            assert written.GetSize() == image.GetSize()
            assert written.GetSpacing() == pytest.approx(image.GetSpacing())
            assert written.GetOrigin() == pytest.approx(image.GetOrigin())
            assert written.GetDirection() == pytest.approx(image.GetDirection())
        stored = np.load(tmp_path / f"{case}.npz")["probabilities"]
        assert np.array_equal(stored.argmax(0), sitk.GetArrayFromImage(segmentation))
        expected = -(stored * np.log(np.clip(stored, 1e-12, 1))).sum(0)
        assert np.allclose(sitk.GetArrayFromImage(entropy), expected, atol=1e-4)


def test_entropy_of_labels_and_regions():
    labels = np.array([[1.0, 0.5], [0.0, 0.5]])[:, None, None]
    assert predictive_entropy(labels, regions=False).ravel() == pytest.approx([0, np.log(2)])
    assert predictive_entropy(labels, regions=True).ravel() == pytest.approx([0, np.log(2)])
    sure_of_both = np.ones((2, 1, 1, 1))
    assert predictive_entropy(sure_of_both, regions=True).ravel() == pytest.approx([0])


def test_maps_of_nibabel_images_keep_a_sheared_affine(tmp_path):
    import nibabel
    from nnunetv2.imageio.nibabel_reader_writer import NibabelIO, NibabelIOWithReorient
    affine = np.array([[-2.0, 0.3, 0, 10], [0, 1.5, 0, -20], [0, 0.2, 3.0, 5], [0, 0, 0, 1]])
    values = np.random.default_rng(0).random((4, 5, 6)).astype(np.float32)
    source = tmp_path / "image.nii.gz"
    nibabel.save(nibabel.Nifti1Image(values.transpose(2, 1, 0), affine), source)
    for reader in (NibabelIO(), NibabelIOWithReorient()):
        data, properties = reader.read_images([str(source)])
        write_map(data[0], tmp_path / "map.nii.gz", reader, properties)
        written = nibabel.load(tmp_path / "map.nii.gz")
        assert np.allclose(written.affine, affine, atol=1e-5)
        assert np.allclose(written.get_fdata(), values.transpose(2, 1, 0), atol=1e-4)
        assert sorted(p.name for p in tmp_path.iterdir()) == ["image.nii.gz", "map.nii.gz"]


def test_maps_keep_the_orientation_that_a_reader_changes(tmp_path):
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO, SimpleITKIOWithReorient
    values = np.random.default_rng(0).random((4, 5, 6)).astype(np.float32)
    image = sitk.GetImageFromArray(values)
    image.SetSpacing((1.0, 2.0, 3.0))
    image.SetOrigin((5.0, -6.0, 7.0))
    image.SetDirection((0, 1, 0, -1, 0, 0, 0, 0, -1))
    sitk.WriteImage(image, str(tmp_path / "image.nii.gz"))
    for reader in (SimpleITKIO(), SimpleITKIOWithReorient()):
        data, properties = reader.read_images([str(tmp_path / "image.nii.gz")])
        write_map(data[0], tmp_path / "map.nii.gz", reader, properties)
        written = sitk.ReadImage(str(tmp_path / "map.nii.gz"))
        assert written.GetDirection() == pytest.approx(image.GetDirection())
        assert written.GetSpacing() == pytest.approx(image.GetSpacing())
        assert np.allclose(sitk.GetArrayFromImage(written), values, atol=1e-4)


def test_maps_of_pictures_are_plain(tmp_path):
    values = np.random.default_rng(0).random((1, 5, 6)).astype(np.float32)
    write_map(values, tmp_path / "map.nii.gz", None, {"spacing": (999, 1, 1)})
    assert np.allclose(sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "map.nii.gz"))), values[0])
