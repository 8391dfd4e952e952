"""The optimiser's step, left out where loss or gradient is not a finite number, and not for ever."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from ldseg_auto.collectives import gathered, mean_over_ranks
from ldseg_auto.errors import LDSegError, named

MOST_IN_A_ROW = 10
_MAX_GRADIENT_NORM = 12.0  # nnU-Net's


class GuardedStep:
    """Backward pass, clipping and the optimiser's step of an iteration; of several processes, all step or none does.

    Args:
        log: is told of iterations that are left out.
    """

    def __init__(self, log: Callable[[str], None]):
        self._log = log
        self._left_out_in_a_row = 0

    def __call__(self, loss: torch.Tensor, network: nn.Module, optimizer: torch.optim.Optimizer,
                 scaler: torch.amp.GradScaler | None, batch: Mapping[str, Any]) -> tuple[float, bool]:
        """Change the weights, if loss and gradient are finite.

        Args:
            loss: of the iteration.
            scaler: for half precision, whose gradient overflows now and then until the scale fits; halves it then.
            batch: nnU-Net's, for the message.

        Returns:
            The loss (of several processes the mean), and whether the weights were changed.

        Raises:
            LDSegError: it is the tenth iteration in a row that is left out.
        """
        if scaler is None:
            loss.backward()
        else:
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
        norm = nn.utils.clip_grad_norm_(network.parameters(), _MAX_GRADIENT_NORM)
        # the device is waited for once; the mean is no number where one of the processes has none
        value, gradient = mean_over_ranks(torch.stack((loss.detach().float(), norm.float()))).tolist()
        accepted = math.isfinite(value) and math.isfinite(gradient)
        if accepted and scaler is None:
            optimizer.step()
        elif accepted and scaler is not None:
            scaler.step(optimizer)
        if scaler is not None:
            scaler.update()
        self._left_out_in_a_row = 0 if accepted else self._left_out_in_a_row + 1
        if not accepted and not (scaler is not None and math.isfinite(value)):
            self._log(f"WARNING: the loss is {value:g}, its gradient {gradient:g}: this iteration is left out.")
        if self._left_out_in_a_row >= MOST_IN_A_ROW:
            raise _error(value, batch, optimizer.param_groups[0]["lr"], scaler is not None)
        return value, accepted


def _error(loss: float, batch: Mapping[str, Any], learning_rate: float, half_precision: bool) -> LDSegError:
    cause = (f"In {MOST_IN_A_ROW} iterations in a row the loss or its gradient was not a finite number (the last loss: "
             f"{loss:g}).")
    here = {str(case) for case, image in zip(batch.get("keys", ()), batch["data"], strict=False)
            if not torch.isfinite(image).all()}
    broken = sorted(set().union(*gathered(here)))
    if broken:
        return LDSegError(f"{cause} The preprocessed images of {named(broken)} hold values that are no numbers.",
                          "Correct these images and preprocess again (ldseg_plan_and_preprocess); the training then "
                          "goes on after its last finished epoch.")
    precision = " or half precision overflows on this GPU (-device cpu would tell)" if half_precision else ""
    return LDSegError(f"{cause} The images are not the cause.",
                      f"Most likely the learning rate ({learning_rate:g} now) is too high{precision}: set a lower "
                      "`learning_rate` in a trainer of your own (-tr). The last finished epoch is saved.")
