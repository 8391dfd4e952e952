import os

from ldseg_auto import nnunet_ext


def test_register_appends_once(monkeypatch):
    monkeypatch.setenv("nnUNet_extTrainer", "somewhere")
    nnunet_ext.register()
    nnunet_ext.register()
    assert os.environ["nnUNet_extTrainer"].split(os.pathsep) == ["somewhere", nnunet_ext.FOLDER]


def test_nnunet_finds_the_trainer_under_its_real_name(monkeypatch):
    monkeypatch.setenv("nnUNet_extTrainer", "")
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    from ldseg_auto.trainers.ldseg_trainer import LDSegTrainer

    nnunet_ext.register()
    assert recursive_find_trainer_class_by_name("LDSegTrainer") is LDSegTrainer
