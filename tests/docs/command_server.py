"""Runs the commands of shell scripts in forks of one process that has imported torch and nnU-Net, which takes longer
than most commands on a tiny data set.

    python command_server.py SOCKET   serves; each connection sends a JSON object (arguments, folder, environment) with
                                      its three standard streams, and gets the exit code
    write_shims(FOLDER)               one executable a command, which hands over what it is called with

Only here do commands differ from a user's: trainings end after one iteration and their validation does not mirror,
nnU-Net's pools are threads (as in the other tests), and nnU-Net's own commands are told what ours find out: no GPU.
"""

from __future__ import annotations

import configparser
import importlib.util
import json
import os
import runpy
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOCKET = "LDSEG_TEST_COMMAND_SERVER"
RUN_PYTHON = "run_python_block"
_NEEDED_BY_NNUNET = {"nnUNetv2_train": ["-device", "cpu"],
                     "nnUNetv2_predict": ["-device", "cpu", "-npp", "0", "-nps", "0"]}
_CLIENT = f"""#!{sys.executable} -SE
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as server:
    server.connect(os.environ["{SOCKET}"])
    call = {{"arguments": [os.path.basename(sys.argv[0]), *sys.argv[1:]], "folder": os.getcwd(),
            "environment": dict(os.environ)}}
    socket.send_fds(server, [json.dumps(call).encode() + b"\\n"], [0, 1, 2])
    sys.exit(int(server.makefile().readline() or 70))
"""


def our_commands() -> dict[str, str]:
    """Name -> module:function, from setup.cfg: nothing needs to be installed."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    lines = config["options.entry_points"]["console_scripts"].strip().splitlines()
    return dict(line.split(" = ") for line in lines)


def write_shims(folder: Path) -> None:
    """An executable for each of our commands, of nnU-Net's, and for Python blocks."""
    folder.mkdir()
    nnunet = {script.name for script in entry_points(group="console_scripts") if script.name.startswith("nnUNetv2_")}
    for name in (*our_commands(), *nnunet, RUN_PYTHON):
        (folder / name).write_text(_CLIENT)
        (folder / name).chmod(0o755)


def serve(address: str) -> None:
    """Answer until killed, one fork a call."""
    _prepare()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # forks are not waited for
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(address)
        listening.listen()
        while True:
            connection, _ = listening.accept()
            message, streams, _, _ = socket.recv_fds(connection, 1 << 20, 3)
            while not message.endswith(b"\n"):
                message += connection.recv(1 << 20)
            if os.fork() == 0:
                _answer(connection, json.loads(message), streams)
            connection.close()
            for stream in streams:
                os.close(stream)


def _prepare() -> None:
    """Import what commands import, and shorten trainings."""
    import pytest

    specification = importlib.util.spec_from_file_location("conftest", ROOT / "tests" / "conftest.py")
    assert specification is not None and specification.loader is not None
    conftest = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(conftest)
    conftest._use_threads(pytest.MonkeyPatch())
    for module in ("planners.api", "planners.explain", "trainers.run", "inference.run", "inference.find_best",
                   "evaluation.evaluate", "report.build", "sharing.export", "sharing.install"):
        import_module(f"ldseg_auto.{module}")
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    from ldseg_auto.trainers.ldseg_trainer import LDSegTrainer

    run_training = nnUNetTrainer.run_training

    def run_one_iteration(trainer) -> None:
        trainer.num_epochs = trainer.num_iterations_per_epoch = trainer.num_val_iterations_per_epoch = 1
        run_training(trainer)

    nnUNetTrainer.run_training = run_one_iteration
    LDSegTrainer.validation_mirroring = False


def _answer(connection: socket.socket, call: dict, streams: list[int]) -> None:
    """In the fork: become the command, and end."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    os.chdir(call["folder"])
    os.environ.clear()
    os.environ.update(call["environment"])
    try:
        code = _call(call["arguments"])
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    connection.sendall(f"{code or 0}\n".encode())
    os._exit(0)


def _call(arguments: list[str]) -> int | None:
    name, *rest = arguments
    if name == RUN_PYTHON:
        sys.argv = rest
        runpy.run_path(rest[0], run_name="__main__")
        return 0
    added = _NEEDED_BY_NNUNET.get(name, [])
    sys.argv = [name, *rest, *([] if "-device" in rest else added)]
    return _function(name)()


def _function(name: str) -> Callable[[], int | None]:
    if name in our_commands():
        module, function = our_commands()[name].split(":")
        return getattr(import_module(module), function)
    script, = entry_points(group="console_scripts", name=name)
    return script.load()


if __name__ == "__main__":
    serve(sys.argv[1])
