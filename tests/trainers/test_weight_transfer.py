"""Which weights of a checkpoint a network takes over, and which not, on networks of a few voxels."""

import numpy as np
import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from torch import nn

from ldseg_auto.errors import LDSegError
from ldseg_auto.networks.ldseg_net import LDSegNet
from ldseg_auto.sharing.opening import _NotBuilt
from ldseg_auto.trainers.weight_transfer import (
    as_list,
    describe,
    from_nnunet,
    read_start,
    save_list,
    transfer,
    weights_of,
    without_wrappers,
)

SHARED = {"n_stages": 3, "features_per_stage": [4, 6, 8], "conv_op": nn.Conv2d, "kernel_sizes": [[3, 3]] * 3,
          "strides": [[1, 1], [2, 2], [2, 2]], "conv_bias": True, "norm_op": nn.InstanceNorm2d,
          "norm_op_kwargs": {"eps": 1e-5, "affine": True}, "nonlin": nn.LeakyReLU}
ENCODER = "image_encoder.encoder."


def build(channels=1, labels=3, **changes):
    kwargs = SHARED | {"n_conv_per_stage": [1, 2, 2], "latent_stride": [2, 2], "latent_channels": 4,
                       "label_features": 8, "denoiser_features": [8]}
    return LDSegNet(channels, labels, **kwargs | changes)


def unet(cls=PlainConvUNet, channels=1, convs=(2, 2, 2), **changes):
    """As nnU-Net builds it; all its weights are random numbers, norms too."""
    kind = "n_conv_per_stage" if cls is PlainConvUNet else "n_blocks_per_stage"
    net = cls(channels, num_classes=3, n_conv_per_stage_decoder=[2, 2], deep_supervision=True,
              **SHARED | {kind: list(convs)} | changes)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_()
    return net


def taken(network, other):
    """What the network takes over from the checkpoint of another one."""
    given = without_wrappers(other.state_dict())
    own = weights_of(network)
    return transfer(own, given if isinstance(other, LDSegNet) else from_nnunet(given, own))


def parts(found):
    """The modules of which weights stay as they are."""
    return {name.split(".")[0] for name in found.left}


def test_of_the_same_network_everything_is_taken():
    found = taken(build(), build())
    assert not found.left and not found.unused
    assert "label_encoder.standardise.updates" in found.loaded, "statistics, too"
    assert len(found.loaded) == len(set(found.loaded)) == len(list(build().parameters())) + 3


@pytest.mark.parametrize("change, left", [
    ({"channels": 2}, {"image_encoder"}),
    ({"labels": 4}, {"label_encoder", "label_decoder", "denoiser", "heads"}),
    ({"latent_channels": 6}, {"label_encoder", "label_decoder", "denoiser"}),
    ({"label_features": 64}, {"label_encoder", "label_decoder", "denoiser"}),
    ({"standardisation": "sample"}, {"label_encoder", "label_decoder", "denoiser"}),
    ({"denoiser_features": [16]}, {"denoiser"}),
    ({"prediction": "v"}, {"denoiser"}),
    ({"latent_stride": [4, 4]}, {"image_encoder", "label_encoder", "label_decoder", "denoiser", "heads"})])
@pytest.mark.parametrize("forward", [True, False])
def test_parts_that_do_not_fit_are_left(change, left, forward):
    networks = build(**change), build()
    found = taken(*(networks if forward else networks[::-1]))
    assert parts(found) == left - ({"image_encoder"} if "latent_stride" in change and forward else set())
    assert found.loaded and set(found.loaded) | set(found.left) == set(weights_of(networks[not forward]))


def test_of_other_channels_the_first_layer_is_left_and_nothing_else():
    found = taken(build(channels=2), build())
    first = f"{ENCODER}stages.0.0.convs.0."
    assert set(found.left) == {first + name for name in ("conv.weight", "conv.bias", "norm.weight", "norm.bias")}
    assert set(found.left.values()) == {
        f"{first}conv.weight has shape (4, 2, 3, 3) here and (4, 1, 3, 3) in the checkpoint"}


def test_another_depth_of_stages_leaves_what_is_not_there():
    two, one = {"n_conv_per_stage": [2, 2, 2]}, {"n_conv_per_stage": [1, 2, 2]}
    found = taken(build(**one), build(**two))
    assert not found.left and {name.split(".convs.")[0] for name in found.unused} == {f"{ENCODER}stages.0.0"}
    assert set(taken(build(**two), build(**one)).left.values()) == {
        f"{ENCODER}stages.0.0.convs.1.conv.weight is not in the checkpoint"}


def test_another_width_of_a_stage_leaves_that_stage_and_what_reads_it():
    found = taken(build(features_per_stage=[4, 6, 10]), build())
    left = {name.removeprefix(ENCODER).rsplit(".", 2)[0] for name in found.left if name.startswith(ENCODER)}
    assert left == {"stages.2.0.convs.0", "stages.2.0.convs.1"}
    assert f"{ENCODER}stages.1.0.convs.1.conv.weight" in found.loaded


