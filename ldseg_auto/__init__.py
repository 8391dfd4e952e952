"""Self-configuring latent diffusion segmentation on nnU-Net's data, folders and flags."""

from pathlib import Path

__version__ = "0.1.0"

# In a checkout `planners/` and `trainers/` lie beside this folder; setup.cfg maps them to ldseg_auto.planners and
# ldseg_auto.trainers in an installation, this line does so without one.
_ROOT = Path(__file__).resolve().parent.parent
if (_ROOT / "setup.cfg").is_file():
    __path__.append(str(_ROOT))
