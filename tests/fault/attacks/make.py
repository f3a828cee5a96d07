"""Makes the hostile files of this folder: `python make.py FOLDER`. `test_attacks.py` says what must become of each.

One function makes one attack, in a folder of its name. The same bytes each time.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

Maker = Callable[[Path], None]
ATTACKS: dict[str, Maker] = {}
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
W = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def attack(maker: Maker) -> Maker:
    ATTACKS[maker.__name__] = maker
    return maker


def safetensors(header: Any, data: bytes = bytes(8), *, length: int | None = None) -> bytes:
    """Return a file with this header: text, bytes, or what becomes JSON."""
    text = (
        header if isinstance(header, bytes) else header.encode() if isinstance(header, str) else dump(header).encode()
    )
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def dump(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def entry(shape: list[Any], begin: Any, end: Any, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def header_attack(name: str, header: Any, data: bytes = bytes(8), *, length: int | None = None) -> None:
    """Add an attack that is one file with one header."""

    def maker(folder: Path) -> None:
        (folder / WEIGHTS).write_bytes(safetensors(header, data, length=length))

    ATTACKS[name] = maker


# ---- the header of a safetensors file

header_attack("header_of_no_bytes", b"", b"")
header_attack("header_longer_than_the_file", {"w": W}, length=4096)
header_attack("header_of_exabytes", {"w": W}, length=1 << 62)
header_attack("header_of_half_a_gigabyte", {"w": W}, length=1 << 29)
header_attack("header_that_is_a_list", "[]")
header_attack("header_that_is_no_json", "{'w': 1}")
header_attack("header_with_a_byte_order_mark", b"\xef\xbb\xbf" + dump({"w": W}).encode())
header_attack("header_that_is_no_utf8", b'{"\xff":{}}')
header_attack("header_nested_deep", "[" * 4_000)
header_attack("header_that_ends_in_zeros", dump({"w": W}) + "\0" * 8)
header_attack("header_with_not_a_number", '{"w":{"dtype":"F32","shape":[NaN],"data_offsets":[0,8]}}')
header_attack(
    "header_with_a_number_of_5000_digits", '{"w":{"dtype":"F32","shape":[' + "9" * 5000 + '],"data_offsets":[0,8]}}'
)
header_attack("metadata_that_is_no_text", {"__metadata__": {"format": 1}, "w": W})
header_attack("metadata_that_is_a_list", {"__metadata__": [], "w": W})
header_attack("name_written_twice", '{"w":' + dump(W) + ',"w":' + dump(W) + "}")
header_attack("name_that_is_half_a_surrogate", '{"\\ud800":' + dump(W) + "}")
header_attack("metadata_that_is_half_a_surrogate", '{"__metadata__":{"\\ud800":"pt"},"w":' + dump(W) + "}")
header_attack("field_that_is_half_a_surrogate", dump({"w": {**W, "more": "*"}}).replace("*", "\\udfff"))
header_attack("dtype_that_nobody_knows", {"w": entry([2], 0, 8, "F31")})
header_attack("dtype_that_is_a_list", {"w": {**W, "dtype": ["F32"]}})
header_attack("shape_below_zero", {"w": entry([-2], 0, 8)})
header_attack("shape_of_fractions", {"w": entry([2.0], 0, 8)})
header_attack("shape_of_truth", {"w": entry([True, 2], 0, 8)})
header_attack("shape_that_overflows", {"w": entry([1 << 33, 1 << 33], 0, 8)})
header_attack("shape_that_overflows_to_nothing", {"w": entry([1 << 63, 4, 0], 0, 0)}, b"")
header_attack("shape_that_needs_more", {"w": entry([3], 0, 8)})
header_attack("offsets_that_are_missing", {"w": {"dtype": "F32", "shape": [2]}})
header_attack("offsets_of_three", {"w": {**W, "data_offsets": [0, 4, 8]}})
header_attack("offsets_backwards", {"w": entry([2], 8, 0)})
header_attack("offsets_beyond_the_end", {"w": entry([2], 1 << 40, (1 << 40) + 8)})
header_attack("tensors_that_overlap", {"a": entry([2], 0, 8), "b": entry([2], 4, 12)}, bytes(12))
header_attack("tensors_at_one_place", {"a": entry([2], 0, 8), "b": entry([2], 0, 8)})
header_attack("tensors_with_a_hole", {"a": entry([1], 0, 4), "b": entry([1], 8, 12)}, bytes(12))
header_attack("bytes_of_no_tensor", {"w": W}, bytes(8) + b"#!/bin/sh\nevil\n")
header_attack("data_cut_short", {"w": W}, bytes(7))
header_attack("half_a_byte", {"w": entry([3], 0, 1, "F4")}, bytes(1))

# ---- names: each of these models is whole, and its name means nothing but itself

header_attack("named_like_a_path", {"../../../../tmp/cuvee-was-here": W})
header_attack("named_with_nul", {"a\0b": W})
header_attack("named_to_drive_a_terminal", {"\x1b]0;owned\x07\x1b[2J\x1b[31mw\r\n": W})
header_attack("named_right_to_left", {"w\u202egnp.exe\u2066": W})
header_attack("named_beyond_the_plane", {"\U0001f347\U0001f377": W})
header_attack("named_with_10000_letters", {"w" * 10_000: W})
header_attack("named_by_nothing", {"": W})

# ---- files that are no files, and indexes


@attack
def file_of_no_bytes(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(b"")


@attack
def file_of_seven_bytes(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(bytes(7))


@attack
def link_out_of_the_folder(folder: Path) -> None:
    (folder / WEIGHTS).symlink_to("../named_by_nothing/model.safetensors")


@attack
def config_link_out_of_the_folder(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(safetensors({"w": W}))
    (folder / "config.json").symlink_to("../config_that_is_no_json/config.json")


@attack
def config_that_is_no_json(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(safetensors({"w": W}))
    (folder / "config.json").write_text('{"model_type": ')


@attack
def config_nested_deep(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(safetensors({"w": W}))
    (folder / "config.json").write_text('{"a":' * 4_000)


@attack
def sidecar_link_out_of_the_folder(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(safetensors({"w": W}))
    (folder / "tokenizer.json").symlink_to("../index_to_a_program/run.sh")
    (folder / "extra").symlink_to("../index_to_a_program")


def indexed(folder: Path, weight_map: Any, files: dict[str, dict[str, Any]]) -> None:
    (folder / INDEX).write_text(dump({"metadata": {}, "weight_map": weight_map}))
    for name, header in files.items():
        (folder / name).write_bytes(safetensors(header, bytes(8 * len(header))))


@attack
def index_that_climbs(folder: Path) -> None:
    indexed(folder, {"w": "../model.safetensors"}, {})


@attack
def index_to_an_absolute_path(folder: Path) -> None:
    indexed(folder, {"w": "/etc/passwd.safetensors"}, {})


@attack
def index_to_a_missing_file(folder: Path) -> None:
    indexed(folder, {"w": "one.safetensors", "v": "two.safetensors"}, {"one.safetensors": {"w": W}})


@attack
def index_to_a_program(folder: Path) -> None:
    indexed(folder, {"w": "run.sh"}, {})
    (folder / "run.sh").write_text("echo run\n")


@attack
def index_of_a_tensor_in_two_files(folder: Path) -> None:
    files = {"one.safetensors": {"w": W}, "two.safetensors": {"w": W, "v": entry([2], 8, 16)}}
    indexed(folder, {"w": "one.safetensors", "v": "two.safetensors"}, files)


@attack
def index_of_a_tensor_in_no_file(folder: Path) -> None:
    indexed(folder, {"w": "one.safetensors", "v": "one.safetensors"}, {"one.safetensors": {"w": W}})


@attack
def index_that_leaves_a_tensor_out(folder: Path) -> None:
    indexed(folder, {"w": "one.safetensors"}, {"one.safetensors": {"w": W, "v": entry([2], 8, 16)}})


@attack
def index_of_numbers(folder: Path) -> None:
    indexed(folder, {"w": 1}, {})


@attack
def index_that_is_a_list(folder: Path) -> None:
    indexed(folder, [], {})


@attack
def index_that_drives_a_terminal(folder: Path) -> None:
    indexed(folder, {"w\x1b[2J": "\x1b]0;owned\x07.safetensors"}, {})


@attack
def shards_without_a_sister(folder: Path) -> None:
    (folder / "model-00001-of-00002.safetensors").write_bytes(safetensors({"w": W}))


@attack
def two_files_with_one_tensor(folder: Path) -> None:
    for name in ("a.safetensors", "b.safetensors"):
        (folder / name).write_bytes(safetensors({"w": W}))


# ---- pickles


class Payload:
    """What a hostile pickle calls when it is loaded: it would leave a file."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch cuvee-was-here",)


