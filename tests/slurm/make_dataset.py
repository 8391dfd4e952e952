"""Ten small made-up cases below the folder given: Dataset901_Slurm."""

import sys
from pathlib import Path

from ldseg_auto.demo.phantom import write_dataset

write_dataset(Path(sys.argv[1]), 901, "Slurm", num_train=10, num_test=1, seed=0)
