"""Steps whose loss is no number, on a network of one weight."""

import numpy as np
import pytest
import torch
from torch import nn

from ldseg_auto.errors import LDSegError
from ldseg_auto.trainers.guarded_step import MOST_IN_A_ROW, GuardedStep

NAN, INF = float("nan"), float("inf")
BATCH = {"data": torch.zeros(2, 1, 4, 4), "keys": np.array(["a", "b"])}


class Training:
    """The step on the loss weight * factor + constant."""

    def __init__(self, scaler=None):
        self.network = nn.Linear(1, 1, bias=False)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=0.5)
        self.scaler = scaler
        self.told = []
        self.guarded = GuardedStep(self.told.append)

    def step(self, factor=1.0, constant=0.0, batch=BATCH):
        self.optimizer.zero_grad(set_to_none=True)
        loss = (self.network.weight * factor + constant).sum()
        return self.guarded(loss, self.network, self.optimizer, self.scaler, batch)

    @property
    def weight(self):
        return self.network.weight.item()


@pytest.mark.parametrize(("factor", "constant"), [(NAN, 0.0), (INF, 0.0), (1.0, NAN), (1.0, INF)])
def test_a_step_without_finite_loss_or_gradient_changes_nothing(factor, constant):
    training = Training()
    training.step()
    before, state = training.weight, [v.clone() for v in training.optimizer.state[training.network.weight].values()]
    loss, changed = training.step(factor, constant)
    assert not np.isfinite(loss) and not changed and len(training.told) == 1
    assert training.weight == before
    assert all(torch.equal(a, b) for a, b in
               zip(state, training.optimizer.state[training.network.weight].values(), strict=True))
    loss, changed = training.step()
    assert changed and loss == pytest.approx(before) and training.weight != before


def test_gradients_are_clipped_as_nnunet_does():
    training = Training()
    training.optimizer = torch.optim.SGD(training.network.parameters(), lr=1.0)
    before = training.weight
    training.step(factor=1000.0)
    assert training.weight == pytest.approx(before - 12, abs=1e-3)


def test_ten_in_a_row_end_the_training_with_the_likely_cause():
    training = Training()
    for _ in range(MOST_IN_A_ROW - 1):
        training.step(NAN)
    assert training.step()[1], "one good step, and the count starts anew"
    for _ in range(MOST_IN_A_ROW - 1):
        training.step(NAN)
    with pytest.raises(LDSegError, match=r"10 iterations in a row.*loss: nan.*learning rate \(0.5 now\)"):
        training.step(NAN)


def test_images_that_hold_no_numbers_are_named():
    training = Training()
    broken = {**BATCH, "data": BATCH["data"].clone()}
    broken["data"][1, 0, 2, 2] = NAN
    for _ in range(MOST_IN_A_ROW - 1):
        training.step(NAN, batch=broken)
    with pytest.raises(LDSegError, match="images of b hold values that are no numbers.*preprocess again"):
        training.step(NAN, batch=broken)


def test_half_precision_halves_its_scale_without_a_word_for_overflows():
    training = Training(torch.amp.GradScaler("cpu", init_scale=2.0 ** 20))
    before = training.weight
    loss, changed = training.step(factor=1e35)  # finite, times the scale it is not
    assert not changed and np.isfinite(loss) and training.weight == before
    assert training.scaler.get_scale() == 2.0 ** 19 and not training.told
    assert training.step()[1] and training.weight != before
    assert not training.step(NAN)[1] and len(training.told) == 1 and training.scaler.get_scale() == 2.0 ** 18
    with pytest.raises(LDSegError, match="half precision overflows"):
        for _ in range(MOST_IN_A_ROW):
            training.step(factor=1e38)
