"""Runs a benchmark in a separate process, and tracks the peak combined memory of that process and Ray's workers."""

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

import psutil

_INTERVAL_S = 0.25

Memory = Callable[[psutil.Process], int]
"""The memory of a process, in bytes."""


def private(process: psutil.Process) -> int:
    """The process's memory without shared memory, such as Ray's object store."""
    memory = process.memory_info()
    return int(memory.rss - memory.shared)


def proportional(process: psutil.Process) -> int:
    """The process's memory, including its proportional share of shared memory (PSS), so that shared memory is counted
    only once across all processes."""
    return int(process.memory_full_info().pss)


def run_watched(module: str, arguments: list[str], memory: Memory) -> tuple[dict[str, float], int]:
    """Run `python -m module`. Returns the JSON in its last line on stdout, and the peak memory in bytes."""
    process = subprocess.Popen([sys.executable, "-m", module, *arguments], stdout=subprocess.PIPE, text=True)
    peak, stop = [0], threading.Event()
    listener = threading.Thread(target=_watch, args=(psutil.Process(process.pid), memory, peak, stop))
    listener.start()
    output, _ = process.communicate()
    stop.set()
    listener.join()
    assert process.returncode == 0
    result: dict[str, float] = json.loads(output.splitlines()[-1])
    return result, peak[0]


def with_workers(root: psutil.Process) -> Iterator[psutil.Process]:
    """The process itself and Ray's workers."""
    yield root
    for process in root.children(recursive=True):
        try:
            if process.cmdline()[:1] and process.cmdline()[0].startswith("ray::"):
                yield process
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue


def cpu_s() -> float:
    """The CPU seconds of this process and Ray's workers."""
    return sum(sum(each.cpu_times()[:2]) for each in with_workers(psutil.Process()))


def _watch(root: psutil.Process, memory: Memory, peak: list[int], stop: threading.Event) -> None:
    while not stop.wait(_INTERVAL_S):
        total = 0
        for process in with_workers(root):
            try:
                total += memory(process)
            except (psutil.NoSuchProcess, psutil.ZombieProcess):
                continue
        peak[0] = max(peak[0], total)
