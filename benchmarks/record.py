"""What every benchmark writes: a JSON file with all that is needed to repeat it, and its section of RESULTS.md."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import shlex
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent


def parser(description: str | None) -> argparse.ArgumentParser:
    """Of a benchmark of one data set."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("dataset", help="full name, DatasetXXX_NAME")
    return made


def in_own_process(work: Callable[..., Any], *arguments: Any) -> Any:
    """The result of `work`, computed in a new process that ends with it."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(work, *arguments).result()


def machine() -> str:
    """The processor's name and how many of its cores this process may use."""
    info = Path("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in info.read_text().splitlines()
             if line.startswith("model name")] if info.is_file() else []
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{names[0] if names else platform.machine()}, {cores} cores"


def conditions(threads: int) -> dict[str, Any]:
    """Date, machine, threads, versions and the command that was typed."""
    return {"date": date.today().isoformat(), "machine": machine(), "threads": threads,
            "versions": {name: version(name) for name in ("torch", "nnunetv2", "numpy")},
            "command": shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])}


def write_json(name: str, content: dict[str, Any]) -> Path:
    """benchmarks/results/NAME.json, put in place by renaming."""
    file = HERE / "results" / f"{name}.json"
    file.parent.mkdir(exist_ok=True)
    temporary = file.with_suffix(".part")
    temporary.write_text(json.dumps(content, indent=1))
    temporary.replace(file)
    return file


def write_section(name: str, text: str, page: Path = HERE / "RESULTS.md") -> None:
    """Replace what stands between the page's `<!-- NAME -->` and `<!-- end of NAME -->`; at the end where it is new."""
    start, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    old = page.read_text()
    before, found, rest = old.partition(start)
    after = rest.partition(end)[2] if found else "\n"
    separator = "" if found else "\n"
    page.write_text(f"{before}{separator}{start}\n{text}\n{end}{after}")


def under(conditions_: dict[str, Any]) -> str:
    """One line below a table: what it was measured on, and how to repeat it."""
    versions = " ".join(f"{name} {number}" for name, number in conditions_["versions"].items())
    return (f"{conditions_['date']}, {conditions_['machine']}, {conditions_['threads']} threads, {versions}: "
            f"`{conditions_['command']}`")


def table(header: list[str], rows: list[list[str]]) -> str:
    """Markdown."""
    return "\n".join("| " + " | ".join(row) + " |" for row in [header, ["---"] * len(header), *rows])
