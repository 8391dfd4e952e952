"""Files that end too early."""

import gzip

import pytest

from ldseg_auto.integrity import Content, scan


@pytest.fixture
def whole(tmp_path):
    file = tmp_path / "whole.nii.gz"
    file.write_bytes(gzip.compress(bytes(range(256)) * 20_000))
    return file


@pytest.mark.parametrize("damage", [
    lambda content: content[:-1], lambda content: content[:len(content) // 2], lambda content: content[:5],
    lambda content: b"no gzip file", lambda content: content[:-8] + bytes(4) + content[-4:],
    lambda content: content[:200] + bytes([content[200] ^ 255]) + content[201:]],
    ids=["last byte", "half", "header", "another format", "checksum", "a byte within"])
def test_damaged_files_are_named(whole, damage):
    broken = whole.with_name("broken.nii.gz")
    broken.write_bytes(damage(whole.read_bytes()))
    assert not scan(broken).whole


def test_a_whole_file_is_whole(whole):
    assert scan(whole) == Content()