def archive(folder: Path, records: dict[str, bytes], *, method: int = zipfile.ZIP_STORED) -> None:
    """Write pytorch_model.bin as a zip of these records, with fixed dates."""
    with zipfile.ZipFile(folder / "pytorch_model.bin", "w", method) as file:
        for name, content in records.items():
            file.writestr(zipfile.ZipInfo(name, (2020, 1, 1, 0, 0, 0)), content, method)


def tensor_pickle(shape: tuple[int, ...], stride: tuple[int, ...], offset: int = 0, key: str = "0") -> bytes:
    """Return data.pkl of a state dict with one tensor `w` of float32, step by step: nothing is imported."""
    out = io.BytesIO()

    def text(value: str) -> bytes:
        raw = value.encode()
        return b"X" + struct.pack("<I", len(raw)) + raw

    def number(value: int) -> bytes:
        raw = value.to_bytes(9, "little")
        return b"\x8a" + bytes([len(raw)]) + raw

    def row(values: tuple[int, ...]) -> bytes:
        return b"(" + b"".join(map(number, values)) + b"t"

    out.write(b"\x80\x02}" + text("w") + b"ctorch._utils\n_rebuild_tensor_v2\n((")
    out.write(text("storage") + b"ctorch\nFloatStorage\n" + text(key) + text("cpu") + number(2) + b"tQ")
    out.write(number(offset) + row(shape) + row(stride) + b"\x89}tRs.")
    return out.getvalue()


