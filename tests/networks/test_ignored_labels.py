"""Ignored voxels are unknown: neither background nor anything else, and no term of the loss looks at them."""

import pytest
import torch

from ldseg_auto.evaluation.latent_signs import signs_per_patch
from ldseg_auto.networks.ldseg_net import LDSegNet
from ldseg_auto.trainers.code_start import start_from_principal_components

IGNORE = 3
HEADS = {"softmax": 3, "sigmoid": 2}
OUTPUTS = pytest.mark.parametrize("output", list(HEADS))


@pytest.fixture
def build(arch_kwargs):
    """(output, **changes) -> a 2D network of three labels (or the regions "any" and "core") and an ignore label."""
    def make(output, **changes):
        torch.manual_seed(0)
        return LDSegNet(1, HEADS[output], **arch_kwargs(2, output=output, ignore_label=IGNORE, **changes))
    return make


def as_target(labels, ignored, output):
    """nnU-Net's target of a label map (B, 1, *S) of which some voxels are ignored."""
    if output == "softmax":
        return torch.where(ignored, IGNORE, labels).float()
    return torch.cat([(labels > 0) & ~ignored, (labels > 1) & ~ignored, ignored], dim=1).float()


class Nothing(torch.nn.Module):
    """Adds nothing to the code of the linear path."""

    def forward(self, labels):
        return torch.zeros(())


def nested_squares(samples=12):
    labels = torch.zeros(samples, 1, 16, 16, dtype=torch.long)
    places = torch.randint(0, 6, (samples, 2), generator=torch.Generator().manual_seed(0)).tolist()
    for each, (row, column) in zip(labels, places, strict=True):
        each[:, row:row + 10, column:column + 10] = 1
        each[:, row + 3:row + 8, column + 2:column + 7] = 2
    return labels


def some_voxels(share, shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(1)) < share


@pytest.fixture
def coded(build):
    """(output) -> a network whose code is a principal component analysis of nested squares."""
    def make(output):
        net = build(output, latent_channels=8)
        labels = nested_squares()
        start_from_principal_components(net, [as_target(labels, torch.zeros_like(labels, dtype=torch.bool), output)])
        return net.eval()
    return make


@OUTPUTS
def test_the_code_of_nothing_known_lies_in_the_middle(coded, output):
    net = coded(output)
    everywhere = torch.ones(1, 1, 16, 16, dtype=torch.bool)
    codes = [net.encode_label(as_target(torch.full((1, 1, 16, 16), label), ~everywhere, output)) for label in range(3)]
    middle = sum(codes) / 3 if output == "softmax" else (codes[0] + codes[2]) / 2
    nothing = net.encode_label(as_target(torch.zeros(1, 1, 16, 16, dtype=torch.long), everywhere, output))
    assert torch.allclose(nothing, middle, atol=1e-4)
    assert (nothing - codes[0]).abs().max() > 0.3, "background has another code"


@OUTPUTS
@pytest.mark.parametrize("label", [0, 1, 2])
def test_half_of_the_voxels_tell_what_the_patch_holds(coded, output, label):
    """Its code lies nearest to that of the label, and farther from background than with a background half."""
    net = coded(output)
    shape = (1, 1, 16, 16)
    known = torch.zeros(shape, dtype=torch.bool)
    whole = [net.encode_label(as_target(torch.full(shape, each), known, output)) for each in range(3)]
    ignored = some_voxels(0.5, shape)
    half = net.encode_label(as_target(torch.full(shape, label), ignored, output))
    distances = [(half - code).norm().item() for code in whole]
    assert min(distances) == distances[label]
    if label:
        filled = net.encode_label(as_target(torch.full(shape, label) * ~ignored, known, output))
        way = whole[label] - whole[0]  # from background to the label
        unknown, background = (((code - whole[0]) * way).sum() / way.square().sum() for code in (half, filled))
        assert background < 0.55 and unknown > background + 0.1


def test_known_share_is_that_of_each_positions_voxels(build):
    target = torch.zeros(1, 1, 16, 16)
    target[..., :4, :2] = IGNORE
    target[..., 4:8, 4:8] = IGNORE
    share = build("softmax").known_share(target)
    assert share[0, 0, :2, :2].tolist() == [[0.5, 1], [1, 0]] and share.shape == (1, 1, 4, 4)
    assert torch.equal(share, build("sigmoid").known_share(as_target(target.long(), target == IGNORE, "sigmoid")))


def test_without_an_ignore_label_nothing_is_weighed(arch_kwargs):
    assert LDSegNet(1, 3, **arch_kwargs(2)).known_share(torch.zeros(1, 1, 16, 16)) is None


