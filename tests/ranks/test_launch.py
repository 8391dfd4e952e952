"""Ranks are started, and end together."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import launch_work
import pytest

from ldseg_auto.cli import predict, train
from ldseg_auto.errors import LDSegError
from ldseg_auto.trainers import checkpoint, cluster, ranks

ROOT = Path(__file__).resolve().parents[2]


def test_a_rank_that_is_killed_ends_all_and_is_named(capfd):
    with pytest.raises(LDSegError, match="rank 1 by SIGKILL was killed, most likely for lack of memory") as raised:
        ranks.together(launch_work.kill_rank_1, 2, "cpu")
    assert "goes on after the last finished epoch" in raised.value.cure
    assert "Traceback" not in capfd.readouterr().err


def test_of_several_failures_the_cause_is_told(capfd):
    with pytest.raises(LDSegError) as raised:
        ranks.together(launch_work.fail_on_rank_1, 2, "cpu")
    assert (raised.value.cause, raised.value.cure) == ("The cause.", "The cure.")
    out, err = capfd.readouterr()
    assert "rank 0 speaks" in out and "rank 1 speaks" not in out and "Traceback" not in err


@pytest.mark.slow
def test_sigterm_ends_all_in_order(tmp_path):
    """Ranks that are at work: the test of the whole command below may meet them while they start."""
    with (tmp_path / "out.txt").open("w") as out:
        process = subprocess.Popen([sys.executable, launch_work.__file__], cwd=ROOT, stdout=out, start_new_session=True,
                                   stderr=subprocess.STDOUT,
                                   env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])})
    while "at work" not in (text := (tmp_path / "out.txt").read_text()):
        assert process.poll() is None, text
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(ranks._SECONDS_TO_END + 60) == 128 + signal.SIGTERM
    assert (tmp_path / "out.txt").read_text() == "at work\ninterrupted by SIGTERM. Do this.\n"
    assert all_have_ended(process.pid)


def failure(time, rank, reason, foreseen=None):
    return ranks._Failure(time, rank, reason, foreseen, f"traceback of {rank}")


CAUSE = LDSegError("The cause.", "The cure.")


@pytest.mark.parametrize("codes, failures, message", [
    ([1, 1], [failure(2, 0, "RuntimeError: closed"), failure(1, 1, "LDSegError", CAUSE)], "The cause"),
    ([1, -6], [failure(1, 0, "LDSegError", CAUSE)], "The cause"),
    ([1, -9], [failure(1, 0, "RuntimeError: closed")], "rank 1 by SIGKILL"),
    ([1, 1], [failure(2, 0, "RuntimeError: closed"), failure(1, 1, "ValueError: no")], "Rank 1 of 2 .*ValueError: no"),
    ([None, 3], [], "one has ended without a word")])
def test_the_first_cause_is_told(codes, failures, message, capsys):
    assert re.search(message, str(ranks._cause(codes, failures)))
    assert ("traceback of 1" in capsys.readouterr().err) == ("ValueError" in message)


def test_alone_nothing_is_started():
    done = []
    ranks.together(lambda: done.append(os.getpid()), 1, "cpu")
    assert done == [os.getpid()]


@pytest.mark.parametrize("number, batch_size, message", [(2, 5, "Use 1 or 5 of them"), (4, 2, "Use 1 or 2 of them"),
                                                         (3, 8, "Use 1 or 2 or 4 or 8 of them")])
def test_batches_that_cannot_be_shared(number, batch_size, message):
    with pytest.raises(LDSegError, match=message):
        ranks.require_equal_shares(number, batch_size)
    ranks.require_equal_shares(number, number * batch_size)


def test_devices_that_are_not_there(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    ranks.require_devices(2, "cuda")
    ranks.require_devices(3, "cpu")
    with pytest.raises(LDSegError, match="-num_gpus is 3, and there are 2 devices of type cuda"):
        ranks.require_devices(3, "cuda")
    with pytest.raises(LDSegError, match="1 devices of type mps"):
        ranks.require_devices(2, "mps")


def test_what_torchrun_says_counts(monkeypatch):
    assert ranks.number_of_ranks(3) == 3 and ranks.leads()
    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "1")
    assert ranks.number_of_ranks(3) == 3
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert ranks.number_of_ranks(1) == ranks.number_of_ranks(2) == 2 and not ranks.leads()
    with pytest.raises(LDSegError, match="torchrun has started 2 processes, and -num_gpus is 4"):
        ranks.number_of_ranks(4)
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert ranks.number_of_ranks(1) == 1


def test_jobs_get_as_many_gpus_as_they_train_on(monkeypatch, tmp_path):
    """Of five GPUs two for each of two folds at a time; the third fold waits."""
    given = []

    def submit(kind, folder, dataset, folds, options, parameters):
        given.append((folds[0], parameters["visible_gpus"], len([job for job in running if not job.ended])))
        running.append(SimpleNamespace(ended=False, job_id=folds[0], exception=lambda: None, cancel=lambda: None,
                                       paths=SimpleNamespace(stdout="log")))
        running[-1].done = lambda job=running[-1]: job.ended
        return [running[-1]]

    def end_the_oldest(_):
        next(job for job in running if not job.ended).ended = True

    running: list = []
    monkeypatch.setattr(cluster, "submit_folds", submit)
    monkeypatch.setattr(cluster, "_gpus", lambda: [0, 1, 2, 3, 4])
    monkeypatch.setattr(cluster, "sleep", end_the_oldest)
    cluster.run_locally(tmp_path, "Dataset007_Small", [0, 1, 2], {"num_gpus": 2}, {})
    assert given == [(0, [0, 1], 0), (1, [2, 3], 1), (2, [0, 1], 1)]


class Command:
    """`ldseg_train` on fold 1 of the small world by two processes, as a user starts it."""

    def __init__(self, world, *flags, start=("-m",)):
        self.fold = world["model"] / "fold_1"
        self.out = world["nnUNet_raw"].parent / "out.txt"
        arguments = ["7", "1", "-c", "3d_fullres", "-device", "cpu", "--iterations_per_epoch", "2", *flags]
        with self.out.open("w") as out:
            self.process = subprocess.Popen(
                [sys.executable, *start, "ldseg_auto.cli.train", *arguments], cwd=ROOT, stdout=out,
                stderr=subprocess.STDOUT, start_new_session=True,
                env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"})  # of the ranks too

    def wait_for(self, text, seconds=300):
        end = time.monotonic() + seconds
        while text not in self.text():
            assert self.process.poll() is None and time.monotonic() < end, self.text()
            time.sleep(0.05)

    def text(self):
        return self.out.read_text()

    def ranks(self):
        """Their process ids: the command's children but for multiprocessing's tracker of resources."""
        listed = subprocess.run(["ps", "-ww", "-o", "pid=,args=", "--ppid", str(self.process.pid)], capture_output=True,
                                text=True)
        return [int(line.split()[0]) for line in listed.stdout.splitlines() if "spawn_main" in line]


def all_have_ended(pid, seconds=20):
    """Whether nothing runs any more that the command has started; multiprocessing's tracker ends a little after it."""
    end = time.monotonic() + seconds
    while subprocess.run(["ps", "-o", "pid=", "-s", str(pid)], capture_output=True, text=True).stdout.split():
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True


