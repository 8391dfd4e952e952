"""Zips that an attacker or an accident made: each refused through the real command, with nothing installed."""

import json
import stat
import struct
import zipfile
import zlib

import pytest

from ldseg_auto.cli import import_model
from ldseg_auto.sharing import archive

NAME = "Dataset004_Small"
MODEL = f"{NAME}/LDSegTrainer__LDSegPlans__3d_fullres"
WEIGHTS, PLANS, MANIFEST = f"{MODEL}/fold_0/weights.safetensors", f"{MODEL}/plans.json", f"{NAME}/manifest.json"


@pytest.fixture
def refused(results, capsys):
    """Call it with a zip and with what the one line must say."""

    def check(file, *parts):
        assert import_model.main([str(file)]) == 1
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1
        for part in parts:
            assert part in error
        assert not list(results.iterdir())

    return check


def _add(name: str, content: bytes = b"x"):
    return lambda files: files.update({name: content})


def _entry(name: str, kind: int = stat.S_IFREG) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name)
    entry.external_attr = (kind | 0o777) << 16
    return entry


def _json(name: str, **changes):
    return lambda files: files.update({name: json.dumps(json.loads(files[name]) | changes).encode()})


def test_the_zip_of_an_export_is_installed(model_zip, results):
    assert import_model.main([str(model_zip)]) == 0
    assert (results / MODEL / "fold_1" / "checkpoint_final.pth").is_file()


@pytest.mark.parametrize("name, part", [
    ("../../evil.py", "leaves the folder"), (f"{NAME}/../../evil.py", "leaves the folder"),
    ("/etc/cron.d/evil", "absolute path"), ("C:/evil.py", "names a drive"), (f"{NAME}/a:stream", "names a drive"),
    (f"{NAME}\\..\\..\\evil.py", "backslash"), (f"{MODEL}/evil.py", "no file of a shared model"),
    (f"{MODEL}/fold_0/checkpoint_final.pth", "no file of a shared model"),  # pickled: opening it runs code
    (f"{MODEL}/postprocessing.pkl", "no file of a shared model"), (f"{MODEL}/", "not an ordinary file"),
    ("manifest.json", "no file of a shared model"), ("Other/manifest.json", "2 manifest.json"),
    (f"{MODEL}/PLANS.JSON", "there twice"), (f"{MODEL}/plan\u017f.json", "there twice"),
    (f"{MODEL}/\uff50lans.json", "there twice"), (f"{MODEL}/plans.json\n", "no file of a shared model"),
    (f"{MODEL}/a\nb", "no file of a shared model"), ("\\\\server\\share\\evil", "backslash"),
    (f"{NAME}/..\uff0fevil", "no file of a shared model"), (f"{NAME}/\u202enosj.live", "no file of a shared model"),
    (f"{NAME}/~/evil", "no file of a shared model"), (f"{NAME}/./manifest.json", "no file of a shared model"),
    (f"{NAME}//manifest.json", "no file of a shared model"), (f"{NAME}/NUL", "no file of a shared model"),
    (f"{MODEL}/fold_0/validation/case_0.pkl", "no file of a shared model"),  # unpickled by ensembling
    (f"{MODEL}/fold_0/validation/case_0.npz", "no file of a shared model"),
    (f"{MODEL}/fold_0/__init__.py", "no file of a shared model")])
def test_names_that_no_export_writes(name, part, change_zip, refused):
    refused(change_zip(_add(name)), part, "do not use it" if "manifest" not in name else "ldseg_export")


@pytest.mark.parametrize("kind, part", [(stat.S_IFLNK, "symbolic link"), (stat.S_IFIFO, "not an ordinary file"),
                                        (stat.S_IFCHR, "not an ordinary file"), (stat.S_IFDIR, "not an ordinary")])
@pytest.mark.parametrize("name", [PLANS, f"{NAME}/link"])
def test_links_and_special_files(name, kind, part, change_zip, refused):
    refused(change_zip(entries=(_entry(name, kind),)), part, repr(name))


def test_an_entry_that_is_there_twice(change_zip, refused):
    with pytest.warns(UserWarning, match="Duplicate name"):
        file = change_zip(entries=(_entry(PLANS), _entry(PLANS)))
        with zipfile.ZipFile(file, "a") as opened:
            opened.writestr(PLANS, b"{}")
    refused(file, "there twice", PLANS)


@pytest.mark.parametrize("edit, part", [
    (lambda files: files.pop(PLANS), "lacks 'Dataset004_Small/LDSegTrainer__LDSegPlans__3d_fullres/plans.json'"),
    (_add(f"{MODEL}/dataset_fingerprint.json", b"{}"), "its manifest does not list"),
    (lambda files: files.pop(MANIFEST), "no manifest.json"),
    (_add(MANIFEST, b"{"), "not valid JSON"), (_add(MANIFEST, b"[" * 100_000), "not valid JSON"),
    (_add(MANIFEST, b"\xff\xfe{}"), "not valid JSON"), (_add(MANIFEST, b"[]"), "does not say its format"),
    (_json(MANIFEST, ldseg_model_format=99), "format 99, this version reads 1"),
    (_json(MANIFEST, dataset="Dataset005_Other", files={}), "describes the data set 'Dataset005_Other'"),
    (_add(PLANS, b"{}"), "bytes, not the"),
    (lambda files: files.update({PLANS: files[PLANS].replace(b"SimpleITKIO", b"SimpleITKIo")}), "with the SHA-256")])
def test_manifests_that_do_not_fit(edit, part, change_zip, refused):
    refused(change_zip(edit, relist=False), part)


