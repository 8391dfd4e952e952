"""What a stranger's file may hold."""

import os
from pathlib import Path


class Payload:
    """Unpickled, it makes a folder."""

    def __init__(self, made: Path):
        self.made = str(made)

    def __reduce__(self):
        return os.mkdir, (self.made,)
