"""Where small data sets go."""

from pathlib import Path

import pytest
from data_sets import NAME


@pytest.fixture
def raw(nnunet_folders: dict[str, Path]) -> Path:
    """Where the data set goes, not written yet."""
    return nnunet_folders["nnUNet_raw"] / NAME