@pytest.mark.parametrize("cls, encoder", [(PlainConvUNet, "plain"), (ResidualEncoderUNet, "residual")])
@pytest.mark.parametrize("wrapper", ["", "module.", "_orig_mod.", "module._orig_mod."])
def test_the_encoder_of_a_unet_computes_the_same_here(cls, encoder, wrapper):
    """Up to the condition, which comes from the lowest stages of its decoder."""
    network, other = build(encoder=encoder).eval(), unet(cls, convs=(1, 2, 2)).eval()
    weights = {wrapper + name: value for name, value in other.state_dict().items()}
    own = weights_of(network)
    found = transfer(own, from_nnunet(without_wrappers(weights), own))
    with torch.no_grad():
        for name, value in found.loaded.items():
            own[name].copy_(value)
    image = torch.randn(1, 1, 16, 16)
    *_, skip, deepest = other.encoder(image)
    condition = other.decoder.stages[0](torch.cat([other.decoder.transpconvs[0](deepest), skip], 1))
    assert torch.allclose(network.encode_image(image), condition, rtol=1e-4, atol=1e-4)
    assert parts(found) == {"label_encoder", "label_decoder", "denoiser", "heads"}
    assert {name.removeprefix("image_encoder.").split(".1.")[0] for name in found.unused} >= {"decoder.seg_layers"}
    assert not any(name.startswith("decoder.encoder") for name in found.unused), "the encoder's other names"


def test_a_unet_of_two_convolutions_a_stage_fits_one_of_one():
    found = taken(build(), unet())
    assert not any(name.startswith("image_encoder") for name in found.left)
    assert f"{ENCODER}stages.0.0.convs.1.conv.weight" in found.unused


def test_the_decoder_of_a_deeper_unet_has_no_place():
    deeper = {"n_stages": 4, "features_per_stage": [4, 6, 8, 8], "kernel_sizes": [[3, 3]] * 4,
              "strides": [[1, 1], *[[2, 2]] * 3], "n_conv_per_stage_decoder": [2, 2, 2]}
    net = PlainConvUNet(1, num_classes=3, deep_supervision=False, **SHARED | {"n_conv_per_stage": [2] * 4} | deeper)
    found = taken(build(), net)
    assert {name.split(".")[1] for name in found.left if name.startswith("image_encoder")} == {"up", "merge"}
    assert "decoder.stages.0.convs.0.conv.weight" in found.unused


@pytest.mark.parametrize("here, there", [("plain", ResidualEncoderUNet), ("residual", PlainConvUNet)])
def test_an_encoder_of_the_other_kind_does_not_fit(here, there):
    assert not [name for name in taken(build(encoder=here), unet(there)).loaded]


def test_the_list_says_what_was_loaded_and_why_the_rest_was_not(tmp_path):
    network = build(channels=2, labels=4)
    own = weights_of(network)
    report = {"checkpoint": "a.pth", "given_as": "-pretrained_weights"} | as_list(own, taken(network, build()))
    assert sum(part["values"] for part in report["parts"].values()) == sum(value.numel() for value in own.values())
    head, image_encoder, autoencoder, denoiser, heads, unused = describe(report)
    left = 4 * 2 * 9 + 3 * 4
    total = report["parts"]["image encoder"]["values"]
    assert head == "Weights from a.pth (-pretrained_weights):"
    assert image_encoder.startswith(f"  image encoder: {total - left:,} of {total:,} values; the others not: ")
    assert image_encoder.count(";") == 1 and "(4, 2, 3, 3) here and (4, 1, 3, 3)" in image_encoder
    assert "label autoencoder: 0 of" in autoencoder and "a whole or nothing: label_encoder" in autoencoder
    assert "code of a label autoencoder that is not loaded" in denoiser and "heads: 0 of" in heads
    assert unused.startswith("  0 weights")
    save_list(tmp_path, report)
    assert set((tmp_path / "loaded_weights.json").read_text().split('"')) >= set(own)
    save_list(tmp_path, None)
    assert not list(tmp_path.iterdir())


def write(file, network, **more):
    torch.save({"network_weights": network.state_dict(), **more}, file)
    return str(file)


def test_numbers_of_numpy_are_no_obstacle(tmp_path):
    """nnU-Net's own checkpoints hold them; values of the weights are as they were."""
    net = unet()
    numbers = {"_best_ema": np.float64(0.5), "logging": {"a": [np.float32(1), np.int64(2), np.bool_(True)]}}
    start = read_start(None, write(tmp_path / "a.pth", net, **numbers))
    assert all(torch.equal(value, start.weights[name]) for name, value in net.state_dict().items())
    assert _NotBuilt not in [each[0] for each in torch.serialization.get_safe_globals() if isinstance(each, tuple)]
    assert read_start(None, None) is None


def test_checkpoints_of_the_other_kind_are_refused(tmp_path):
    ours, theirs = write(tmp_path / "ours.pth", build()), write(tmp_path / "theirs.pth", unet())
    with pytest.raises(LDSegError, match="theirs.pth holds no weights of an LDSegNet.*--encoder_weights of nnU-Net's"):
        read_start(theirs, None)
    with pytest.raises(LDSegError, match="ours.pth holds no weights of nnU-Net's.*-pretrained_weights takes"):
        read_start(None, ours)
