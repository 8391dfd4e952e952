"""Every block of the documentation runs.

Page by page, blocks in their order, in a folder of its own, with real commands (see command_server.py). There
nnUNet_raw and so on hold data set 4, planned, and fold 0 of 3d_fullres and 2d trained; /data stands for the folder of
the three; IMAGES and TRUTH hold cases that fold 0 did not train on, SEGMENTATIONS and OTHERS what two models make of
them. What a fence says behind its language:

    no-test REASON    is not run
    file=PATH         is written to that file
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import command_server
import pytest
from doc_pages import PAGES, ROOT, blocks_of, name_of, tokens_of

RUN, SHOWN = ("bash", "python"), ("", "json", "csv", "text")
# a longer list means that more of the documentation may be wrong without anyone noticing
NOT_RUN = {"README.md": 4, "docs/getting_started.md": 1, "docs/commands/ldseg_demo.md": 1,
           "docs/commands/ldseg_train.md": 4, "docs/concepts.md": 1}
FAST = ("docs/python_api.md", "docs/commands/ldseg_evaluate.md", "docs/commands/ldseg_export.md",
        "docs/commands/ldseg_import.md")
DATASET = "Dataset004_Hippocampus"
DEMO = "Dataset900_LDSegDemo"
STARTS_A_COMMAND = re.compile(r"(ldseg_\w+|nnUNetv2_\w+|pip|make|source|export|python3?|cd|sbatch|docker)\s")

# What a page's reader has done before its first block.
_DEMO = f"""
rm -r /data/nnUNet_raw/{DATASET}/imagesTs
for folder in /data/*; do mv $folder/{DATASET} $folder/{DEMO}; done
grep -rlZ {DATASET} /data --include=*.json | xargs -0 sed -i s/{DATASET}/{DEMO}/g
mkdir demo
mv /data/* demo
cp -r IMAGES demo/nnUNet_raw/{DEMO}/imagesTs
cp -r TRUTH demo/nnUNet_raw/{DEMO}/labelsTs
rm -r SEGMENTATIONS
"""
_NNUNET_ALONE = """
mkdir -p .venv/bin
touch .venv/bin/activate
rm -r $nnUNet_preprocessed/* $nnUNet_results/*
nnUNetv2_extract_fingerprint -d 4 -np 1
nnUNet_n_proc_DA=1 nnUNetv2_plan_experiment -d 4
nnUNetv2_preprocess -d 4 -c 3d_fullres -np 1
nnUNetv2_train 4 3d_fullres 0 --npz
stock=$nnUNet_results/Dataset004_Hippocampus/nnUNetTrainer__nnUNetPlans__3d_fullres
for fold in 1 2 3 4; do cp -r $stock/fold_0 $stock/fold_$fold; done
"""
_UNET_AND_ANOTHER_DATASET = f"""
cp -r /data/nnUNet_raw/{DATASET} /data/nnUNet_raw/Dataset005_Other
nnUNet_n_proc_DA=1 nnUNetv2_plan_experiment -d 4
nnUNetv2_preprocess -d 4 -c 3d_fullres -np 1
nnUNetv2_train 4 3d_fullres 0
"""
BEFORE = {"README.md": _NNUNET_ALONE, "docs/getting_started.md": _DEMO,
          "docs/fine_tuning.md": _UNET_AND_ANOTHER_DATASET}


# --- that every block is one of those that run


def test_blocks_that_do_not_run_say_why_and_do_not_become_more():
    left_out = [block for page in PAGES for block in blocks_of(page) if block.mark.startswith("no-test")]
    for block in left_out:
        assert len(block.mark.removeprefix("no-test").strip()) > 10, f"{block}: write no-test and the reason"
    assert Counter(block.page for block in left_out) == NOT_RUN


def test_marks_are_known():
    for page in PAGES:
        for block in blocks_of(page):
            assert block.language in (*RUN, *SHOWN), f"{block}: {block.language!r}"
            assert re.fullmatch(r"(no-test .+|file=\S+)?", block.mark), f"{block}: {block.mark!r}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_no_command_hides_in_another_block(page):
    for token in tokens_of(page):
        if token.type == "code_block" or token.type == "fence" and token.info.strip() in SHOWN:
            hidden = [line for line in token.content.splitlines() if STARTS_A_COMMAND.match(line)]
            assert not hidden, f"{name_of(page)}:{token.map[0] + 1}: fence it with ```bash, so that it is run: {hidden}"


# --- running them


def script_of(page: Path, folder: Path) -> str:
    """A shell script; Python blocks in a row are one program."""
    lines: list[str] = []
    programs: dict[Path, list[str]] = {}
    last: Path | None = None
    for block in blocks_of(page):
        if block.mark.startswith("no-test") or block.language not in RUN:
            continue
        text = block.text.replace("/data/", f"{folder}/data/")
        lines.append(f"echo '--- {block}' >&2")
        if block.mark.startswith("file="):
            file = folder / block.mark.removeprefix("file=")
            lines.append(f"mkdir -p {file.parent}; cat > {file} <<'END_OF_BLOCK'\n{text}END_OF_BLOCK")
        elif block.language == "python":
            if last is None:
                last = folder / f"block_{block.line}.py"
                lines.append(f"run_python_block {last}")
            programs.setdefault(last, []).append(text)
        else:
            last = None
            lines.append(text)
    for file, texts in programs.items():
        file.write_text("\n".join(texts))
    before = BEFORE.get(name_of(page), "").replace("/data", f"{folder}/data")
    return "\n".join(["set -v", before, *lines]) + "\n"


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    """The server of command_server.py: environment variables with which scripts reach it."""
    shims = tmp_path_factory.mktemp("commands") / "bin"
    command_server.write_shims(shims)
    folder = Path(tempfile.mkdtemp())  # short: names of sockets have at most 107 characters
    address = str(folder / "socket")
    environment = {name: value for name, value in os.environ.items()
                   if not name.startswith(("nnUNet_", "LDSEG_", "PYTEST_"))} | {
        "OMP_NUM_THREADS": "1", "nnUNet_n_proc_DA": "0", "nnUNet_def_n_proc": "1", "nnUNet_compile": "false",
        "nnUNet_npp": "0", "nnUNet_nps": "0", "MPLBACKEND": "Agg", "CUDA_VISIBLE_DEVICES": "",
        command_server.SOCKET: address,
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "PATH": os.pathsep.join([str(shims), str(Path(sys.executable).parent), os.environ["PATH"]])}
    process = subprocess.Popen([sys.executable, command_server.__file__, address], env=environment)
    try:
        _wait_for(address, process)
        yield environment
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(folder)


def _wait_for(address: str, process: subprocess.Popen) -> None:
    for _ in range(1200):
        assert process.poll() is None, "the server of commands ended"
        if Path(address).exists():
            return
        time.sleep(0.1)
    raise AssertionError("the server of commands did not start")


def make_world(small_world: dict[str, Path], folder: Path) -> None:
    """`small_world` as data set 4 below `folder`/data, and what a reader would have beside it."""
    old = small_world["nnUNet_raw"].parent
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        source, = (old / variable).iterdir()
        shutil.copytree(source, folder / "data" / variable / DATASET,
                        ignore=shutil.ignore_patterns("checkpoint_best.pth"))
    for file in (folder / "data").rglob("*.json"):
        file.write_text(file.read_text().replace("Dataset007_Small", DATASET).replace(str(old), f"{folder}/data"))
    raw = folder / "data" / "nnUNet_raw" / DATASET
    splits = json.loads((folder / "data" / "nnUNet_preprocessed" / DATASET / "splits_final.json").read_text())
    for name in ("IMAGES", "TRUTH", "SEGMENTATIONS", "OTHERS"):
        (folder / name).mkdir()
    for case in splits[0]["val"]:
        shutil.copy(raw / "imagesTr" / f"{case}_0000.nii.gz", folder / "IMAGES")
        shutil.copy(raw / "labelsTr" / f"{case}.nii.gz", folder / "TRUTH")
        for name, model in (("SEGMENTATIONS", "model"), ("OTHERS", "model_2d")):
            shutil.copy(small_world[model] / "fold_0" / "validation" / f"{case}.nii.gz", folder / name)
    cases = [file.name.removesuffix(".nii.gz") for file in (raw / "labelsTr").iterdir()]
    (folder / "cases.csv").write_text("case,patient\n" + "".join(f"{case},patient of {case}\n" for case in cases))
    (folder / "LICENCE.txt").write_text("Do with it as you like.")


@pytest.mark.parametrize("page", [pytest.param(page, marks=() if name_of(page) in FAST else pytest.mark.slow)
                                  for page in PAGES if any(block.language in RUN for block in blocks_of(page))],
                         ids=name_of)
def test_blocks_run(page, commands, small_world, tmp_path):
    make_world(small_world, tmp_path)
    (tmp_path / "page.sh").write_text(script_of(page, tmp_path))
    folders = {name: str(tmp_path / "data" / name) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
    ended = subprocess.run(["bash", "-e", "page.sh"], cwd=tmp_path, env=commands | folders, text=True,
                           stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=1800)
    assert ended.returncode == 0, f"{name_of(page)} ended with {ended.returncode}:\n{ended.stdout[-5000:]}"
