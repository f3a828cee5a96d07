"""`cuvee mergekit-yaml`: the command line of mergekit, word for word, carried out by `cuvee merge`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

from cyclopts import Parameter

from cuvee.cli.merge import merge_asked
from cuvee.cli.planning import PlanOptions, noted, read_recipe
from cuvee.cli.screen import screen, styled
from cuvee.errors import RecipeError, nearest

__all__ = ["Translated", "mergekit_yaml", "translate"]

_BOUNDED = "memory is bounded in any case: --memory SIZE sets the bound"
_NO_EFFECT = {
    "allow-crimes": "what can be merged is found from the tensors, not from the architecture's name",
    "no-allow-crimes": "",
    "lora-merge-cache": "adapters are applied as they are read, and never written",
    "lora-merge-dtype": "adapters are applied in float32, and rounded once",
    "low-cpu-memory": _BOUNDED,
    "no-low-cpu-memory": "",
    "copy-tokenizer": "",
    "no-copy-tokenizer": "the files beside the weights are always carried over",
    "clone-tensors": "the same layer may be written as often as a recipe says",
    "no-clone-tensors": "",
    "trust-remote-code": "no code of a model is run; its files are carried over",
    "no-trust-remote-code": "",
    "lazy-unpickle": "pickles are always read tensor by tensor",
    "no-lazy-unpickle": "",
    "write-model-card": "",
    "no-write-model-card": "README.md is always written",
    "safe-serialization": "",
    "no-quiet": "",
    "no-cuda": "",
    "read-to-gpu": "blocks go to the device as they are needed",
    "no-read-to-gpu": "",
    "multi-gpu": "one device computes; its arithmetic is not what a merge waits for",
    "no-multi-gpu": "",
    "async-write": "files are always written while others are read",
    "no-async-write": "",
    "write-threads": "--num-threads writes too",
    "no-unsafe-truncate-embeddings": "",
    "v": "",
}
"""Flags that change nothing here, and why; those without a word ask for what is done anyway."""
_REFUSED = {
    "no-safe-serialization": (
        "pickles are not written",
        "leave it out: safetensors are read by all that reads pickles",
    ),
}
_WITH_VALUE = {
    *("transformers-cache", "lora-merge-cache", "lora-merge-dtype", "device", "out-shard-size", "random-seed"),
    *("num-threads", "write-threads", "compat", "memory", "stages", "token"),
}
_PLAIN = {"unsafe-truncate-embeddings", "cuda", "gpu-rich", "quiet", "overwrite", "allow-nan", "json", "offline"}
_UNITS = {"K": 10**3, "M": 10**6, "B": 10**9}


@dataclass
class Translated:
    """mergekit's flags in Cuvée's words.

    Attributes:
        paths: what stands for itself: CONFIG and OUT.
        merge: keyword arguments of `cuvee merge`.
        plan: those of its plan.
        truncates: embeddings of different sizes are cropped to the smallest.
        cache: where the hub's models lie, None for the usual place.
        notes: flags without effect, and why.
    """

    paths: list[str] = field(default_factory=list)
    merge: dict[str, Any] = field(default_factory=dict)
    plan: dict[str, Any] = field(default_factory=dict)
    truncates: bool = False
    cache: str | None = None
    notes: list[str] = field(default_factory=list)


def mergekit_yaml(*words: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)]) -> None:
    """Run a command line of mergekit-yaml.

    Takes all its flags. Those that have no meaning here are named in a note, and none changes the values merged but
    --random-seed. Beside them: --compat mergekit, --overwrite, --memory, --stages, --allow-nan, --offline, --token, --json.

    Args:
        words: CONFIG, mergekit's YAML file, OUT, the folder to publish, and flags in any order.
    """
    said = translate(words)
    if len(said.paths) != 2:
        found = f"there are {len(said.paths)} paths, not CONFIG and OUT"
        raise RecipeError(found, where="cuvee mergekit-yaml", right="cuvee mergekit-yaml CONFIG OUT [FLAGS]")
    config, out = said.paths
    for note in said.notes:
        screen(stderr=True).print(styled(f"note: {note}", "dim"), soft_wrap=True)
    if said.cache is not None:
        os.environ["HF_HUB_CACHE"] = said.cache
    if "shard_size" in said.plan:
        said.plan["shard_size"] = f"{_count(said.plan['shard_size']) * _bytes_of_one(config)}B"
    options = PlanOptions(**said.plan)
    asked = read_recipe(config, options)
    if said.truncates:
        parameters = {"embed_mismatch": "common_submatrix", **asked.parameters}
        asked = replace(asked, parameters=parameters, text=noted(asked.text, "--unsafe-truncate-embeddings"))
    merge_asked(asked, out, options=options, **said.merge)


def translate(words: Sequence[str]) -> Translated:
    """Return what the words of mergekit's command line mean here.

    Raises:
        RecipeError: a flag is unknown, lacks its value, or asks for what is not done.
    """
    said = Translated()
    for name, value in _pairs(words):
        if not name:
            said.paths.append(value)
        elif name in _REFUSED:
            found, right = _REFUSED[name]
            raise RecipeError(found, where=f"--{name}", right=right)
        elif name in _NO_EFFECT:
            if _NO_EFFECT[name]:
                said.notes.append(f"--{name} has no effect: {_NO_EFFECT[name]}")
        elif name in ("cuda", "gpu-rich"):
            said.plan["device"] = "cuda"
        elif name == "device":
            said.plan["device"] = _device(value)
        elif name == "unsafe-truncate-embeddings":
            said.truncates = True
        elif name == "transformers-cache":
            said.cache = value
        elif name == "out-shard-size":
            said.plan["shard_size"] = value
        elif name in ("random-seed", "num-threads"):
            said.plan["seed" if name == "random-seed" else "threads"] = _whole(name, value)
        elif name in ("compat", "memory", "offline", "token"):
            said.plan[name] = value
        else:
            said.merge[name.replace("-", "_")] = value
    return said


def _pairs(words: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Go through flags and values, `-j 4`, `--name value`, `--name=value`, `-vv`; what is no flag has no name."""
    rest = list(words)
    while rest:
        flag = rest.pop(0)
        if not flag.startswith("-"):
            yield "", flag
            continue
        if flag.startswith("-v") and set(flag[1:]) == {"v"}:
            continue
        name, has_value, value = flag.partition("=")
        name = "num-threads" if name == "-j" else name.removeprefix("--")
        if name not in {*_WITH_VALUE, *_PLAIN, *_NO_EFFECT, *_REFUSED}:
            known = (f"--{one}" for one in {*_WITH_VALUE, *_PLAIN, *_NO_EFFECT, *_REFUSED})
            raise RecipeError(f"unknown flag {flag!r}", where="cuvee mergekit-yaml", right=nearest(flag, known))
        if name not in _WITH_VALUE:
            yield name, True
            continue
        if not has_value and not rest:
            raise RecipeError(f"--{name} has no value", where="cuvee mergekit-yaml", right=f"--{name} VALUE")
        yield name, value if has_value else rest.pop(0)