@pytest.mark.parametrize("standardisation", ["tracked", "sample"])
def test_what_regions_hold_under_ignored_voxels_reaches_nothing(build, standardisation):
    net = build("sigmoid", standardisation=standardisation).eval()
    labels = nested_squares(2)
    target = as_target(labels, some_voxels(0.6, labels.shape), "sigmoid")
    other = torch.where(target[:, -1:].bool(), 1 - target, target)
    other[:, -1:] = target[:, -1:]
    assert not torch.equal(target, other)
    assert torch.equal(net.encode_label(target), net.encode_label(other))
    image = torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    signs = [signs_per_patch(net, image, each, torch.Generator().manual_seed(0), 2, 2) for each in (target, other)]
    for name in signs[0]:
        assert torch.equal(signs[0][name], signs[1][name])


@OUTPUTS
def test_statistics_are_those_of_what_is_known(build, output):
    """Codes would otherwise be scaled by how much of the patches nobody annotated."""
    labels = nested_squares()
    nothing = torch.zeros_like(labels, dtype=torch.bool)
    nets = [build(output), build(output)]
    for net, padding in zip(nets, (0, 3), strict=True):  # three more patches' width, all ignored
        # the padding's border changes the codes beside it: they must not see each other
        net.label_encoder.body = Nothing()
        widened = torch.cat([as_target(labels, nothing, output),
                             *[as_target(labels, ~nothing, output)] * padding], dim=-1)
        net.encode_label(widened)
    for name in ("mean", "variance"):
        assert torch.allclose(*(getattr(net.label_encoder.standardise, name) for net in nets), atol=1e-5)
    assert nets[0].label_encoder.standardise.variance.min() > 1e-4


def test_the_published_estimate_is_scaled_by_what_is_known(build):
    """What a denoiser says where nobody told it what to say must not scale the rest."""
    net = build("softmax", standardisation="sample", prediction="eps", zero_terminal_snr=False)
    noisy, output = torch.randn(2, 1, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    known = (torch.arange(4) < 2).float().expand(1, 1, 4, 4)
    signal = torch.tensor([0.5])
    estimates = [net.estimate(torch.where(known > 0, output, says), noisy, signal, known) for says in (0.0, 50.0)]
    assert torch.allclose(*(estimate[..., :2] for estimate in estimates), atol=1e-5)
    assert not torch.allclose(net.estimate(output, noisy, signal)[..., :2], estimates[0][..., :2], atol=1e-2)
    inside = torch.zeros(1, 1, 16, 16)
    inside[..., 8:] = IGNORE
    torch.manual_seed(0)
    image, noise = torch.randn(1, 1, 16, 16), torch.randn(1, 2, 4, 4)
    result = net(image, inside, noise, torch.tensor([500]))
    noisy = net.alpha_bar[500].sqrt() * net.encode_label(inside) + (1 - net.alpha_bar[500]).sqrt() * noise
    used = net.estimate(result.denoiser_output, noisy, net.alpha_bar[500:501], result.known_share)
    assert torch.allclose(net.decode(used), result.estimate_logits, atol=1e-4)


@OUTPUTS
@pytest.mark.parametrize("prediction", ["x0", "eps"])
def test_a_batch_in_which_all_is_ignored(build, output, prediction):
    """It moves no statistics, and everything stays finite."""
    sample = prediction == "eps"  # as the published recipe has it
    net = build(output, prediction=prediction, zero_terminal_snr=not sample, latent_channels=1,
                standardisation="sample" if sample else "tracked")
    labels = nested_squares(2)
    target = as_target(labels, torch.ones_like(labels, dtype=torch.bool), output)
    result = net(torch.randn(2, 1, 16, 16), target, torch.randn(2, 1, 4, 4), torch.tensor([3, 1000]))
    for tensor in (result.estimate_logits, result.coding_logits, result.denoiser_output, result.denoiser_target):
        assert torch.isfinite(tensor).all()
    assert not result.known_share.any()
    if not sample:
        statistics = net.label_encoder.standardise
        assert statistics.updates == 0 and not statistics.mean.any() and (statistics.variance == 1).all()


@OUTPUTS
def test_signs_leave_out_patches_that_nobody_annotated(build, output):
    net = build(output).eval()
    labels = nested_squares(2)
    ignored = torch.zeros_like(labels, dtype=torch.bool)
    ignored[1] = True
    signs = signs_per_patch(net, torch.randn(2, 1, 16, 16), as_target(labels, ignored, output),
                            torch.Generator().manual_seed(0), 2, 2)
    for values in signs.values():
        assert torch.isfinite(values[0]) and torch.isnan(values[1])
