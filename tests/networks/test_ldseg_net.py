"""The joined network: shapes, gradients, and that every configured value changes something."""

import pytest
import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from torch import nn

from ldseg_auto.diffusion.objective import estimate_latent
from ldseg_auto.errors import LDSegError
from ldseg_auto.networks.ldseg_net import LDSegNet, TrainingOutput

SIZE = 16


def build(kwargs, classes=3, channels=1):
    torch.manual_seed(0)
    return LDSegNet(channels, classes, **kwargs)


def batch(dimension, classes=3, samples=2, channels=1):
    generator = torch.Generator().manual_seed(0)
    shape = (samples, 1, *[SIZE] * dimension)
    return (torch.randn((samples, channels, *shape[2:]), generator=generator),
            torch.randint(0, classes, shape, generator=generator).float())


def training_output(net, image, target, timestep=500):
    latent = net.encode_label(target).detach()
    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(1))
    return net(image, target, noise, torch.full((len(image),), timestep))


@pytest.mark.parametrize("dimension", [2, 3])
@pytest.mark.parametrize("stride", [1, 2, 4, 8])
def test_shapes(arch_kwargs, dimension, stride):
    net = build(arch_kwargs(dimension, latent_stride=[stride] * dimension))
    image, target = batch(dimension)
    output = training_output(net, image, target)
    assert isinstance(output, TrainingOutput)
    grid = (2, 2, *[SIZE // stride] * dimension)
    assert output.denoiser_output.shape == output.denoiser_target.shape == grid
    assert output.estimate_logits.shape == output.coding_logits.shape == (2, 3, *[SIZE] * dimension)
    assert output.head_logits[0].shape == output.estimate_logits.shape
    assert [logits.shape[-1] for logits in output.head_logits] == [SIZE // 2 ** i for i in
                                                                   range(len(output.head_logits))]
    assert net(image).shape == (2, 3, *[SIZE] * dimension)


def test_anisotropic_strides(arch_kwargs):
    kwargs = arch_kwargs(3, strides=[[1, 1, 1], [1, 2, 2], [2, 2, 2], [1, 2, 2]], latent_stride=[2, 4, 4],
                         kernel_sizes=[[1, 3, 3], [3, 3, 3], [3, 3, 3], [3, 3, 3]])
    net = build(kwargs)
    image = torch.randn(1, 1, 6, 16, 24)
    target = torch.randint(0, 3, image.shape).float()
    assert net.encode_label(target).shape == (1, 2, 3, 4, 6)
    assert net.encode_image(image).shape[2:] == (3, 4, 6)
    assert net(image).shape == (1, 3, 6, 16, 24)


def test_first_stage_may_have_a_stride(arch_kwargs):
    net = build(arch_kwargs(2, strides=[[2, 2]] * 4, latent_stride=[4, 4]))
    assert net(torch.zeros(2, 1, 32, 32)).shape == (2, 3, 32, 32)


@pytest.mark.parametrize("dimension", [2, 3])
def test_every_parameter_learns(arch_kwargs, dimension):
    net = build(arch_kwargs(dimension))
    image, target = batch(dimension)
    # residual branches start at zero: what lies before them gets its gradient from the second step on
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    for _ in range(3):
        optimizer.zero_grad()
        output = training_output(net, image, target)
        (output.estimate_logits.square().mean() + output.coding_logits.square().mean()
         + (output.denoiser_output - output.denoiser_target).square().mean()
         + sum(logits.square().mean() for logits in output.head_logits)).backward()
        optimizer.step()
    silent = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    # before instance normalisation a bias has no effect
    assert [name for name in silent if not name.endswith("conv.bias")
            and not name.endswith("all_modules.0.bias")] == []


def test_nnunets_loader_builds_it_from_plans(arch_kwargs):
    kwargs = arch_kwargs(3)
    names = {"conv_op": "torch.nn.modules.conv.Conv3d", "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
             "nonlin": "torch.nn.LeakyReLU", "dropout_op": None}
    net = get_network_from_plans("ldseg_auto.networks.ldseg_net.LDSegNet", kwargs | names, tuple(names), 2, 3,
                                 allow_init=True, deep_supervision=False)
    assert isinstance(net, LDSegNet)
    assert net.image_encoder.encoder.stages[0][0].convs[0].conv.in_channels == 2
    attention = net.denoiser.attention.out
    assert not attention.weight.any(), "nnU-Net's initialisation must leave zeroed layers alone"


def test_deep_supervision_is_refused(arch_kwargs):
    with pytest.raises(LDSegError, match="deep supervision"):
        LDSegNet(1, 3, deep_supervision=True, **arch_kwargs())


def test_wrong_image_size_is_named(arch_kwargs):
    net = build(arch_kwargs(2))
    with pytest.raises(ValueError, match=r"\(16, 20\)"):
        net(torch.zeros(1, 1, 16, 20))


def test_target_needs_noise(arch_kwargs):
    net = build(arch_kwargs(2))
    with pytest.raises(ValueError, match="noise"):
        net(*batch(2))


@pytest.mark.parametrize("changes", [
    {"latent_channels": 5}, {"label_features": 64}, {"denoiser_features": [8, 24]}, {"denoiser_features": [8]},
    {"denoiser_blocks": 2}, {"latent_stride": [2, 2]}, {"encoder": "residual"}, {"n_conv_per_stage": [2, 1, 1, 1]},
    {"conv_bias": False}, {"norm_op": None, "norm_op_kwargs": None},
], ids=str)
def test_every_structural_value_changes_the_parameters(arch_kwargs, changes):
    def shapes(net):
        return {name: tuple(p.shape) for name, p in net.named_parameters()}
    assert shapes(build(arch_kwargs(2))) != shapes(build(arch_kwargs(2, **changes)))


@pytest.mark.parametrize("changes", [
    {"schedule": "linear"}, {"schedule": "quadratic"}, {"prediction": "v"},
    {"prediction": "eps", "zero_terminal_snr": False}, {"timesteps": 500}, {"standardisation": "sample"},
    {"nonlin_kwargs": {"negative_slope": 0.5}}, {"norm_op_kwargs": {"eps": 1.0, "affine": True}},
    {"dropout_op": nn.Dropout2d, "dropout_op_kwargs": {"p": 0.9}},
], ids=str)
def test_every_numerical_value_changes_the_training_output(arch_kwargs, changes):
    image, target = batch(2)

    def output(**changes):
        net = build(arch_kwargs(2, **changes))
        results = [training_output(net, image, target, timestep) for timestep in (400, net.config.timesteps)]
        return torch.cat([part.flatten() for r in results for part in (r.estimate_logits, r.denoiser_target)])
    assert not torch.allclose(output(), output(**changes), atol=1e-4)


def test_zero_terminal_snr_changes_the_last_timestep(arch_kwargs):
    # with the quadratic schedule 7 % of the latent's amplitude are left at T without it
    signals = [build(arch_kwargs(2, schedule="quadratic", zero_terminal_snr=z)).alpha_bar[-1].item()
               for z in (True, False)]
    assert signals[0] == 0 and signals[1] > 1e-3


@pytest.mark.parametrize("changes", [{"sampler_steps": 7}, {"sampler_samples": 2},
                                     {"sampler_steps": 3, "sampler_eta": 1.0}], ids=str)
def test_the_default_sampler_is_used(arch_kwargs, changes):
    image, _ = batch(2)
    a, b = build(arch_kwargs(2, sampler_steps=3)).eval(), build(arch_kwargs(2, **{"sampler_steps": 3} | changes)).eval()
    for net in (a, b):  # a denoiser at initialisation ignores z_t almost: make it depend on it
        nn.init.normal_(net.denoiser.from_latent.weight, std=1.0)
        nn.init.normal_(net.denoiser.out[-1].weight, std=1.0)
    b.load_state_dict(a.state_dict())
    assert not torch.allclose(a(image), b(image), atol=1e-6)


def test_prediction_is_repeatable_and_does_not_depend_on_the_batch(arch_kwargs):
    net = build(arch_kwargs(3)).eval()
    image, _ = batch(3)
    together = net(image)
    assert torch.equal(together, net(image))
    assert torch.allclose(together[:1], net(image[:1]), atol=1e-5)


@pytest.mark.parametrize("prediction", ["x0", "v"])
def test_recycling_shows_the_denoiser_what_two_step_sampling_shows_it(arch_kwargs, prediction):
    net = build(arch_kwargs(2, prediction=prediction)).eval()
    nn.init.normal_(net.denoiser.from_latent.weight)
    image, target = batch(2)
    noise = torch.randn(2, 2, 4, 4, generator=torch.Generator().manual_seed(2))
    seen = []
    net.denoiser.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    net.sample(net.encode_image(image), noise, steps=2, eta=0.0)
    output = net(image, target, noise, torch.full((2,), 500), torch.tensor([True, False]))
    assert torch.allclose(seen[-1][0], seen[1][0], atol=1e-5)
    assert not torch.allclose(seen[-1][1], seen[1][1], atol=1e-3)
    # a denoiser that hits its target finds the true latent all the same
    signal = net.alpha_bar[torch.full((2,), 500)]
    assert torch.allclose(estimate_latent(prediction, output.denoiser_target, seen[-1], signal),
                          net.encode_label(target), atol=1e-4)


def test_sampler_context_is_undone(arch_kwargs):
    net = build(arch_kwargs(2))
    before = net.config
    with net.sampler(steps=1, samples=1):
        assert (net.config.sampler_steps, net.config.sampler_samples) == (1, 1)
    assert net.config == before


def test_logits_invert_probabilities(arch_kwargs):
    logits = torch.randn(2, 3, 4, 4)
    for output in ("softmax", "sigmoid"):
        net = build(arch_kwargs(2, output=output))
        probabilities = net.probabilities(logits)
        assert torch.allclose(net.probabilities(net.logits(probabilities, 1e-6)), probabilities, atol=1e-6)


def test_ignored_voxels_belong_to_no_class(arch_kwargs):
    net = build(arch_kwargs(2, ignore_label=3))
    target = torch.tensor([[0.0, 1.0], [2.0, 3.0]])[None, None]
    channels = net.label_channels(target)
    assert channels.sum(1).tolist() == [[[1, 1], [1, 0]]]
    assert channels[0].argmax(0)[1, 0] == 2


def test_regions_may_overlap_and_are_masked_where_ignored(arch_kwargs):
    net = build(arch_kwargs(2, output="sigmoid", ignore_label=4), classes=2)
    target = torch.tensor([[1, 1, 1], [1, 0, 1], [0, 0, 1]], dtype=torch.bool)[None, :, None]  # two regions, ignore
    assert net.label_channels(target)[0, :, 0].tolist() == [[1, 1, 0], [1, 0, 0]]
    assert net(torch.zeros(1, 1, SIZE, SIZE)).shape == (1, 2, SIZE, SIZE)


@pytest.mark.parametrize("encoder", ["plain", "residual"])
def test_the_image_encoder_starts_as_nnunets(arch_kwargs, encoder):
    encoder_part = build(arch_kwargs(3, encoder=encoder, features_per_stage=[32] * 4)).image_encoder
    convolutions = [m for m in encoder_part.modules() if isinstance(m, nn.Conv3d) and m.in_channels == 32
                    and m.kernel_size == (3, 3, 3)]
    assert convolutions
    for convolution in convolutions:
        assert convolution.weight.std().item() == pytest.approx((2 / (27 * 32)) ** 0.5, rel=0.05)
        assert not convolution.bias.any()
    if encoder == "residual":
        blocks = [block for stage in encoder_part.encoder.stages for block in stage.blocks]
        assert all(not block.conv2.norm.weight.any() for block in blocks), "each starts as its shortcut"
