"""What a command costs: wall and processor time of the whole process, peak memory of it and its children."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

SAMPLE_EVERY_S = 0.01
CLAIMED_BYTES = 3 << 30
FAMILY_EVERY_SAMPLES = 10
"""Children are looked for at every tenth sample: reading the process tree costs more than reading its memory."""

FOLDERS = re.compile(r"(?<![\w.])(?:/[^\s/:'\"]+)+/")


@dataclass(frozen=True)
class ProcessCost:
    """One finished run of a command.

    Attributes:
        wall_s: From before the process was started until it was gone.
        cpu_s: Processor time of the process and its children, which tells a slow program from a busy machine.
        peak_rss_bytes: Largest resident memory seen, the mapped pages of files included.
        peak_anon_bytes: Largest anonymous memory seen (RssAnon): what the process itself asked for.
    """

    returncode: int
    wall_s: float
    cpu_s: float
    peak_rss_bytes: int
    peak_anon_bytes: int
    stdout: str
    stderr: str

    @property
    def last_words(self) -> str:
        """Last line of what the process wrote, its errors first: why it failed. Paths lose their folders."""
        lines = [line for text in (self.stdout, self.stderr) for line in text.splitlines() if line.strip()]
        return FOLDERS.sub("", lines[-1].strip()) if lines else f"exit {self.returncode} without a word"


def claim_memory() -> None:
    """Have a process touch memory and free it, so that no run pays for memory that a virtual machine had given back.

    A hypervisor takes back what a machine has freed (free page reporting, within seconds); the first touch of such a page
    costs about 10 µs, and with it writing 0.75 GB into the page cache 0.1 or 1.6 s, by chance.
    """
    subprocess.run([sys.executable, "-I", "-S", "-c", f"b'1' * {CLAIMED_BYTES}"], check=False)


def installed_environment(cuvee_home: Path) -> dict[str, str]:
    """Return this process's environment with a Cuvée home of its own, and bytecode kept as an installation has it."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return kept | {"CUVEE_HOME": str(cuvee_home)}


def run_measured(command: Sequence[str], env: Mapping[str, str] | None = None, cwd: Path | None = None) -> ProcessCost:
    """Run `command` to its end and say what it took.

    Args:
        command: Program and arguments.
        env: The whole environment, or None for this process's.
        cwd: Working folder.

    Returns:
        The cost, whatever the exit status. Memory is sampled every 10 ms over the process tree.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=out, stderr=err, env=env, cwd=cwd)
        sampler = _MemorySampler(process.pid)
        sampler.start()
        try:
            _, status, usage = os.wait4(process.pid, 0)
            wall = time.perf_counter() - start
            process.returncode = os.waitstatus_to_exitcode(status)
        except BaseException:
            process.kill()
            raise
        finally:
            sampler.stop()
        return ProcessCost(
            returncode=process.returncode,
            wall_s=wall,
            cpu_s=usage.ru_utime + usage.ru_stime,
            peak_rss_bytes=sampler.peak_rss,
            peak_anon_bytes=sampler.peak_anon,
            stdout=_text(out),
            stderr=_text(err),
        )


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")


class _MemorySampler(threading.Thread):
    """Watches the memory of a process and its descendants until stopped."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.peak_rss = 0
        self.peak_anon = 0
        self._pid = pid
        self._stopped = threading.Event()

    def run(self) -> None:
        family, samples = [self._pid], 0
        while not self._stopped.wait(SAMPLE_EVERY_S):
            if samples % FAMILY_EVERY_SAMPLES == 0:
                family = _family(self._pid)
            samples += 1
            memory = [_memory(pid) for pid in family]
            self.peak_rss = max(self.peak_rss, sum(rss for rss, _ in memory))
            self.peak_anon = max(self.peak_anon, sum(anon for _, anon in memory))

    def stop(self) -> None:
        self._stopped.set()
        self.join()


def _family(pid: int) -> list[int]:
    """The process and its descendants, as far as they still live."""
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except (FileNotFoundError, ProcessLookupError):
        return [pid]
    children = [int(child) for thread in threads for child in _read(f"/proc/{pid}/task/{thread}/children").split()]
    return [pid, *(descendant for child in children for descendant in _family(child))]


def _memory(pid: int) -> tuple[int, int]:
    """Resident and anonymous bytes of one process; zero where it is gone."""
    status = _read(f"/proc/{pid}/status")
    return _kilobytes(status, b"VmRSS:") * 1024, _kilobytes(status, b"RssAnon:") * 1024


def _kilobytes(status: bytes, field: bytes) -> int:
    start = status.find(field)
    return int(status[start + len(field) :].split(maxsplit=1)[0]) if start >= 0 else 0


def _read(path: str) -> bytes:
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read()
    except (FileNotFoundError, ProcessLookupError):
        return b""
