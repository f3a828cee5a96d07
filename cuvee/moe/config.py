"""The config of a mixture of experts, as a value; mergekit's keys with Cuvée's own beside them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cuvee.errors import nearest
from cuvee.moe.layouts import LAYOUTS, named_layouts
from cuvee.recipes.findings import Findings, KeyPath
from cuvee.tensors.dtypes import parse_dtype

__all__ = ["CHEAP", "FORWARD", "GATE_MODES", "RANDOM", "ExpertEntry", "MoeConfig", "check_config", "describe_config"]

FORWARD = ("hidden", "hidden_last", "hidden_avg", "router_input")
CHEAP = ("cheap_embed",)
RANDOM = ("random", "uniform_random")
GATE_MODES = (*FORWARD, *CHEAP, *RANDOM)


@dataclass(frozen=True)
class ExpertEntry:
    """One dense model whose MLPs become an expert of every layer.

    Attributes:
        source_model: a folder, a hub id, `model+adapter`; in Python also a state dict or a module.
        positive_prompts: texts that should be routed to it.
        negative_prompts: texts that should not.
        noise_scale: standard deviation of the noise that is added to its MLP weights.
        residual_scale: factor of its down projection, and so of all that it adds.
    """

    source_model: Any
    positive_prompts: Sequence[str] = ()
    negative_prompts: Sequence[str] = ()
    noise_scale: float = 0.0
    residual_scale: float = 1.0

    @property
    def prompts(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Positive and negative ones."""
        return tuple(self.positive_prompts), tuple(self.negative_prompts)


@dataclass(frozen=True)
class MoeConfig:
    """What mixture to make of which dense models.

    Attributes:
        base_model: gives all but the MLPs, the config and the tokenizer.
        experts: in the order of their numbers.
        gate_mode: how the router's rows are made, one of `GATE_MODES`.
        dtype: of the output; None: as stored.
        experts_per_token: how many experts a token is sent to.
        shared_experts: experts that every token is sent to, where the layout has one.
        architecture: the beginning of a layout's name; None: the first that fits, Mixtral before all.
        expert_layout: "fused" (one tensor for all experts) or "separate"; None: the layout's own.
        seed: of random gates and noise.
        compat: None or "mergekit": padding counts in `hidden_avg`, a sliding window is forgotten.
        text, places, notes: as in `Recipe`.
    """

    base_model: Any
    experts: Sequence[ExpertEntry]
    gate_mode: str = "hidden"
    dtype: str | None = None
    experts_per_token: int = 2
    shared_experts: Sequence[ExpertEntry] = ()
    architecture: str | None = None
    expert_layout: str | None = None
    seed: int = 0
    compat: str | None = None
    text: str = ""
    places: Mapping[KeyPath, str] = field(default_factory=dict)
    notes: Sequence[str] = ()

    @property
    def entries(self) -> tuple[ExpertEntry, ...]:
        """The experts, then the shared ones: a model's number is its place here."""
        return (*self.experts, *self.shared_experts)


def describe_config(config: MoeConfig) -> dict[str, Any]:
    """Return the config as plain values, for records and hashes."""
    plain = {
        "moe": "mixture of experts",
        "base_model": _name(config.base_model),
        "gate_mode": config.gate_mode,
        "dtype": config.dtype,
        "experts_per_token": config.experts_per_token,
        "architecture": config.architecture,
        "expert_layout": config.expert_layout,
        "seed": config.seed,
        "compat": config.compat,
        "experts": [_describe_entry(one) for one in config.experts],
        "shared_experts": [_describe_entry(one) for one in config.shared_experts],
    }
    return {key: value for key, value in plain.items() if value not in (None, [])}


def _describe_entry(entry: ExpertEntry) -> dict[str, Any]:
    positive, negative = entry.prompts
    plain = {
        "source_model": _name(entry.source_model),
        "positive_prompts": list(positive),
        "negative_prompts": list(negative),
        "noise_scale": entry.noise_scale or None,
        "residual_scale": None if entry.residual_scale == 1 else entry.residual_scale,
    }
    return {key: value for key, value in plain.items() if value not in (None, [])}


def _name(reference: Any) -> str:
    return str(reference) if isinstance(reference, str | Path) else f"<{type(reference).__name__} in memory>"


def check_config(config: MoeConfig, findings: Findings) -> None:
    """Note all that can be known to be wrong without opening a model."""
    if config.base_model is None:
        findings.error("there is no base_model", (), right="base_model: the model that gives all but the MLPs")
    _check_words(config, findings)
    _check_count(config, findings)
    for path, entry in _placed(config):
        _check_entry(entry, path, findings)
    if config.gate_mode in RANDOM:
        _warn_of_idle_prompts(config, findings)
    elif config.gate_mode in GATE_MODES:
        _check_prompts(config, findings)
    first = config.experts[0] if config.experts else None
    if first and len(config.experts) > 1 and all(_same_weights(one, first) for one in config.experts):
        findings.warn(
            "all experts are the same model: the mixture computes what that one does, at more cost, until it is trained",
            ("experts",),
        )


