"""What a first stage has handed on is withdrawn when it is trained anew."""

from ldseg_auto.trainers.cascade import withdraw


def test_only_these_cases_are_withdrawn(tmp_path):
    folder = tmp_path / "predicted_next_stage" / "3d_cascade_fullres"
    folder.mkdir(parents=True)
    for name in ("a.b2nd", "b.npz", "c.b2nd", "a.txt"):
        (folder / name).touch()
    withdraw(tmp_path, ["a", "b", "d"])
    assert sorted(file.name for file in folder.iterdir()) == ["a.txt", "c.b2nd"]


def test_where_nothing_was_handed_on(tmp_path):
    withdraw(tmp_path, ["a"])
    assert not list(tmp_path.iterdir())
