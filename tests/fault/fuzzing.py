"""What must hold for any bytes at all, and mutations that come near to what is valid.

A judge has one kind of file read from the bytes it is given, and raises `Wrong` where Cuvée takes what the reference reader
does not, fails other than in words, prints what could drive a terminal, runs code, or takes long.
"""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import struct
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch

from cuvee.checkpoints.folders import read_config, read_index
from cuvee.checkpoints.journal import Journal, read_journal
from cuvee.checkpoints.lora_config import read_lora_config
from cuvee.checkpoints.safetensors_format import lay_out, open_safetensors
from cuvee.checkpoints.torch_pickle import open_torch_pickle
from cuvee.engine.manifest import is_sealed, read_manifest
from cuvee.errors import CheckpointError, CuveeError
from cuvee.recipes import load_recipe, prepare
from cuvee.tensors.dtypes import DTYPES

INDEX = "model.safetensors.index.json"
MOST_SECONDS = 5.0


class Wrong(AssertionError):
    """Cuvée did with some bytes what it must never do."""


def judge_safetensors(content: bytes, folder: Path) -> str:
    """Read a safetensors file, and hold the answer against the reference reader's."""
    path = _write(folder / "model.safetensors", content)
    theirs = _theirs(content)
    try:
        file, tensors, _ = open_safetensors(path)
    except CheckpointError as error:
        _check_words(error)
        if theirs is not None and "twice" not in error.found:
            raise Wrong(f"refused, though safetensors reads it: {error.found}") from None
        return "refused"
    file.close()
    if theirs is None:
        raise Wrong("accepted, though safetensors refuses it")
    ours = {t.name: (t.dtype.name, t.shape) for t in tensors.values()}
    if ours != {name: (dtype, shape) for name, (dtype, shape, _) in theirs.items()}:
        raise Wrong(f"read as {ours}")
    for name, (_, _, data) in theirs.items():
        offset = tensors[name].offset
        if content[offset : offset + len(data)] != data:
            raise Wrong(f"other bytes for {name!r}")
    return "accepted"


def _theirs(content: bytes) -> dict[str, tuple[str, tuple[int, ...], bytes]] | None:
    """Return what the reference reader makes of a file: dtype, shape and bytes by name; None where it refuses."""
    try:
        return {name: (t["dtype"], tuple(t["shape"]), bytes(t["data"])) for name, t in safetensors.deserialize(content)}
    except (safetensors.SafetensorError, ValueError, OverflowError):
        return None


def judge_pickle(content: bytes, folder: Path) -> str:
    """Read a torch file; nothing in it may run."""
    path = _write(folder / "pytorch_model.bin", content)

    def read() -> None:
        file, tensors, _ = open_torch_pickle(path)
        try:
            for tensor in tensors.values():
                end = tensor.place[1]
                if not 0 <= end <= len(content):
                    raise Wrong(f"a tensor at byte {end} of {len(content)}")
        finally:
            file.close()

    return _judge(read)


def judge_index(content: bytes, folder: Path) -> str:
    """Read an index; every file it names must be a plain name."""
    _write(folder / INDEX, content)

    def read() -> None:
        for file in read_index(folder, INDEX).values():
            if "/" in file or "\0" in file or file in ("", ".", ".."):
                raise Wrong(f"an index leads to {file!r}")

    return _judge(read)


def judge_config(content: bytes, folder: Path) -> str:
    """Read a config.json."""
    _write(folder / "config.json", content)
    return _judge(lambda: read_config(folder))


def judge_adapter(content: bytes, folder: Path) -> str:
    """Read an adapter_config.json, and let its patterns match."""
    path = _write(folder / "adapter_config.json", content)
    return _judge(lambda: read_lora_config(path).scaling("model.layers.10.self_attn.q_proj" * 5, 8))


def judge_recipe(content: bytes, folder: Path) -> str:
    """Read a recipe."""
    path = _write(folder / "recipe.yml", content)
    return _judge(lambda: prepare(load_recipe(path)))