def _placed(config: MoeConfig) -> Iterator[tuple[KeyPath, ExpertEntry]]:
    for key, entries in (("experts", config.experts), ("shared_experts", config.shared_experts)):
        for index, entry in enumerate(entries):
            yield (key, index), entry


def _same_weights(one: ExpertEntry, other: ExpertEntry) -> bool:
    return one.source_model == other.source_model and one.noise_scale == 0 and one.residual_scale == 1


def _check_words(config: MoeConfig, findings: Findings) -> None:
    if config.gate_mode not in GATE_MODES:
        findings.error(
            f"unknown gate_mode {config.gate_mode!r}", ("gate_mode",), right=_near(config.gate_mode, GATE_MODES)
        )
    if config.architecture is not None and not named_layouts(str(config.architecture)):
        names = tuple(layout.title for layout in LAYOUTS)
        findings.error(
            f"no layout is called {config.architecture!r}", ("architecture",), right=_near(config.architecture, names)
        )
    if config.expert_layout not in (None, "fused", "separate"):
        right = "expert_layout: fused, or separate"
        findings.error(f"unknown expert_layout {config.expert_layout!r}", ("expert_layout",), right=right)
    if config.compat not in (None, "mergekit"):
        findings.error(f"unknown compat {config.compat!r}", ("compat",), right="compat: mergekit, or none")
    if config.dtype is not None:
        try:
            parse_dtype(config.dtype)
        except Exception as error:
            findings.error(str(getattr(error, "found", error)), ("dtype",), right=str(getattr(error, "right", "")))
    if not _is_whole(config.seed) or not 0 <= config.seed < 2**64:
        findings.error(f"seed is {config.seed!r}", ("seed",), right="a whole number from 0 on")


def _near(word: Any, known: Sequence[str]) -> str:
    return nearest(str(word), known)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_count(config: MoeConfig, findings: Findings) -> None:
    count, per_token = len(config.experts), config.experts_per_token
    if not count:
        findings.error("there are no experts", (), right="experts: [{source_model: …, positive_prompts: […]}, …]")
    elif not _is_whole(per_token) or per_token < 1:
        findings.error(f"experts_per_token is {per_token!r}", ("experts_per_token",), right="a whole number from 1 on")
    elif per_token > count:
        path: KeyPath = ("experts_per_token",) if ("experts_per_token",) in config.places else ("experts",)
        findings.error(
            f"experts_per_token is {per_token}, and there {'is 1 expert' if count == 1 else f'are {count} experts'}",
            path,
            right=f"at least {per_token} experts, or experts_per_token: {count}",
        )


def _check_entry(entry: ExpertEntry, path: KeyPath, findings: Findings) -> None:
    if entry.source_model is None:
        findings.error("the expert names no model", path, right="source_model: a folder, a file or a hub id")
    for key, value in (("noise_scale", entry.noise_scale), ("residual_scale", entry.residual_scale)):
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not is_number or (key == "noise_scale" and value < 0):
            right = "a number from 0 on" if key == "noise_scale" else "a number"
            findings.error(f"{key} is {value!r}", (*path, key), right=right)
    for key, prompts in (("positive_prompts", entry.positive_prompts), ("negative_prompts", entry.negative_prompts)):
        if isinstance(prompts, str) or not isinstance(prompts, Sequence):
            findings.error(f"{key} is {_shown(prompts)}, not a list of texts", (*path, key), right=f'{key}: ["…", "…"]')
            continue
        for index, prompt in enumerate(prompts):
            if not isinstance(prompt, str):
                at = (*path, key, index)
                findings.error(
                    f"the prompt is {_shown(prompt)}, not a text", at, right=f'"{_shown(prompt)}", in quotes'
                )


def _shown(value: Any) -> str:
    return "a mapping" if isinstance(value, Mapping) else "empty" if value is None else str(value)


def _warn_of_idle_prompts(config: MoeConfig, findings: Findings) -> None:
    idle = [path for path, entry in _placed(config) if any(entry.prompts)]
    if idle:
        findings.warn(f"prompts have no effect with gate_mode: {config.gate_mode}", idle[0])


def _check_prompts(config: MoeConfig, findings: Findings) -> None:
    """Each expert needs prompts, and those of two experts must differ, or the router cannot tell them apart."""
    for index, entry in enumerate(config.experts):
        if not entry.positive_prompts:
            findings.error(
                f"expert {index} has no positive_prompts, and gate_mode: {config.gate_mode} makes its gate of them",
                ("experts", index),
                right='positive_prompts: ["a text that this expert should get", …], or gate_mode: random',
            )
    seen: dict[Any, int] = {}
    twins = [
        (seen[entry.prompts], index)
        for index, entry in enumerate(config.experts)
        if entry.positive_prompts and seen.setdefault(entry.prompts, index) != index
    ]
    if twins and len(twins) == len(config.experts) - 1:
        findings.error(
            "the prompts are the same for all experts: the router could not tell them apart",
            ("experts",),
            right="for each expert prompts of what it alone is good at, or gate_mode: random to train the router",
        )
        return
    for first, second in twins:
        said = f"experts {first} and {second} have the same prompts: the router cannot tell them apart"
        findings.warn(said, ("experts", second))
