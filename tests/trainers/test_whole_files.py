"""JSON and pictures are there as a whole, or the old ones are."""

import json
from pathlib import Path

import pytest
from batchgenerators.utilities.file_and_folder_operations import save_json

from ldseg_auto.trainers.whole_files import draw_whole, save_json_whole


def test_json_is_what_batchgenerators_writes(tmp_path):
    content = {"b": [1, 2.5, None], "a": {"é": "text"}}
    save_json(content, str(tmp_path / "theirs.json"), sort_keys=False)
    save_json_whole(content, str(tmp_path / "ours.json"), sort_keys=False)
    assert (tmp_path / "ours.json").read_text() == (tmp_path / "theirs.json").read_text()


def test_json_that_cannot_be_written_leaves_the_old(tmp_path, monkeypatch):
    save_json_whole({"old": 1}, str(tmp_path / "file.json"))

    def interrupted(self, text, **options):
        self.write_bytes(text.encode()[:5])
        raise KeyboardInterrupt
    monkeypatch.setattr(Path, "write_text", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_json_whole({"new": 2}, str(tmp_path / "file.json"))
    assert json.loads((tmp_path / "file.json").read_text()) == {"old": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["file.json"]


def test_a_picture_that_cannot_be_drawn_leaves_the_old_one_and_is_reported(tmp_path):
    told = []

    def draw(text, error=None):
        def write(folder):
            (Path(folder) / "picture.png").write_text(text)
            if error is not None:
                raise error
        draw_whole("picture.png", write, str(tmp_path), told.append)
    draw("old")
    draw("half", OSError(28, "No space left on device"))
    assert (tmp_path / "picture.png").read_text() == "old"
    assert len(told) == 1 and "No space left" in told[0]
    with pytest.raises(KeyboardInterrupt):
        draw("half", KeyboardInterrupt())
    draw("new")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("picture.png", "new")]