def model_records(pickled: bytes, **more: bytes) -> dict[str, bytes]:
    return {"archive/data.pkl": pickled, "archive/data/0": bytes(8), **{f"archive/{k}": v for k, v in more.items()}}


def pickle_attack(name: str, records: dict[str, bytes], *, method: int = zipfile.ZIP_STORED) -> None:
    ATTACKS[name] = lambda folder: archive(folder, records, method=method)


def bin_attack(name: str, content: bytes) -> None:
    ATTACKS[name] = lambda folder: (folder / "pytorch_model.bin").write_bytes(content) and None


GOOD = tensor_pickle((2,), (1,))
pickle_attack("pickle_that_runs_a_command", model_records(pickle.dumps({"w": Payload()}, 2)))
pickle_attack("pickle_that_imports", model_records(b"\x80\x02csubprocess\nPopen\n(X\x04\x00\x00\x00evil\x85R."))
pickle_attack("pickle_that_evaluates", model_records(b"\x80\x02cbuiltins\neval\nX\x03\x00\x00\x001+1\x85R."))
pickle_attack("pickle_that_is_compressed", model_records(GOOD), method=zipfile.ZIP_DEFLATED)
pickle_attack("pickle_in_disorder", model_records(GOOD, byteorder=b"middle"))
pickle_attack("pickle_of_a_program", model_records(GOOD, **{"constants.pkl": b"."}))
pickle_attack("pickle_beyond_its_storage", model_records(tensor_pickle((2,), (1,), offset=1)))
pickle_attack("pickle_of_a_terabyte_in_eight_bytes", model_records(tensor_pickle((1 << 38,), (0,))))
pickle_attack("pickle_of_a_missing_storage", model_records(tensor_pickle((2,), (1,), key="../../etc/passwd")))
pickle_attack("pickle_with_two_roots", {**model_records(GOOD), "other/data.pkl": GOOD})
pickle_attack("pickle_that_doubles_itself", model_records(b"\x80\x02]" + b"(h\x00h\x00l" * 30 + b"."))
pickle_attack("pickle_of_nothing", model_records(b"\x80\x02}."))
pickle_attack("pickle_without_an_end", model_records(GOOD[:-1]))
pickle_attack("archive_without_a_pickle", {"archive/data/0": bytes(8)})
bin_attack("pickle_that_is_bare", pickle.dumps({"w": Payload()}, 2))
bin_attack("pickle_of_old", b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03." + pickle.dumps({"w": 1}, 2))
bin_attack("pickle_that_is_a_pointer", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 8\n")
bin_attack("archive_cut_short", b"PK\x03\x04" + bytes(40))


@attack
def pickle_in_a_tar(folder: Path) -> None:
    with tarfile.open(folder / "pytorch_model.bin", "w", format=tarfile.USTAR_FORMAT) as file:
        file.addfile(tarfile.TarInfo("storages"))


# ---- adapters: each lies in `adapter`, its base in `base`

LORA = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": ["up"]}
FACTORS = {
    "base_model.model.up.lora_A.weight": entry([1, 2], 0, 8),
    "base_model.model.up.lora_B.weight": entry([2, 1], 8, 16),
}


def adapter_attack(name: str, config: Any, factors: dict[str, Any] = FACTORS) -> None:
    def maker(folder: Path) -> None:
        (folder / "base").mkdir()
        (folder / "adapter").mkdir()
        (folder / "base" / WEIGHTS).write_bytes(safetensors({"up.weight": entry([2, 2], 0, 16)}, bytes(16)))
        text = config if isinstance(config, str) else dump(config)
        (folder / "adapter" / "adapter_config.json").write_text(text)
        size = max((value["data_offsets"][1] for value in factors.values()), default=0)
        (folder / "adapter" / "adapter_model.safetensors").write_bytes(safetensors(factors, bytes(size)))

    ATTACKS[name] = maker


adapter_attack("adapter_config_that_is_no_json", "{")
adapter_attack("adapter_that_lies_about_its_rank", {**LORA, "r": 4})
adapter_attack("adapter_of_another_kind", {**LORA, "peft_type": "\x1b[2JIA3"})
adapter_attack("adapter_with_a_pattern_that_never_ends", {**LORA, "rank_pattern": {"(a+)+$": 1}})
adapter_attack("adapter_of_infinite_scale", '{"peft_type":"LORA","r":1,"lora_alpha":Infinity}')
adapter_attack("adapter_of_no_rank_and_endless_scale", {**LORA, "lora_alpha": 1e300})
adapter_attack("adapter_for_another_model", LORA, {k.replace(".up.", ".down."): v for k, v in FACTORS.items()})
adapter_attack("adapter_of_another_shape", LORA, {**FACTORS, "base_model.model.up.lora_B.weight": entry([4, 1], 8, 24)})
adapter_attack("adapter_with_half_an_update", LORA, {k: v for k, v in FACTORS.items() if "lora_A" in k})


# ---- recipes


def recipe_attack(name: str, text: str | bytes) -> None:
    content = text if isinstance(text, bytes) else text.encode()
    ATTACKS[name] = lambda folder: (folder / "recipe.yml").write_bytes(content) and None


LAUGHS = [("abcdefghi"[n], "bcdefghij"[n]) for n in range(9)]
recipe_attack(
    "recipe_of_a_billion_laughs",
    "a: &a [ha, ha, ha, ha, ha, ha, ha, ha, ha, ha]\n"
    + "".join(f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n" for before, name in LAUGHS),
)
recipe_attack(
    "recipe_of_merged_laughs",
    "a: &a {x: 1}\n"
    + "".join(f"{name}: &{name} {{<<: [{', '.join([f'*{before}'] * 9)}], {name}: 1}}\n" for before, name in LAUGHS[:5]),
)
recipe_attack("recipe_nested_deep", "merge_method: " + "[" * 500)
recipe_attack("recipe_that_contains_itself", "merge_method: linear\nmodels: &m [*m]\n")
recipe_attack("recipe_that_makes_objects", "merge_method: !!python/object/apply:os.system ['touch cuvee-was-here']\n")
recipe_attack("recipe_that_makes_names", "merge_method: !!python/name:os.system\nmodels: [a]\n")
recipe_attack("recipe_with_a_key_twice", "merge_method: linear\nmerge_method: ties\nmodels: [a, b]\n")
recipe_attack("recipe_with_tabs", "merge_method: linear\nmodels:\n\t- a\n")
recipe_attack("recipe_with_nul", "merge_method: lin\0ear\n")
recipe_attack("recipe_in_another_encoding", "merge_method: linear\nmodels: [caf\xe9]\n".encode("latin-1"))
recipe_attack("recipe_that_drives_a_terminal", 'merge_method: "\\e[2J\\e]0;owned\\a"\nmodels: [a, b]\n')
recipe_attack(
    "recipe_with_a_number_of_5000_digits",
    "merge_method: linear\nmodels: [a, b]\nparameters: {weight: " + "9" * 5000 + "}\n",
)
recipe_attack("recipe_of_infinite_weight", "merge_method: linear\nmodels: [a, b]\nparameters: {weight: .inf}\n")
recipe_attack("recipe_that_is_a_list", "- linear\n- ties\n")
recipe_attack("recipe_of_nothing", "")
recipe_attack("recipe_with_complex_keys", "? [a, b]\n: linear\nmerge_method: linear\n")
recipe_attack(
    "recipe_of_a_pattern_that_never_ends", "merge_method: linear\nmodels: [a, b]\nexclude: ['" + "*a" * 500 + "']\n"
)


def make(folder: Path) -> None:
    """Make every attack in a folder of its name."""
    for name, maker in ATTACKS.items():
        (folder / name).mkdir(parents=True)
        maker(folder / name)


if __name__ == "__main__":
    make(Path(sys.argv[1]))