@pytest.mark.parametrize("needed", [PLANS, f"{MODEL}/dataset.json", f"{MODEL}/LICENSE", WEIGHTS,
                                    f"{MODEL}/fold_1/checkpoint.json"])
def test_files_that_a_model_needs(needed, change_zip, refused):
    refused(change_zip(lambda files: files.pop(needed)), f"manifest lacks {needed}")


def test_a_bomb_that_says_how_large_it_is(change_zip, refused, monkeypatch, results):
    file = change_zip(_add(WEIGHTS, bytes(12 * 2 ** 20)))
    assert archive.MAX_SMALL_BYTES == 100 * 2 ** 20, "the real limit, too much to compress in a test"
    monkeypatch.setattr(archive, "MAX_SMALL_BYTES", 10 * 2 ** 20)
    refused(file, "would unpack to", "made to fill the disk")
    monkeypatch.setattr(archive, "MAX_GROWTH", 1000)
    refused(file, "weights.safetensors cannot be read")


def test_a_table_too_large_to_be_read(change_zip, refused, monkeypatch):
    file = change_zip(_add(PLANS, bytes(10_000)))
    monkeypatch.setattr(archive, "MAX_TABLE_BYTES", 9999)
    refused(file, PLANS, "more than 9999")


def test_a_bomb_that_says_it_is_small(change_zip, refused, monkeypatch):
    """Both headers and the manifest say 1000 bytes, the stream goes on for megabytes."""
    size, content = 7_654_321, bytes(1000)
    file = change_zip(_add(WEIGHTS, bytes(size)))
    changed = file.read_bytes().replace(struct.pack("<L", size), struct.pack("<L", len(content)))
    changed = changed.replace(struct.pack("<L", zlib.crc32(bytes(size))), struct.pack("<L", zlib.crc32(content)))
    assert changed.count(struct.pack("<L", zlib.crc32(content))) == 2
    file.write_bytes(changed)
    refused(file, "has 1000 bytes, not the 7654321 of the manifest")
    read = []
    monkeypatch.setattr("ldseg_auto.sharing.archive._require_as_listed", lambda entries, manifest: None)
    original = zipfile.ZipExtFile.read
    monkeypatch.setattr(zipfile.ZipExtFile, "read",
                        lambda self, n=-1: read.append(len(chunk := original(self, n))) or chunk)
    refused(file, "is not what the manifest says: 1000 bytes")
    assert max(read) <= 2 ** 20


def test_overlapping_entries(change_zip, refused):
    """Two names for one stream: the trick of the bombs that unpack to petabytes."""
    file = change_zip()
    with zipfile.ZipFile(file, "a") as opened:
        first = opened.getinfo(WEIGHTS)
        second = opened.getinfo(WEIGHTS.replace("fold_0", "fold_1"))
        second.header_offset = first.header_offset
        opened._didModify = True
    refused(file, "cannot be read", "damaged")


@pytest.mark.parametrize("flag, value, part", [("flag_bits", 1, "is encrypted"),
                                               ("compress_type", zipfile.ZIP_LZMA, "compressed in an unusual way")])
def test_entries_that_an_export_does_not_write(flag, value, part, change_zip, refused):
    file = change_zip()
    with zipfile.ZipFile(file, "a") as opened:
        setattr(opened.getinfo(PLANS), flag, value)
        opened._didModify = True
    refused(file, part)


def test_a_name_that_is_cut_at_a_zero_byte(change_zip, refused):
    name = f"{MODEL}/progress.json"
    file = change_zip(_add(name), relist=False)
    file.write_bytes(file.read_bytes().replace(name.encode(), name.replace("s.j", "s\0j").encode()))
    refused(file, "has a name that is cut")


def test_what_is_no_zip(tmp_path, refused):
    file = tmp_path / "text.zip"
    refused(file, "no file", "ldseg_export")
    refused(tmp_path, "no file")
    for content in (b"", b"This is no zip.", b"PK\x05\x06" + bytes(10)):
        file.write_bytes(content)
        refused(file, "cannot be read", "copy or download it again")
    with zipfile.ZipFile(file, "w") as opened:
        opened.writestr("nnUNetTrainer__nnUNetPlans__2d/plans.json", "{}")
    refused(file, "no manifest.json", "nnUNetv2_install_pretrained_model_from_zip")


@pytest.mark.parametrize("share", [0.05, 0.5, 0.95, 0.999])
def test_a_truncated_zip(share, model_zip, refused):
    content = model_zip.read_bytes()
    model_zip.write_bytes(content[:int(share * len(content))])
    refused(model_zip, "cannot be read", "damaged or not complete")


def test_no_damaged_byte_goes_unseen(model_zip, results):
    """Wherever a byte is changed, the zip is refused or what it installs is the same."""
    content = model_zip.read_bytes()
    assert import_model.main([str(model_zip)]) == 0
    right = (results / PLANS).read_bytes(), (results / MODEL / "fold_0" / "checkpoint_final.pth").read_bytes()
    seen = 0
    for place in range(0, len(content), len(content) // 20):
        model_zip.write_bytes(content[:place] + bytes([content[place] ^ 0x55]) + content[place + 1:])
        if import_model.main([str(model_zip), "--overwrite"]) == 1:
            seen += 1
        assert ((results / PLANS).read_bytes(),
                (results / MODEL / "fold_0" / "checkpoint_final.pth").read_bytes()) == right
        assert len(list((results / NAME).iterdir())) == 1
    assert seen > 12
