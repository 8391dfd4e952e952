"""Files that would run code when they are opened: refused, and the code does not run."""

import json
import os
import pickle
import sys
import time
import warnings
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from payload import Payload

from ldseg_auto.errors import LDSegError
from ldseg_auto.sharing import opening
from ldseg_auto.sharing.opening import (
    read_model,
    read_properties,
    read_weights,
    read_weights_of_any,
    require_known_trainer,
    require_openable,
    weights_only,
)


@pytest.fixture
def made(tmp_path) -> Path:
    """What the payload makes; it must not be there at the end."""
    path = tmp_path / "made_by_the_payload"
    yield path
    assert not path.exists()


def test_the_payload_of_these_tests_runs(tmp_path):
    """Otherwise they would show nothing."""
    for number, load in enumerate((pickle.loads, lambda content: torch.load(content, weights_only=False))):
        path, file = tmp_path / f"made_{number}", tmp_path / "file"
        if number:
            torch.save({"a": Payload(path)}, file)
        load(file if number else pickle.dumps(Payload(path)))
        assert path.is_dir()


def test_no_load_inside_the_block_runs_code(made, tmp_path, monkeypatch):
    torch.save({"network_weights": {}, "extra": Payload(made)}, tmp_path / "checkpoint.pth")
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    with pytest.raises(LDSegError, match="more than tensors and plain values .*mkdir"), weights_only():
        torch.load(tmp_path / "checkpoint.pth", weights_only=False)
    assert os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] == "1" and "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ
    monkeypatch.setenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "0")
    monkeypatch.delenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD")
    with weights_only():
        assert os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] == "1"
    assert os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] == "0"


def test_the_block_of_one_thread_outlasts_that_of_another(made, tmp_path):
    """A thread that ends its block while another is inside must not switch off what protects the other."""
    torch.save({"network_weights": {}, "extra": Payload(made)}, tmp_path / "checkpoint.pth")
    with ThreadPoolExecutor(1) as other:
        blocks = weights_only(), weights_only()
        other.submit(blocks[0].__enter__).result()
        blocks[1].__enter__()
        other.submit(blocks[0].__exit__, None, None, None).result()
        for load in (torch.load, lambda *args, **options: other.submit(torch.load, *args, **options).result()):
            with pytest.raises(pickle.UnpicklingError, match="weights_only"):
                load(tmp_path / "checkpoint.pth", weights_only=False)
        blocks[1].__exit__(None, None, None)
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ


def test_blocks_of_many_threads_at_once(monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "0")
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")

    def inside(_):
        with weights_only(), weights_only():
            time.sleep(0.0005)
            return os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"], "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD" in os.environ

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(inside, range(200))) == {("1", False)}
    assert os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] == "0" and os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] == "1"


def test_one_search_for_a_class_at_a_time(monkeypatch):
    """nnU-Net's search takes folders into sys.path and out again, and what it prints goes to a stdout that all threads
    share: it must be there again at the end, whatever the order in which they end."""
    from nnunetv2.utilities import find_objects

    searching, most, stdout = [0], [0], sys.stdout

    def search(name):
        searching[0] += 1
        most[0] = max(most[0], searching[0])
        time.sleep(0.002 * (int(name[-1]) % 3))
        searching[0] -= 1
        raise RuntimeError("Could not find requested nnunet trainer")
    monkeypatch.setattr(find_objects, "recursive_find_trainer_class_by_name", search)

    def ask(number):
        with pytest.raises(LDSegError, match="not installed here"):
            require_known_trainer(f"Trainer{number}")
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(ask, range(16)))
    assert most == [1] and sys.stdout is stdout


def test_what_nnunet_loads_inside_the_block_is_plain(made, tmp_path):
    from nnunetv2.run.load_pretrained_weights import load_pretrained_weights

    torch.save({"network_weights": {}, "extra": Payload(made)}, tmp_path / "checkpoint.pth")
    with pytest.raises(LDSegError, match="more than tensors"), weights_only():
        load_pretrained_weights(torch.nn.Linear(1, 1), str(tmp_path / "checkpoint.pth"))


