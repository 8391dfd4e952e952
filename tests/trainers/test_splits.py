"""The split into folds: nnU-Net's where nothing else is asked for, and never one that leaks."""

import json

import pytest
from nnunetv2.utilities.crossval_split import generate_crossval_split

from ldseg_auto.errors import LDSegError
from ldseg_auto.trainers.splits import make_splits, prepare_splits, problems, read_groups

CASES = [f"case_{number:02d}" for number in range(12)]
GOOD = [{"train": CASES[4:], "val": CASES[:4]}, {"train": CASES[:4] + CASES[8:], "val": CASES[4:8]}]


def with_fold(**parts):
    return [{**GOOD[0], **parts}, GOOD[1]]


def write_groups(file, patient_of):
    file.write_text("case,patient,age\n" + "".join(f"{case},{patient},40\n" for case, patient in patient_of.items()))
    return str(file)


def test_a_new_split_is_nnunets(tmp_path):
    splits = prepare_splits(tmp_path, CASES)
    assert splits == [{part: list(map(str, fold[part])) for part in ("train", "val")}
                      for fold in generate_crossval_split(CASES, seed=12345, n_splits=5)]
    assert json.loads((tmp_path / "splits_final.json").read_text()) == splits
    assert prepare_splits(tmp_path, CASES) == splits


def test_a_users_split_is_used(tmp_path):
    (tmp_path / "splits_final.json").write_text(json.dumps(GOOD))
    assert prepare_splits(tmp_path, CASES) == GOOD


def test_too_few_cases_for_folds(tmp_path):
    assert prepare_splits(tmp_path, CASES[:4]) == [] and not list(tmp_path.iterdir())


def test_patients_stay_together(tmp_path):
    """Each patient has two to four cases that nnU-Net's split would tear apart."""
    patient_of = {case: f"p{min(int(case[-2:]) // 2, 4)}" for case in CASES}
    file = write_groups(tmp_path / "groups.csv", patient_of)
    splits = prepare_splits(tmp_path, CASES, file)
    assert len(splits) == 5 and sorted(case for fold in splits for case in fold["val"]) == CASES
    for fold in splits:
        assert not {patient_of[case] for case in fold["train"]} & {patient_of[case] for case in fold["val"]}
        assert sorted([*fold["train"], *fold["val"]]) == CASES
    assert make_splits(CASES[::-1], patient_of) == splits, "the order of the cases does not matter"
    assert problems(make_splits(CASES), CASES, patient_of)


def test_groups_are_remembered(tmp_path):
    patient_of = {case: case[-1] for case in CASES}
    prepare_splits(tmp_path, CASES, write_groups(tmp_path / "groups.csv", patient_of))
    (tmp_path / "splits_final.json").write_text(json.dumps(make_splits(CASES)))
    with pytest.raises(LDSegError, match=r"fold 0: .* \(patient\) is in both parts"):
        prepare_splits(tmp_path, CASES)


def test_too_few_patients_for_folds(tmp_path):
    file = write_groups(tmp_path / "groups.csv", {case: case[-1] in "02468" for case in CASES})
    assert prepare_splits(tmp_path, CASES, file) == []


@pytest.mark.parametrize(("splits", "message"), [
    (with_fold(train=CASES[3:]), "fold 0: case_03 is in both parts"),
    (with_fold(train=[*CASES[4:], "stranger"]), "fold 0: stranger is not preprocessed"),
    (with_fold(train=[*CASES[4:], "case_05"]), "fold 0: case_05 is named twice"),
    (with_fold(train=CASES[6:]), "fold 0: case_04, case_05 is in neither part"),
    (with_fold(train=CASES, val=[]), "fold 0: val is empty"),
    ({"train": CASES, "val": CASES}, "is not a split"),
    ([], "is not a split"),
    ([{"train": CASES[4:], "val": "case_00"}], "is not a split"),
    ([{"train": CASES[4:]}], "is not a split"),
    (7, "is not a split"),
])
def test_a_split_that_cannot_be_used(tmp_path, splits, message):
    (tmp_path / "splits_final.json").write_text(json.dumps(splits))
    with pytest.raises(LDSegError) as error:
        prepare_splits(tmp_path, CASES)
    assert message in str(error.value) and "splits_final.json" in str(error.value)


def test_unused_cases_can_be_allowed(tmp_path):
    (tmp_path / "splits_final.json").write_text(json.dumps(with_fold(train=CASES[6:])))
    assert prepare_splits(tmp_path, CASES, allow_unused_cases=True) == with_fold(train=CASES[6:])


@pytest.mark.parametrize(("text", "message"), [
    ("case;patient\n" + "".join(f"{case};1\n" for case in CASES), "has the columns case;patient"),
    ("", "has the columns (none)"),
    ("case,patient\n" + "".join(f"{case},1\n" for case in CASES[1:]), "case_00 have no patient"),
    ("".join(f"{case},1\n" for case in CASES), "has the columns case_00, 1"),
    ("case,patient\ncase_00\n", "case_00, case_01, case_02, case_03, case_04 and 7 more have no patient"),
    ("case,patient\n" + "".join(f"{case},1\n" for case in CASES) + "case_00,2\n", "case_00 have two patients"),
])
def test_groups_that_do_not_fit(tmp_path, text, message):
    (tmp_path / "groups.csv").write_text(text)
    with pytest.raises(LDSegError) as error:
        read_groups(tmp_path / "groups.csv", CASES)
    assert message in str(error.value)


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
def test_groups_in_another_encoding(tmp_path, encoding):
    (tmp_path / "groups.csv").write_text("case,patient\ncase_00,M\u00fcller\n", encoding=encoding)
    with pytest.raises(LDSegError, match="no CSV file in UTF-8"):
        read_groups(tmp_path / "groups.csv", ["case_00"])


def test_a_new_case_needs_its_patient(tmp_path):
    """Remembered groups know nothing of cases that were added since."""
    prepare_splits(tmp_path, CASES, write_groups(tmp_path / "groups.csv", {case: case[-1] for case in CASES}))
    (tmp_path / "splits_final.json").unlink()
    with pytest.raises(LDSegError, match="names no patient of new_1"):
        prepare_splits(tmp_path, [*CASES, "new_1"])
    assert not (tmp_path / "splits_final.json").exists()
    (tmp_path / "case_groups.json").write_text("[]")
    with pytest.raises(LDSegError, match="names no patient of every case"):
        prepare_splits(tmp_path, CASES)


def test_a_split_of_more_folds_is_used_whole(tmp_path):
    seven = [{"train": [case for case in CASES[:7] if case != left], "val": [left]} for left in CASES[:7]]
    (tmp_path / "splits_final.json").write_text(json.dumps(seven))
    assert prepare_splits(tmp_path, CASES[:7]) == seven


def test_groups_from_a_spreadsheet(tmp_path):
    """A byte order mark, blanks, and cases that are not in the data set."""
    (tmp_path / "groups.csv").write_text("\ufeffcase,patient\r\ncase_00, a \r\nother,b\r\n", encoding="utf-8")
    assert read_groups(tmp_path / "groups.csv", ["case_00"]) == {"case_00": "a"}
    (tmp_path / "groups.csv").write_text('"age", "patient" ,"case"\r\n40,"Doe, Jo","case_00"\r\n\r\n', encoding="utf-8")
    assert read_groups(tmp_path / "groups.csv", ["case_00"]) == {"case_00": "Doe, Jo"}
