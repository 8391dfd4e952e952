"""A killed run leaves nothing that counts as done."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ldseg_auto.inference.staging import clean_part_folder, part_folder, published, remove_part_folder

FILES = ("a.npz", "a.pkl", "uncertainty/a.json", "uncertainty/a_entropy.nii.gz", "a.nii.gz")
KILLED_AT_THE_NTH_MOVE = """
import os, signal, sys
from pathlib import Path
from ldseg_auto.inference.staging import published

moves, replace = int(sys.argv[2]), Path.replace
def killed(file, target):
    global moves
    if moves == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    moves -= 1
    return replace(file, target)
Path.replace = killed
with published(Path(sys.argv[1]) / "a", "a.nii.gz") as folder:
    (folder / "uncertainty").mkdir()
    for name in sys.argv[3:]:
        (folder / name).write_text("new")
"""


def write(case: Path, content: str) -> None:
    with published(case, f"{case.name}.nii.gz") as folder:
        (folder / "uncertainty").mkdir()
        for name in FILES:
            (folder / name).write_text(content)


def test_files_appear_together(tmp_path):
    with published(tmp_path / "a", "a.nii.gz") as folder:
        (folder / "a.nii.gz").write_text("new")
        assert [path.name for path in tmp_path.iterdir()] == ["a.part"]
    assert [path.name for path in tmp_path.iterdir()] == ["a.nii.gz"]
    write(tmp_path / "a", "newer")
    assert {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()} == set(FILES)
    assert not part_folder(tmp_path / "a").exists()


def test_what_fails_leaves_what_was_there(tmp_path):
    write(tmp_path / "a", "old")
    with pytest.raises(ValueError, match="broken"), published(tmp_path / "a", "a.nii.gz") as folder:
        (folder / "a.nii.gz").write_text("new")
        raise ValueError("broken")
    assert all((tmp_path / name).read_text() == "old" for name in FILES)
    assert not part_folder(tmp_path / "a").exists()


@pytest.mark.parametrize("moves", range(len(FILES)))
@pytest.mark.parametrize("rewrites", [False, True])
def test_a_killed_run_is_not_complete(tmp_path, moves, rewrites):
    if rewrites:
        write(tmp_path / "a", "old")
    ended = subprocess.run([sys.executable, "-c", KILLED_AT_THE_NTH_MOVE, str(tmp_path), str(moves), *FILES],
                           env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}, check=False)
    assert ended.returncode == -signal.SIGKILL
    assert not (tmp_path / "a.nii.gz").exists(), "so --continue_prediction does the case again"
    write(tmp_path / "a", "newest")
    assert all((tmp_path / name).read_text() == "newest" for name in FILES)
    assert not part_folder(tmp_path / "a").exists()


def test_part_folders_begin_empty(tmp_path):
    (clean_part_folder(tmp_path / "a") / "left").touch()
    assert not list(clean_part_folder(tmp_path / "a").iterdir())
    remove_part_folder(tmp_path / "a")
    assert not list(tmp_path.iterdir())
