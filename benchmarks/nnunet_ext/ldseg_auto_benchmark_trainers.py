"""Every trainer of the benchmarks under its real name, for nnU-Net's search, which imports all files of a folder."""

from peers import SIDES

for _side in SIDES.values():
    globals()[_side.trainer.__name__] = _side.trainer