def judge_manifest(content: bytes, folder: Path) -> str:
    """Read a manifest. Those that are not sealed count as refused."""
    _write(folder / "cuvee.json", content)

    def read() -> None:
        if not is_sealed(read_manifest(folder)):
            raise CheckpointError("the manifest was changed")

    return _judge(read)


def judge_journal(content: bytes, folder: Path) -> str:
    """Read a journal: never an error, and only lines whose checksum is right."""
    path = _write(folder / "journal.jsonl", content)
    return "accepted" if read_journal(path) else "refused"


Judge = Callable[[bytes, Path], str]
JUDGES: dict[str, Judge] = {
    "safetensors": judge_safetensors,
    "pickle": judge_pickle,
    "index": judge_index,
    "config": judge_config,
    "adapter": judge_adapter,
    "recipe": judge_recipe,
    "manifest": judge_manifest,
    "journal": judge_journal,
}
_RUNS_CODE = (
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
    "subprocess.Popen",
    "socket.connect",
    "ctypes.dlopen",
)
_caught: list[str] = []


def watch_for_code() -> None:
    """Note every attempt of this process to run a program, from now on."""
    sys.addaudithook(lambda event, _: _caught.append(event) if event in _RUNS_CODE else None)


def judge(kind: str, content: bytes, folder: Path) -> str:
    """Judge bytes as one kind of file; returns "accepted" or "refused".

    Raises:
        Wrong: with what is.
    """
    begin = time.process_time()
    try:
        verdict = JUDGES[kind](content, folder)
    except Wrong:
        raise
    except Exception as error:
        raise Wrong(f"{kind}: {type(error).__name__}: {error}") from error
    if time.process_time() - begin > MOST_SECONDS:
        raise Wrong(f"{kind}: it took {time.process_time() - begin:.1f} s")
    if _caught:
        raise Wrong(f"{kind}: code ran: {_caught}")
    return verdict


def _write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def _judge(read: Callable[[], Any]) -> str:
    try:
        read()
    except CuveeError as error:
        _check_words(error)
        return "refused"
    return "accepted"


def _check_words(error: CuveeError) -> None:
    said = str(error)
    if not error.found and not hasattr(error, "errors"):
        raise Wrong("refused without a word")
    if any(not c.isprintable() and c != "\n" for c in said):
        raise Wrong(f"words that drive a terminal: {said!r}")


# ---- mutations

_EDGES = ("0", "-1", "1", "2", "8", "255", "4294967296", "9223372036854775808", "18446744073709551615", "1e3", "NaN", "null",
          "true", '""', "[]", "{}", '"F32"', '"F4"', '"\\ud800"', '"\\u0000"', '"__metadata__"', "1" * 30)  # fmt: skip


def mutate(content: bytes, draws: random.Random) -> bytes:
    """Change some bytes here and there, or some values of JSON, keeping the length of a safetensors header true at times."""
    for _ in range(draws.choice((1, 1, 1, 2, 3, 8))):
        content = draws.choice((_flip, _cut, _repeat, _insert, _edge, _edge, _edge, _swap, _header, _header))(
            content, draws
        )
    return content


def _place(content: bytes, draws: random.Random) -> int:
    return draws.randrange(len(content) + 1)


def _flip(content: bytes, draws: random.Random) -> bytes:
    changed = bytearray(content)
    if changed:
        changed[draws.randrange(len(changed))] ^= 1 << draws.randrange(8)
    return bytes(changed)


def _cut(content: bytes, draws: random.Random) -> bytes:
    one, other = sorted((_place(content, draws), _place(content, draws)))
    return content[:one] + content[min(other, one + draws.choice((1, 4, 40))) :]


def _repeat(content: bytes, draws: random.Random) -> bytes:
    one = _place(content, draws)
    part = content[one : one + draws.choice((1, 8, 60))]
    at = _place(content, draws)
    return content[:at] + part + content[at:]


def _insert(content: bytes, draws: random.Random) -> bytes:
    at = _place(content, draws)
    new = draws.choice(
        (draws.randbytes(draws.choice((1, 4, 8))), b"../", b"\0", b"\x1b[2J", b'"', b"{", b"[", b",", b":", b"\xff")
    )
    return content[:at] + new + content[at:]