@pytest.mark.slow
def test_the_command_is_ended_killed_continued_and_predicted_with(own_small_world, tmp_path):
    command = Command(own_small_world, "-num_gpus", "2", "--epochs", "4")
    command.wait_for(": Epoch 1\n")
    os.kill(command.process.pid, signal.SIGTERM)
    assert command.process.wait(120) == 128 + signal.SIGTERM
    assert command.text().count("interrupted by SIGTERM. Run the same command again") == 1
    assert "Traceback" not in command.text() and all_have_ended(command.process.pid)

    command = Command(own_small_world, "-num_gpus", "2", "--epochs", "4")
    command.wait_for(": Epoch 2\n")
    os.kill(command.ranks()[1], signal.SIGKILL)
    assert command.process.wait(120) == 1
    assert "error: Of 2 processes that train together rank 1 by SIGKILL was killed" in command.text()
    assert "Traceback" not in command.text() and all_have_ended(command.process.pid)

    command = Command(own_small_world, "-num_gpus", "2", "--epochs", "4", "--val_best")
    assert command.process.wait(600) == 0, command.text()
    assert command.text().count("Trained fold: ") == 1 and ": Epoch 0\n" not in command.text()
    assert (command.fold / "validation_best" / "summary.json").is_file()
    assert len(list((command.fold / "validation_best").glob("*.nii.gz"))) == 2
    assert not (command.fold / "validation").exists() and not (command.fold / "validation_best.part").exists()
    assert len(checkpoint.load(str(command.fold / "checkpoint_final.pth"), "cpu")["logging"]["coding_dice"]) == 4
    assert predict.main(["-i", str(own_small_world["images"]), "-o", str(tmp_path / "out"), "-d", "7", "-f", "1",
                         "-device", "cpu", "-npp", "0", "-nps", "0", "--disable_tta"]) == 0
    assert len(list((tmp_path / "out").glob("*.nii.gz"))) == 2


@pytest.mark.slow
def test_torchrun(own_small_world):
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m")
    command = Command(own_small_world, "--epochs", "1", start=torchrun)
    assert command.process.wait(600) == 0, command.text()
    assert command.text().count("Trained fold: ") == command.text().count(": Epoch 0\n") == 1
    assert len(list((command.fold / "validation").glob("*.nii.gz"))) == 2
    command = Command(own_small_world, "--epochs", "1", "-num_gpus", "3", start=torchrun)
    assert command.process.wait(120) == 1 and "error: torchrun has started 2 processes" in command.text()
    command = Command(own_small_world, "--c", "--val", start=torchrun)
    assert command.process.wait(120) == 1
    assert command.text().count("error: --c and --val exclude each other") == 1


@pytest.mark.parametrize("rank", [0, 1])
def test_only_the_first_rank_reports_to_wandb(rank, monkeypatch):
    from torch import distributed

    for name in ("init_process_group", "destroy_process_group"):
        monkeypatch.setattr(distributed, name, lambda *_, **__: None)
    monkeypatch.setenv("nnUNet_wandb_enabled", "1")
    with ranks._joined("cpu", rank, 2, rank):
        assert os.environ["nnUNet_wandb_enabled"] == ("1" if rank == 0 else "0")


def test_torchrun_does_not_submit_jobs(monkeypatch, capsys):
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
                        "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    assert train.main(["7", "0", "--cluster", "local"]) == 1
    assert "without torchrun" in capsys.readouterr().err
