"""Memory of prediction: what grows with the volume, and the whole of it for a very large one."""

import json
import os
import subprocess
import sys
from math import prod
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("large_volume.py")
MIB = 1 << 20


def run(folder, *arguments):
    command = [sys.executable, str(SCRIPT), str(folder), *map(str, arguments)]
    ended = subprocess.run(command, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}, capture_output=True,
                           text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return [json.loads(line) for line in ended.stdout.splitlines() if line.startswith("{")]


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="memory is read from Linux's /proc")
def test_memory_grows_by_the_image_not_by_its_probabilities(tmp_path):
    """Five classes of four samples: 20 bytes a voxel and sum. Held whole they would be seen in both last phases."""
    rows, more, plane, spacing = 40, 240, (160, 160), (1.0, 0.8, 0.8)
    small, large = run(tmp_path, rows, *plane, "--then_rows", more, "--patch", 16, 64, 64, "--step_size", 1,
                       "--spacing", *spacing)
    voxels = (more - rows) * prod(plane) / MIB
    grown = {phase: large[phase]["mib"] - small[phase]["mib"] for phase in ("preprocessing", "prediction", "writing")}
    assert grown["preprocessing"] < 24 * voxels, "the image twice, its masks, no 64-bit copies"
    assert grown["prediction"] < 8 * voxels, "the image, no probabilities"
    assert grown["writing"] < 8 * voxels, "the segmentation and its copies, no probabilities"


@pytest.mark.slow
@pytest.mark.parametrize("network, options", [
    ("stand-in", ["--spacing", 0.9, 0.75, 0.75]), ("real", ["--spacing", 1.5, 1.2, 1.2])])
def test_a_very_large_volume_takes_less_than_6_gib(tmp_path, network, options):
    """512 x 512 x 600 filled by texture, another spacing than the model's, five labels, four samples, no mirroring: in
    all processes together."""
    result, = run(tmp_path, 600, 512, 512, "--network", network, "--step_size", 1, "--processes", 1, *options)
    print(json.dumps(result))
    for phase in ("preprocessing", "prediction", "writing"):
        assert result["before_mib"] + result[phase]["mib"] < 6 * 1024, phase
