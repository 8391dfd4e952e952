import os

import pytest

from ldseg_auto.errors import LDSegError
from ldseg_auto.evaluation import workers
from ldseg_auto.evaluation.workers import Workers


def _where(item: int) -> tuple[int, int]:
    return item, os.getpid()


def _threads(item: int) -> str | None:
    return os.environ.get("OMP_NUM_THREADS")


def _end(item: int) -> None:
    if item:
        os._exit(1)


def test_little_work_is_done_here():
    with Workers(4) as pool:
        assert pool.map(_where, [3, 1, 2], "working") == [(item, os.getpid()) for item in (3, 1, 2)]


@pytest.mark.processes
def test_much_work_is_shared(monkeypatch):
    monkeypatch.setattr(workers, "_START_SECONDS", 0.0)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    with Workers(1) as alone:
        assert {pid for _, pid in alone.map(_where, [1, 2, 3], "working")} == {os.getpid()}
    with Workers(2, progress_bar=False) as pool:
        results = pool.map(_where, [3, 1, 2], "working")
        assert [item for item, _ in results] == [3, 1, 2]
        assert results[0][1] == os.getpid() not in {pid for _, pid in results[1:]}
        assert pool.map(_threads, [1, 2], "working") == [None, "1"]
        with pytest.raises(LDSegError, match="ended by itself.*at item 1[^0-9].*-np"):
            pool.map(_end, [0, 1], "working", name="item {}".format)