def _sparse() -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.sparse_coo_tensor([[0, 1]], [1.0, 2.0], (2,))


@pytest.mark.parametrize("content, part", [
    ([], "lacks network_weights"), ({}, "lacks network_weights"),
    ({"network_weights": [torch.ones(1)]}, "lacks network_weights"),
    ({"network_weights": {"a": 1.0}}, "no dense tensor as the weight 'a'"),
    ({"network_weights": {1: torch.ones(1)}}, "no dense tensor"),
    ({"network_weights": {"a": _sparse()}}, "no dense tensor as the weight 'a'")])
def test_checkpoints_of_other_content(content, part, tmp_path):
    torch.save(content, tmp_path / "checkpoint.pth")
    with pytest.raises(LDSegError, match=part):
        read_weights(tmp_path / "checkpoint.pth")


def test_weights_with_a_payload(made, tmp_path):
    torch.save({"network_weights": {"a": Payload(made)}}, tmp_path / "checkpoint.pth")
    with pytest.raises(LDSegError, match="cannot be read"):
        read_weights(tmp_path / "checkpoint.pth")


class _Call:
    """Pickled as a call of a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def test_numbers_of_numpy_are_let_through_and_not_built(made, tmp_path):
    """Weights of nnU-Net's own checkpoints; a number with a payload inside, and other functions of numpy's, are not."""
    file, weights = tmp_path / "checkpoint.pth", {"a": torch.ones(1)}
    torch.save({"network_weights": weights, "best": np.float64(0.5)}, file)
    with pytest.raises(LDSegError, match="cannot be read.*numpy"):
        read_weights(file)
    assert read_weights_of_any(file) == weights
    scalar = np.float64(1).__reduce__()[0]
    broken = _Call(scalar, np.dtype("V9"), b"too short")  # numpy would raise, or read beyond
    torch.save({"network_weights": weights, "best": broken}, file)
    assert read_weights_of_any(file) == weights
    torch.save({"network_weights": {"a": broken}}, file)
    with pytest.raises(LDSegError, match="no dense tensor as the weight 'a'"):
        read_weights_of_any(file)
    for evil in (Payload(made), _Call(scalar, np.dtype("O"), Payload(made)), _Call(np.load, str(made)),
                 _Call(np.fromfile, str(file)), np.ones(2)):
        torch.save({"network_weights": weights, "best": evil}, file)
        with pytest.raises(LDSegError, match="cannot be read"):
            read_weights_of_any(file)


def test_a_script_in_place_of_a_checkpoint(tmp_path):
    """torch.load hands TorchScript archives on to a loader of their own, which CVE-2025-32434 used."""
    torch.jit.save(torch.jit.script(torch.nn.ReLU()), str(tmp_path / "checkpoint.pth"))
    with pytest.raises(LDSegError, match="cannot be read"):
        read_weights(tmp_path / "checkpoint.pth")


def test_the_folder_of_an_ordinary_model(model):
    require_openable(model, [0, 1], "checkpoint_final.pth")
    plans, description = read_model(model)
    assert plans["plans_name"] == "LDSegPlans" and description["numTraining"] == 5


@pytest.mark.parametrize("changes, part", [
    ({"trainer_name": "os.system"}, "'os.system' is not the name of a trainer"),
    ({"trainer_name": None}, "None is not the name of a trainer"),
    ({"init_args": {"configuration": "2d"}}, "configuration '2d'"),
    ({"init_args": {"configuration": ["2d"]}}, r"configuration \['2d'\]"), ({"init_args": None}, "configuration None")])
def test_checkpoints_that_do_not_belong_to_the_model(changes, part, model):
    file = model / "fold_1" / "checkpoint_final.pth"
    torch.save(torch.load(file) | changes, file)
    require_openable(model, [0], "checkpoint_final.pth")
    with pytest.raises(LDSegError, match=part):
        require_openable(model, [0, 1], "checkpoint_final.pth")


@pytest.mark.parametrize("name, content, part", [
    ("plans.json", "[" * 100_000, "not valid JSON"), ("dataset.json", '{"a":' * 100_000, "not valid JSON"),
    ("plans.json", '{"a": ' + "1" * 10_000 + "}", "not valid JSON"), ("plans.json", "[]", "not a table"),
    ("dataset.json", '"text"', "not a table"), ("plans.json", "\ufeff{}", "not valid JSON"),
    ("plans.json", '{"ldseg_plans_format": "x", ', "not valid JSON")])
def test_tables_made_to_break_the_reader(name, content, part, model):
    (model / name).write_text(content)
    with pytest.raises(LDSegError, match=part):
        read_model(model)


@pytest.mark.parametrize("written", ["x", None, [1], True, 99])
def test_the_format_of_plans_is_a_number(written, model):
    content = json.loads((model / "plans.json").read_text()) | {"ldseg_plans_format": written}
    (model / "plans.json").write_text(json.dumps(content))
    with pytest.raises(LDSegError, match="The plans have format"):
        read_model(model)


PROPERTIES = {"spacing": [1.0, np.float64(2.0)], "shape": (3, 4, 5), "box": [[0, np.int64(3)]],
              "sitk_stuff": OrderedDict(origin=(0.0, 1.0)), "nibabel_stuff": {"affine": np.eye(4)},
              "class_locations": {1: np.arange(12).reshape(3, 4), (1, 2): np.zeros((0, 4), np.uint8)},
              "flag": np.bool_(True), "text": "a", "nothing": None, "box_used": slice(1, 2)}


@pytest.mark.parametrize("protocol", range(3, pickle.HIGHEST_PROTOCOL + 1))
def test_the_geometry_of_a_case_is_read(protocol, tmp_path):
    (tmp_path / "case.pkl").write_bytes(pickle.dumps(PROPERTIES, protocol))
    read = read_properties(tmp_path / "case.pkl")
    assert str(read) == str(PROPERTIES)
    assert np.array_equal(read["class_locations"][1], PROPERTIES["class_locations"][1])


def test_the_geometry_that_every_reader_of_nnunet_writes_is_read(in_small_world):
    files = [*in_small_world["preprocessed"].glob("LDSegPlans_*/*.pkl"),
             *in_small_world["model"].glob("fold_0/validation/*.pkl")]
    assert len({file.parent for file in files}) == 3
    for file in files:
        assert "spacing" in read_properties(file)


@pytest.mark.parametrize("protocol", [0, 2, pickle.HIGHEST_PROTOCOL])
def test_a_geometry_with_a_payload(protocol, made, tmp_path):
    file = tmp_path / "case.pkl"
    for content in (Payload(made), {"spacing": [Payload(made)]}, np.array([Payload(made)], dtype=object)):
        file.write_bytes(pickle.dumps(content, protocol))
        with pytest.raises(LDSegError, match="would call .*mkdir"):
            read_properties(file)


@pytest.mark.parametrize("content", [
    b"", b"\x80\x05", b"cos\nsystem\n(S'true'\ntR.", b"cbuiltins\neval\n(S'1'\ntR.", b"cbuiltins\ngetattr\n.",
    b"\x80\x04\x8c\x08builtins\x8c\x04exec\x93.", b"cnumpy\nload\n.", pickle.dumps([1])])
def test_what_is_no_geometry(content, tmp_path):
    (tmp_path / "case.pkl").write_bytes(content)
    with pytest.raises(LDSegError, match="case.pkl"):
        read_properties(tmp_path / "case.pkl")


def test_nothing_of_ours_unpickles_or_loads_otherwise():
    """One place for checkpoints, one for geometries; numpy refuses objects by default."""
    import ast

    root = Path(opening.__file__).parents[2]
    calls = set()
    for folder in ("ldseg_auto", "planners", "trainers"):
        for file in (root / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
                if called in {"torch.load", "pickle.load", "pickle.loads", "pickle.Unpickler", "load_pickle", "eval",
                              "exec", "joblib.load"}:
                    calls.add((str(file.relative_to(root)), called))
                if called == "np.load":
                    assert not any(key.arg == "allow_pickle" and key.value.value for key in node.keywords), file
    assert calls == {("trainers/checkpoint.py", "torch.load"),
                     ("ldseg_auto/inference/workers.py", "pickle.loads")}  # of what it has pickled itself