def _swap(content: bytes, draws: random.Random) -> bytes:
    a, b, c = sorted(_place(content, draws) for _ in range(3))
    return content[:a] + content[b:c] + content[a:b] + content[c:]


def _edge(content: bytes, draws: random.Random) -> bytes:
    """Put an edge value in the place of a number or a word."""
    starts = [i for i in range(len(content)) if content[i : i + 1].isdigit() or content[i : i + 1] in (b'"', b"[")]
    if not starts:
        return content
    at = draws.choice(starts)
    end = at + 1
    while end < len(content) and content[end : end + 1].isalnum():
        end += 1
    if content[at : at + 1] == b'"' and content[end : end + 1] == b'"':
        end += 1
    return content[:at] + draws.choice(_EDGES).encode() + content[end:]


def _header(content: bytes, draws: random.Random) -> bytes:
    """Change the JSON of a safetensors header as JSON, and say its length rightly; other files are left alone."""
    try:
        (length,) = struct.unpack("<Q", content[:8])
        header = json.loads(content[8 : 8 + length])
        name = draws.choice(list(header))
        entry = header[name]
        what = draws.randrange(11)
        if what == 0:
            entry["shape"] = [draws.choice((0, 1, 2, 3, 4, 8, 1 << 32, 1 << 63)) for _ in range(draws.randrange(4))]
        elif what == 1:
            entry["data_offsets"][draws.randrange(2)] += draws.choice((-8, -4, -1, 1, 4, 8, 1 << 40, -(1 << 40)))
        elif what == 2:
            entry["dtype"] = draws.choice(list(DTYPES))
        elif what == 3:
            header[draws.choice((name + "'", "", "__metadata__", "a\0b", "../x"))] = json.loads(json.dumps(entry))
        elif what == 4:
            del header[name]
        elif what == 5:
            entry[draws.choice(("dtype", "shape", "data_offsets", "more"))] = draws.choice(
                (None, [], {}, "F32", 1, 1.5, True, [0, 0])
            )
        elif what == 6:
            header["__metadata__"] = draws.choice(({"format": "pt"}, {}, {"a": 1}, None, [], "text", {"a": None}))
        elif what == 7:
            content += bytes(draws.choice((1, 4, 8)))
        elif what == 8:
            header = dict(reversed(header.items()))
        else:  # one more tensor, rightly
            end = len(content) - 8 - length
            header[draws.choice(("more", "\U0001f347", "a\nb", "../x"))] = {
                "dtype": "U8",
                "shape": [1, 3],
                "data_offsets": [end, end + 3],
            }
            content += b"abc"
        text = json.dumps(header).encode()
        text += draws.choice((b"", b"", b" ", b"\n\t ", b"\0")) if draws.random() < 0.3 else b""
        return struct.pack("<Q", len(text)) + text + content[8 + length :]
    except (ValueError, KeyError, TypeError, struct.error, AttributeError, IndexError, RecursionError):
        return content


@dataclass
class Seeds:
    """What to begin with: files that are read, and attacks, by kind."""

    valid: dict[str, list[bytes]]
    attacks: dict[str, list[bytes]]

    def pick(self, draws: random.Random) -> tuple[str, bytes]:
        """Return a kind, half the time safetensors, and mutated bytes of it; at times crossed with another seed."""
        kind = "safetensors" if draws.random() < 0.5 else draws.choice(list(self.valid))
        content = self._seed(kind, draws)
        if draws.random() < 0.1:
            other = self._seed(kind, draws)
            content = content[: _place(content, draws)] + other[_place(other, draws) :]
        return kind, mutate(content, draws)

    def _seed(self, kind: str, draws: random.Random) -> bytes:
        attacks = self.attacks[kind] if draws.random() < 0.3 else []
        return draws.choice(attacks or self.valid[kind])


