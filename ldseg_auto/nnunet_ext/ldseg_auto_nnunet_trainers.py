"""Every trainer of ldseg_auto under its real name.

nnU-Net imports this file as a top-level module and looks for the class in it. Classes are only passed on, never
defined here: nnU-Net drops the module afterwards, and a class of a dropped module cannot be pickled.
"""

import importlib
import inspect
import pkgutil

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from ldseg_auto.trainers import variants
from ldseg_auto.trainers.ldseg_trainer import LDSegTrainer

__all__ = ["LDSegTrainer"]

for _info in pkgutil.iter_modules(variants.__path__, f"{variants.__name__}."):
    for _name, _class in inspect.getmembers(importlib.import_module(_info.name), inspect.isclass):
        if issubclass(_class, nnUNetTrainer) and _class.__module__ == _info.name:
            globals()[_name] = _class
