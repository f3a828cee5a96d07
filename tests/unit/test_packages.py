"""Packages as sources of data: whole or not there, checked, and a missing client or package said in one sentence."""

import hashlib
import io
import os
import signal
import stat
import subprocess
import sys
import tarfile
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from cuvee.checkpoints import fs
from cuvee.checkpoints.garbage import find_leftovers
from cuvee.checkpoints.publishing import lock_file
from cuvee.errors import CheckpointError, ResourceError
from cuvee.evaluation.packages import Package, archive, members

NPM = Package("npm", "verses", "1.0.0", "", "CC0", "verses")
FILES = {"package/a.txt": b"one", "package/data/b.txt": b"two"}


def as_tar(files, mode="w:gz"):
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode=mode) as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return data.getvalue()


def as_deb(tar_xz):
    parts = {b"debian-binary": b"2.0\n", b"control.tar.xz": b"odd", b"data.tar.xz": tar_xz}
    deb = b"!<arch>\n"
    for name, content in parts.items():
        deb += (
            name.ljust(16)
            + b"0".ljust(12)
            + b"0".ljust(6) * 2
            + b"100644".ljust(8)
            + str(len(content)).encode().ljust(10)
        )
        deb += b"`\n" + content + b"\n" * (len(content) % 2)
    return deb


@pytest.fixture
def client(tmp_path, monkeypatch):
    """Install a client that leaves the given bytes in its folder and counts how often it is called."""

    def install(name, file, data, *, code=0, says="", sleep=0):
        tools = tmp_path / "tools"
        tools.mkdir(exist_ok=True)
        (tools / "payload").write_bytes(data)
        (tools / "calls").write_text("")
        script = tools / name
        script.write_text(
            f"#!/bin/sh\necho called >> {tools}/calls\n/bin/cat {tools}/payload > {file}\necho '{says}' >&2\n"
            f"/bin/sleep {sleep}\nexit {code}\n"
        )
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", str(tools))
        return lambda: len((tools / "calls").read_text().splitlines())

    return install


def test_a_package_is_downloaded_once(client, tmp_path):
    calls = client("npm", "verses-1.0.0.tgz", as_tar(FILES))
    assert members(NPM, home=tmp_path) == FILES
    assert members(NPM, ["package/data/"], home=tmp_path) == {"package/data/b.txt": b"two"}
    assert calls() == 1


def test_a_file_that_a_package_does_not_hold_is_named(client, tmp_path):
    client("npm", "verses-1.0.0.tgz", as_tar(FILES))
    with pytest.raises(CheckpointError, match="no 'package/c.txt'"):
        members(NPM, ["package/c.txt"], home=tmp_path)


def test_damaged_bytes_are_fetched_again(client, tmp_path):
    calls = client("npm", "verses-1.0.0.tgz", as_tar(FILES))
    whole = archive(NPM, tmp_path)
    (kept,) = tmp_path.glob("packages/*/*.tgz")
    kept.write_bytes(whole[:-1])
    assert archive(NPM, tmp_path) == whole
    assert calls() == 2


def test_a_download_that_fails_half_way_leaves_nothing(client, tmp_path):
    client("npm", "verses-1.0.0.tgz", as_tar(FILES)[:20], code=1, says="the connection was lost")
    with pytest.raises(ResourceError, match="verses cannot be downloaded: the connection was lost") as caught:
        archive(NPM, tmp_path)
    assert "npm pack verses@1.0.0" in caught.value.right
    assert list((tmp_path / "packages").iterdir()) == []


def test_other_bytes_than_the_known_ones_are_refused(client, tmp_path):
    client("npm", "verses-1.0.0.tgz", as_tar(FILES))
    with pytest.raises(CheckpointError, match="has digest"):
        archive(replace(NPM, sha256="0" * 64), tmp_path)
    assert list((tmp_path / "packages").iterdir()) == []


def test_a_missing_client_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ResourceError, match="npm is not installed"):
        archive(NPM, tmp_path)


def test_a_client_that_leaves_no_archive_is_said(client, tmp_path):
    client("npm", "other.txt", b"")
    with pytest.raises(ResourceError, match="npm left 0 archives"):
        archive(NPM, tmp_path)


def test_a_wheel_and_a_debian_package_are_unpacked(client, tmp_path):
    deb = as_deb(as_tar({"./usr/share/a": b"one"}, "w:xz"))
    client("apt-get", "verses_1_all.deb", deb)
    assert members(replace(NPM, registry="debian"), home=tmp_path) == {"usr/share/a": b"one"}
    wheel = io.BytesIO()
    with zipfile.ZipFile(wheel, "w") as zipped:
        zipped.writestr("verses/a", b"one")
    place = tmp_path / "packages" / "pypi-verses-1.0.0"
    place.mkdir(parents=True)
    (place / "verses.whl").write_bytes(wheel.getvalue())
    (place / "verses.whl.sha256").write_text(hashlib.sha256(wheel.getvalue()).hexdigest())
    assert members(replace(NPM, registry="pypi"), home=tmp_path) == {"verses/a": b"one"}


def test_what_is_no_debian_package_is_said(client, tmp_path):
    client("apt-get", "verses_1_all.deb", b"!<arch>\n" + b"x" * 100)
    with pytest.raises(CheckpointError, match="no Debian package"):
        members(replace(NPM, registry="debian"), home=tmp_path)


def test_kept_packages_need_no_network(client, tmp_path, monkeypatch):
    client("npm", "verses-1.0.0.tgz", as_tar(FILES))
    archive(NPM, tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert members(NPM, home=tmp_path) == FILES


# --- What killed downloads leave ------------------------------------------------------------------------------------


def leave(folder, package):
    """Leave what a download leaves that was killed."""
    staging = folder / f".npm-{package}-1.0.0.cuvee-000000000000"
    (staging / "model").mkdir(parents=True)
    (staging / "model" / "half.tgz").write_bytes(b"half")
    return staging


def test_what_killed_downloads_have_left_goes_with_the_next_one(client, tmp_path):
    client("npm", "verses-1.0.0.tgz", as_tar(FILES))
    packages = tmp_path / "packages"
    left = [leave(packages, name) for name in ("verses", "other")]
    in_use = leave(packages, "third")
    assert {one.path for one in find_leftovers(packages, older_than_s=0)} == {*left, in_use}  # `cuvee gc` lists them
    with fs.lock(lock_file(packages / "npm-third-1.0.0")):
        assert members(NPM, home=tmp_path) == FILES
        assert not any(map(fs.exists, left)) and (in_use / "model" / "half.tgz").is_file()
    assert {path.name for path in packages.iterdir() if "third" not in path.name} == {"npm-verses-1.0.0"}


def test_two_that_want_a_package_download_it_once(client, tmp_path):
    calls = client("npm", "verses-1.0.0.tgz", as_tar(FILES), sleep=0.5)
    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(lambda _: archive(NPM, tmp_path), range(2))
    assert one == other and calls() == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_download_that_is_stopped_leaves_nothing(client, tmp_path, number):
    client("npm", "verses-1.0.0.tgz", as_tar(FILES)[:20], sleep=60)
    program = (
        "import sys\nfrom pathlib import Path\nfrom cuvee.cli.stopping import stoppable\n"
        "from cuvee.evaluation.packages import Package, archive\n"
        "with stoppable():\n    archive(Package('npm', 'verses', '1.0.0', '', '', ''), Path(sys.argv[1]))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, tmp_path], env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    )
    packages = tmp_path / "packages"
    while not list(packages.glob(".*/model/*.tgz")):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    assert process.wait(60) != 0
    assert list(packages.iterdir()) == []
