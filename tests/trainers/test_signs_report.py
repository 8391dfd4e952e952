"""What the training says of the three signs."""

import json

import torch

from ldseg_auto.evaluation.latent_signs import SERIES
from ldseg_auto.trainers.signs_report import save_summary


def test_one_readable_line_and_a_file(tmp_path):
    per_case = {name: torch.full((3,), value) for name, value in zip(SERIES, (0.98, 0.7, 0.71, 0.9, 0.8, 0.81, 0.9),
                                                                     strict=True)}
    lines = []
    save_summary(per_case, 2, str(tmp_path), lines.append)
    signs, warning = lines
    assert signs.startswith("Signs of latent diffusion on 3 cases: use of the latent 4%, at least 25%: DOES NOT HOLD; ")
    assert "{" not in signs and signs.endswith(": holds.") and "regressor" in warning
    assert json.loads((tmp_path / "latent_signs.json").read_text())["label_coding_holds"]
