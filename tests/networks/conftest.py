"""Configurations of networks of a few voxels, as the plans would hold them."""

import pytest
from torch import nn


@pytest.fixture
def arch_kwargs():
    """A function (dimension, **changes) -> arch_kwargs; images are 16 voxels an axis, the default stride is 4."""
    def make(dimension: int = 3, **changes):
        conv = {2: nn.Conv2d, 3: nn.Conv3d}[dimension]
        norm = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}[dimension]
        kwargs = {
            "n_stages": 4, "features_per_stage": [4, 8, 8, 8], "conv_op": conv,
            "kernel_sizes": [[3] * dimension] * 4, "strides": [[1] * dimension] + [[2] * dimension] * 3,
            "n_conv_per_stage": [1, 1, 1, 1], "norm_op": norm, "norm_op_kwargs": {"eps": 1e-5, "affine": True},
            "nonlin": nn.LeakyReLU, "nonlin_kwargs": {"inplace": True},
            "latent_stride": [4] * dimension, "latent_channels": 2, "label_features": 8, "denoiser_features": [8, 16],
        }
        return kwargs | changes
    return make
