"""The configuration refuses what the network could not honour."""

import pytest
from torch import nn

from ldseg_auto.config import LDSegConfig
from ldseg_auto.errors import LDSegError

VALID = {"n_stages": 3, "features_per_stage": [4, 8, 8], "conv_op": nn.Conv2d, "kernel_sizes": [[3, 3]] * 3,
         "strides": [[1, 1], [1, 2], [2, 2]], "n_conv_per_stage": [1, 1, 1], "latent_stride": [1, 2],
         "latent_channels": 4}


def test_round_trip():
    config = LDSegConfig.from_arch_kwargs(VALID)
    assert LDSegConfig.from_arch_kwargs(config.to_arch_kwargs()) == config
    assert config.strides == ((1, 1), (1, 2), (2, 2))
    assert config.latent_stage == 1


@pytest.mark.parametrize(("changes", "cause"), [
    ({"latent_width": 3}, "latent_width"),
    ({"latent_stride": [4, 4]}, "pooling path"),
    ({"schedule": "sigmoid"}, "sigmoid"),
    ({"prediction": "score"}, "score"),
    ({"standardisation": "batch"}, "batch"),
    ({"output": "argmax"}, "argmax"),
    ({"encoder": "transformer"}, "transformer"),
    ({"prediction": "eps"}, "divides by zero"),
    ({"latent_channels": 0}, "latent_channels"),
    ({"sampler_steps": 0}, "sampler_steps"),
])
def test_mistakes_are_named(changes, cause):
    with pytest.raises(LDSegError, match=cause):
        LDSegConfig.from_arch_kwargs(VALID | changes)


def test_missing_keys_are_named():
    with pytest.raises(LDSegError, match="latent_stride"):
        LDSegConfig.from_arch_kwargs({k: v for k, v in VALID.items() if k != "latent_stride"})
