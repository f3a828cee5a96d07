"""The peers that Cuvée is measured against, each called as a program in an environment of its own."""

from __future__ import annotations

import subprocess
import venv
from dataclasses import dataclass
from pathlib import Path

TORCH = "torch==2.13.0"
"""Installed first and named again after, so that nothing the peer asks for replaces it."""
MERGEKIT = "mergekit==0.1.5"
DEPENDENCIES = (
    # mergekit's tasks are pydantic classes; it was written against 2.10.
    "pydantic~=2.10.6",
    "accelerate>=1.6,<2",
    "click>=8.2.1,<9",
    "huggingface_hub",
    "immutables>=0.21,<1",
    "peft>=0.18",
    "protobuf",
    "safetensors>=0.5.2,<1",
    "scipy",
    "sentencepiece",
    "tqdm>=4.67.1,<5",
    "transformers>=5,<6",
    "typing-extensions",
)
"""What mergekit 0.1.5 asks for, less `datasets`, which `mergekit-yaml` never imports."""
QUIET_FLAGS = ("--no-copy-tokenizer", "--no-write-model-card", "--quiet")
"""What spares mergekit work that no merge needs. Of its other flags for a CPU (`--lazy-unpickle`, `--async-write`,
`--clone-tensors`) none gained anything here."""
FUSION_BENCH = ("fusion-bench==0.2.33", "transformers>=4.50,<5")
"""Its modules for CLIP import names that transformers 5 has no more."""
STAMP = "installed.txt"


class PeerUnavailable(Exception):
    """The peer could not be installed or started; the message says why in one line."""


@dataclass(frozen=True)
class Peer:
    """An installed mergekit."""

    folder: Path
    version: str
    torch_version: str
    sees_cuda: bool

    def merge_command(self, recipe: Path, out: Path, device: str, threads: int, seed: int = 0) -> list[str]:
        """The command that merges, with the flags that leave out all that Cuvée leaves out too."""
        on_device = ["--cuda"] if device == "cuda" and self.sees_cuda else []
        program = str(self.folder / "bin" / "mergekit-yaml")
        numbers = ["--num-threads", str(threads), "--random-seed", str(seed)]
        return [program, str(recipe), str(out), *QUIET_FLAGS, *on_device, *numbers]


def install_peer(folder: Path) -> Peer:
    """Install mergekit into a virtual environment, or find it installed.

    Args:
        folder: The environment's folder.

    Returns:
        The peer, ready to be called.

    Raises:
        PeerUnavailable: An installation step failed, for want of a network for instance.
    """
    install_environment(folder, [TORCH], ["--no-deps", MERGEKIT], [TORCH, *DEPENDENCIES])
    return _described(folder)


def install_fusion_bench(folder: Path) -> Path:
    """Install FusionBench into a virtual environment, or find it installed; return its Python.

    Raises:
        PeerUnavailable: An installation step failed.
    """
    install_environment(folder, [TORCH], [TORCH, *FUSION_BENCH])
    return folder / "bin" / "python"


def install_environment(folder: Path, *steps: list[str]) -> None:
    """Make a virtual environment with the packages of each step, unless it was made of the same ones before."""
    stamp = folder / STAMP
    packages = dict.fromkeys(word for step in steps for word in step if not word.startswith("--"))
    requirements = "\n".join((*packages, ""))
    if stamp.exists() and stamp.read_text() == requirements:
        return
    stamp.unlink(missing_ok=True)
    venv.create(folder, clear=True, with_pip=True)
    for step in steps:
        _call(folder, ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", *step])
    stamp.write_text(requirements)


def _described(folder: Path) -> Peer:
    question = (
        "import torch; from importlib.metadata import version; "
        "print(version('mergekit'), torch.__version__, torch.cuda.is_available())"
    )
    version, torch_version, sees_cuda = _call(folder, ["-c", question]).split()
    return Peer(folder, version, torch_version, sees_cuda == "True")


def _call(folder: Path, arguments: list[str]) -> str:
    """Run the environment's Python and return what it printed."""
    command = [str(folder / "bin" / "python"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        errors = [line for line in done.stderr.splitlines() if line.strip()]
        reason = errors[-1].strip() if errors else f"exit {done.returncode}"
        raise PeerUnavailable(f"{' '.join(arguments[:3])} failed: {reason}")
    return done.stdout
