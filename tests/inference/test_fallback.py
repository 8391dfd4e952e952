"""Out of memory: the same result with smaller batches, or an end that says what was tried."""

import pytest
import torch

from ldseg_auto.errors import LDSegError
from ldseg_auto.inference.export import ExportOptions
from ldseg_auto.inference.fallback import BatchSizes, is_out_of_memory
from ldseg_auto.inference.predictor import LDSegPredictor

CPU = torch.device("cpu")
CPU_SAYS = "[enforce fail at alloc_cpu.cpp:114] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to ..."


@pytest.mark.parametrize("error, expected", [
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True), (MemoryError(), True),
    (RuntimeError(CPU_SAYS), True), (RuntimeError("DefaultCPUAllocator: not enough memory: you tried"), True),
    (RuntimeError("MPS backend out of memory"), True), (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
    (RuntimeError("Expected all tensors to be on the same device"), False), (ValueError("out of memory"), False)])
def test_what_is_out_of_memory(error, expected):
    assert is_out_of_memory(error) == expected


def test_less_each_time_and_then_an_end(capsys):
    sizes = BatchSizes(4, CPU, torch.device("meta"))
    tried = []

    def fail():
        tried.append((sizes.results.type, sizes.images, sizes.latents))
        raise MemoryError

    with pytest.raises(LDSegError, match="one tile and one sample at a time.*4 images and 16 samples.*1 images and 1"):
        sizes.until_it_fits(fail)
    assert tried == [("meta", 4, 16), ("cpu", 4, 16), ("cpu", 2, 8), ("cpu", 1, 4), ("cpu", 1, 1)]
    assert capsys.readouterr().out.count("Out of memory: going on with") == 4


@pytest.fixture
def load(in_small_world, monkeypatch):
    monkeypatch.setattr(LDSegPredictor, "_images_per_batch", lambda self: 8)

    def load(**options):
        options = {"samples": 4, "steps": 2, "allow_tqdm": False, "use_mirroring": False} | options
        predictor = LDSegPredictor(device=CPU, **options)
        predictor.initialize_from_trained_model_folder(str(in_small_world["model"]), [0])
        return predictor

    return load


def limit(predictor, part, most, error):
    """The part of the network raises for larger batches; returns the batches that went through."""
    run, seen = getattr(predictor.network, part), []

    def limited(batch, *arguments, **options):
        if len(batch) > most:
            raise error
        seen.append(len(batch))
        return run(batch, *arguments, **options)

    setattr(predictor.network, part, limited)
    return seen


@pytest.mark.parametrize("part, most, error", [
    ("encode_image", 1, torch.OutOfMemoryError("CUDA")), ("decode", 2, RuntimeError(CPU_SAYS)),
    ("sample", 1, MemoryError())])
def test_smaller_batches_give_the_same(load, part, most, error, capsys):
    image = torch.randn(1, 14, 30, 16, generator=torch.Generator().manual_seed(0))
    expected = load().mean_probabilities(image, 0)
    predictor = load()
    seen = limit(predictor, part, most, error)
    probabilities = predictor.mean_probabilities(image, 0)
    assert torch.allclose(probabilities, expected, atol=1e-3)
    assert torch.equal(probabilities.argmax(0), expected.argmax(0))
    assert 0 < max(seen) <= most
    said = capsys.readouterr().out
    assert "Out of memory: going on with" in said
    predictor.mean_probabilities(image, 0)
    assert not capsys.readouterr().out, "the next case begins with what fits"


def test_voxels_of_draws_are_not_counted_twice(load):
    image = torch.randn(1, 14, 30, 16, generator=torch.Generator().manual_seed(0))
    shares = []
    for most in (100, 2):
        predictor = load(export=ExportOptions(maps=True))
        limit(predictor, "decode", most, MemoryError())
        shares.append(torch.tensor([[float(v) for v in draw] for draw in
                                    predictor._accumulate(image, 0, lambda *_: None).values()]))
    assert torch.allclose(*shares)
    assert shares[0].sum(1) == pytest.approx([14 * 30 * 16] * 4, rel=1e-5)


def test_an_end_that_says_what_was_tried(load):
    predictor = load()
    limit(predictor, "decode", 0, MemoryError())
    with pytest.raises(LDSegError, match="8 images and 32 samples.*1 images and 1 samples"):
        predictor.mean_probabilities(torch.zeros(1, 14, 30, 16), 0)


def test_other_errors_are_raised_at_once(load):
    """nnU-Net's predictor would run a second time, without a word."""
    predictor = load()
    calls = []

    def broken(images):
        calls.append(len(images))
        raise RuntimeError("Given groups=1, expected input to have 2 channels")

    predictor.network.encode_image = broken
    with pytest.raises(RuntimeError, match="2 channels"):
        predictor.predict_logits_from_preprocessed_data(torch.zeros(1, 14, 30, 16))
    assert len(calls) == 1


def test_the_size_of_tiles_stays(load):
    predictor = load()
    shapes = set()
    encode = predictor.network.encode_image

    def limited(images):
        shapes.add(tuple(images.shape[2:]))
        if len(images) > 1:
            raise MemoryError
        return encode(images)

    predictor.network.encode_image = limited
    predictor.mean_probabilities(torch.zeros(1, 14, 30, 16), 0)
    assert shapes == {tuple(predictor.configuration_manager.patch_size)}
