"""Tests share nothing with the user's nnU-Net folders and start no more processes than they need."""

import os
from pathlib import Path

import pytest

# Read by nnU-Net when it is imported: before any test module imports it.
os.environ["nnUNet_n_proc_DA"] = "0"
os.environ["nnUNet_def_n_proc"] = "1"
os.environ["nnUNet_compile"] = "false"
os.environ["MPLBACKEND"] = "Agg"
for _variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results", "nnUNet_extTrainer"):
    os.environ.pop(_variable, None)


@pytest.fixture
def nnunet_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """nnU-Net's three folders, empty, with the environment variables that name them."""
    folders = {}
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        folders[variable] = tmp_path / variable
        folders[variable].mkdir()
        monkeypatch.setenv(variable, str(folders[variable]))
    return folders
