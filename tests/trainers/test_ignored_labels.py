"""Both recipes, as nnU-Net builds them, on sparse annotation: what is ignored changes no term of the loss."""

import copy
from dataclasses import fields

import pytest
import torch
from batchgenerators.utilities.file_and_folder_operations import load_json

from ldseg_auto.trainers.ldseg_trainer import LDSegTrainer
from ldseg_auto.trainers.loss import LatentDiffusionLoss, LossWeights, _at_grid
from ldseg_auto.trainers.variants.paper import LDSegTrainerPaper

IGNORE = 3
LABELS = {"softmax": {"background": 0, "shell": 1, "core": 2, "ignore": IGNORE},
          "sigmoid": {"background": 0, "all": [1, 2], "core": 2, "ignore": IGNORE}}
BOTH = pytest.mark.parametrize("recipe", [LDSegTrainer, LDSegTrainerPaper])
OUTPUTS = pytest.mark.parametrize("output", list(LABELS))


def make_trainer(world, recipe, output):
    plans = copy.deepcopy(load_json(str(world["preprocessed"] / "LDSegPlans.json"))) | {"continue_training": False}
    plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"] |= {"output": output, "ignore_label": IGNORE}
    description = load_json(str(world["preprocessed"] / "dataset.json")) | {
        "labels": LABELS[output], "regions_class_order": [1, 2]}
    torch.manual_seed(0)
    trainer = recipe(plans, "3d_fullres", 0, description, torch.device("cpu"))
    trainer.initialize()
    return trainer


def scribbles(trainer, output, samples=2):
    """Image and nnU-Net's target of nested boxes; a few planes are known, and nothing of an octant."""
    generator = torch.Generator().manual_seed(0)
    patch = trainer.configuration_manager.patch_size
    labels = torch.zeros(samples, 1, *patch, dtype=torch.long)
    labels[:, :, 2:-3, 3:-2, 2:-2] = 1
    labels[:, :, 4:-5, 4:-4, 4:-4] = 2
    known = torch.rand(1, 1, *patch[:2], 1, generator=generator).expand(labels.shape) < 0.3
    known = known & (torch.arange(patch[2]) >= patch[2] // 2)
    image = labels + torch.randn(samples, 1, *patch, generator=generator)
    if output == "softmax":
        return image, torch.where(known, labels, IGNORE).float()
    return image, torch.cat([(labels > 0) & known, (labels > 1) & known, ~known], dim=1).float()


def run(trainer, image, target, recycling=True):
    torch.manual_seed(1)
    noise, timestep, recycled = trainer.draw_noise(image)
    return trainer.network(image, target, noise, timestep, recycled if recycling else None)


def terms(trainer):
    """Each term of the loss alone."""
    return {f.name: LatentDiffusionLoss(trainer.loss.segmentation, LossWeights(
        **{other.name: float(other.name == f.name) for other in fields(LossWeights)})) for f in fields(LossWeights)}


@BOTH
@OUTPUTS
def test_no_gradient_where_labels_are_ignored(in_small_world, recipe, output):
    trainer = make_trainer(in_small_world, recipe, output)
    image, target = scribbles(trainer, output)
    result = run(trainer, image, target)
    ignored = ~trainer.network.known_voxels(target)
    parts = {"estimate": [result.estimate_logits], "coding": [result.coding_logits],
             "denoising": [result.denoiser_output], "heads": result.head_logits}
    for name, term in terms(trainer).items():
        gradients = torch.autograd.grad(term(result, target), parts[name], retain_graph=True)
        for gradient in gradients:
            unknown = (result.known_share == 0 if name == "denoising" else
                       _at_grid(ignored.float(), gradient.shape[2:]).bool())
            assert unknown.any() and not unknown.all()
            gradient = gradient.abs().sum(1, keepdim=True)
            assert not gradient[unknown].any(), name
            assert gradient[~unknown].any(), name


@BOTH
@OUTPUTS
def test_values_do_not_depend_on_what_is_ignored(in_small_world, recipe, output):
    """Neither on what the network says there, nor, where regions are given, on the labels; the coding term, which
    sees no image, not on the image either."""
    trainer = make_trainer(in_small_world, recipe, output)
    image, target = scribbles(trainer, output)
    result = run(trainer, image, target)
    ignored = ~trainer.network.known_voxels(target)

    def elsewhere(logits):
        return torch.where(_at_grid(ignored.float(), logits.shape[2:]).bool(), 7 - 3 * logits, logits)
    said = result._replace(
        estimate_logits=elsewhere(result.estimate_logits), coding_logits=elsewhere(result.coding_logits),
        denoiser_output=torch.where(result.known_share == 0, 50, result.denoiser_output),
        head_logits=[elsewhere(logits) for logits in result.head_logits])
    other_target = target.clone()
    if output == "sigmoid":
        other_target[:, :-1] = torch.where(ignored, 1 - target[:, :-1], target[:, :-1])
    for name, term in terms(trainer).items():
        value = term(result, target)
        assert torch.isfinite(value) and value != 0
        assert term(said, target).item() == pytest.approx(value.item(), abs=1e-6), name
    trainer.network.eval()  # training moves the statistics of codes
    value, relabelled = (run(trainer, image, each, recycling=False) for each in (target, other_target))
    repainted = run(trainer, torch.where(ignored, 5 - image, image), target, recycling=False)
    for name, term in terms(trainer).items():
        assert torch.equal(term(value, target), term(relabelled, other_target)), name
    assert torch.equal(value.coding_logits, repainted.coding_logits)
    assert not torch.equal(value.estimate_logits, repainted.estimate_logits), "an image is known everywhere"


@BOTH
@OUTPUTS
def test_it_trains_on_scribbles_and_on_nothing(in_small_world, recipe, output):
    """Losses fall on scribbles; a batch that is ignored altogether moves no weight but by the optimiser's momentum."""
    trainer = make_trainer(in_small_world, recipe, output)
    image, target = scribbles(trainer, output)
    losses = []
    for _ in range(4):
        trainer.optimizer.zero_grad()
        loss = trainer.loss(run(trainer, image, target), target)
        loss.backward()
        trainer.optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    nothing = torch.full_like(target, IGNORE) if output == "softmax" else torch.cat(
        [torch.zeros_like(target[:, :-1]), torch.ones_like(target[:, -1:])], dim=1)
    trainer.optimizer.zero_grad()
    loss = trainer.loss(run(trainer, image, nothing), nothing)
    loss.backward()
    assert torch.isfinite(loss)
    gradients = torch.cat([p.grad.flatten() for p in trainer.network.parameters() if p.grad is not None])
    assert torch.isfinite(gradients).all() and gradients.abs().max() < 1e-6
