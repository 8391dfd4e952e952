import pickle

import pytest

from ldseg_auto.errors import named, reason_of

TORCH = ("Weights only load failed. {}Re-running `torch.load` with `weights_only` set to `False` will likely succeed.\n"
         "\t(2) Alternatively:\n\t{}\nCheck the documentation.")


@pytest.mark.parametrize("text, reason", [
    ("two\nlines", "two"), ("", ""), ("\n  late", "late"), ("a\x1b[2Jb", "a?[2Jb"), ("Läsion", "Läsion"),
    (TORCH.format("", "WeightsUnpickler error: Unsupported global: GLOBAL a.b was not allowed. Please use it."),
     "Unsupported global: GLOBAL a.b was not allowed"),
    (TORCH.format("In 2.6, ", "Trying to load unsupported GLOBAL posix.mkdir whose module posix is blocked."),
     "unsupported GLOBAL posix.mkdir whose module posix is blocked.")])
def test_the_reason_is_one_line_without_torchs_advice(text, reason):
    assert reason_of(pickle.UnpicklingError(text)) == f"UnpicklingError: {reason}"


def test_long_lists_are_cut():
    assert named(list("abcdefg")) == "a, b, c, d, e and 2 more"