def seeds(attacks: Path, published: Path) -> Seeds:
    """Return what to begin with.

    Args:
        attacks: the folder of `make.py`'s files.
        published: a small model that cuvee has published.
    """
    names = {"safetensors": "model.safetensors", "pickle": "pytorch_model.bin", "index": INDEX, "config": "config.json",
             "adapter": "adapter_config.json", "recipe": "recipe.yml"}  # fmt: skip
    hostile = {kind: _contents(attacks, names.get(kind, "")) for kind in JUDGES}
    valid = {
        "safetensors": [*_safetensors(), *_contents(published, "model.safetensors")],
        "pickle": [_pickle()],
        "manifest": _contents(published, "cuvee.json"),
        "journal": [_journal()],
        "config": [b'{"model_type": "llama", "hidden_size": 16, "torch_dtype": "bfloat16"}'],
        "index": [b'{"metadata": {"total_size": 8}, "weight_map": {"w": "model-00001-of-00001.safetensors"}}'],
        "adapter": [
            b'{"peft_type": "LORA", "r": 8, "lora_alpha": 16, "rank_pattern": {"q_proj": 8, ".*layers.1.*": 8}, '
            b'"use_rslora": true, "modules_to_save": ["lm_head"], "trainable_token_indices": {"embed": [1, 2]}}'
        ],
        "recipe": [
            b"merge_method: ties\nbase_model: base\nmodels:\n  - model: a\n"
            b"    parameters: {weight: [0.2, 0.8], density: 0.5}\n"
            b"  - model: b\n    parameters:\n      weight:\n        - filter: mlp\n          value: 0.5\n        - value: 1\n"
            b"dtype: bfloat16\nexclude: ['*.norm.*']\n",
            b"slices:\n  - sources:\n      - model: a\n        layer_range: [0, 2]\nmerge_method: passthrough\n",
            b"merge_method: slerp\nmodels: &m [a, b]\nbase_model: a\nparameters: {t: [0, 0.5, 1]}\nseed: 1\n",
        ],
    }
    return Seeds(valid, hostile)


def _contents(folder: Path, name: str) -> list[bytes]:
    paths = [path for path in sorted(folder.rglob(name)) if path.is_file() and not path.is_symlink()] if name else []
    return [content for path in paths if len(content := path.read_bytes()) < 20_000]


def _safetensors() -> list[bytes]:
    """Return valid files of many dtypes and shapes."""
    shapes = [(2,), (), (0, 3), (2, 3), (1, 1, 4)]
    models = [
        {"w": (DTYPES["F32"], (2, 2)), "v": (DTYPES["BF16"], (3,)), "s": (DTYPES["F64"], ())},
        {
            f"{name}.{n}": (DTYPES[name], shape)
            for n, shape in enumerate(shapes)
            for name in ("I64", "F16", "U8", "BOOL")
        },
        {f"{name}": (DTYPES[name], (4, 2)) for name in DTYPES},
        {"empty": (DTYPES["F32"], (0,)), "also": (DTYPES["U8"], (5, 0))},
    ]
    layouts = [lay_out(model, metadata) for model in models for metadata in ({}, {"format": "pt"})]
    return [layout.header + bytes(layout.size - len(layout.header)) for layout in layouts]


def _pickle() -> bytes:
    """Return a file as torch.save writes it."""
    out = io.BytesIO()
    torch.save({"w": torch.arange(6.0).reshape(2, 3).t(), "v": torch.ones(2, dtype=torch.bfloat16), "step": 3}, out)
    return out.getvalue()


def _journal() -> bytes:
    path = scratch_folder() / "journal.jsonl"
    journal = Journal(path)
    journal.append({"plan": "00", "allow_nan": False, "files": []})
    journal.append({"tensor": "w", "output": "00", "inputs": [[0, "w", "00"]], "non_finite": 0})
    journal.close()
    content = path.read_bytes()
    shutil.rmtree(path.parent)
    return content


def scratch_folder() -> Path:
    """Return a new folder in memory, where there is one."""
    memory = "/dev/shm"
    return Path(tempfile.mkdtemp(prefix="cuvee-fuzz-", dir=memory if os.access(memory, os.W_OK) else None))