def _device(value: str) -> str:
    if value in ("cpu", "cuda"):
        return value
    if value.startswith("cuda:"):
        return "cuda"
    if value == "auto":
        import torch

        return "cuda" if torch.cuda.is_available() else "cpu"
    raise RecipeError(f"there is no device {value!r} here", where="--device", right="cpu, cuda or auto")


def _whole(name: str, value: str) -> int:
    if value.isascii() and value.isdigit():
        return int(value)
    raise RecipeError(f"--{name} is {value!r}", where="cuvee mergekit-yaml", right="a whole number")


def _count(value: str) -> int:
    """Return the parameters that "5B", "200M" or "1000" mean."""
    number, unit = (value[:-1], _UNITS[value[-1].upper()]) if value[-1:].upper() in _UNITS else (value, 1)
    if not (number.isascii() and number.isdigit() and int(number) > 0):
        raise RecipeError(f"--out-shard-size is {value!r}", where="cuvee mergekit-yaml", right="a number such as 5B")
    return int(number) * unit


def _bytes_of_one(config: str) -> int:
    """Return the bytes of one parameter of the output: as the recipe says, 2 where it does not."""
    from cuvee.recipes import load_recipe
    from cuvee.tensors.dtypes import parse_dtype

    recipe = load_recipe(config)
    spoken = recipe.out_dtype or recipe.dtype
    return parse_dtype(spoken).itemsize if spoken else 2
