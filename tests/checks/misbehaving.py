"""Work for other processes, which must be able to import it."""

import os
import signal
import time


def work(item: str) -> str:
    if item == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if item == "hang":
        time.sleep(600)
    if item == "exit":
        os._exit(3)
    return f"{item} {os.getpid()}"


def ends_at_once(connection, work):
    os._exit(1)
