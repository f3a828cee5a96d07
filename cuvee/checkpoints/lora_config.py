"""adapter_config.json of PEFT: what scales a LoRA update, and which adapters are refused by name."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cuvee.checkpoints.json_text import read_object
from cuvee.errors import CheckpointError, printable

__all__ = ["LoraConfig", "read_lora_config"]

MAX_CONFIG_BYTES = 16 << 20
MAX_PATTERNS = 20_000
MAX_NAME = 200  # of a module that patterns are matched against: bounds the time that takes
Patterns = tuple[tuple[re.Pattern[str], float], ...]
_MERGE_IN_PEFT = "merge it in PEFT, and name the result: model.merge_and_unload().save_pretrained(OTHER)"
# options that make the update something other than s·B·A
_UNREAD_OPTIONS = {
    "alora_invocation_tokens": "activated LoRA, which is on for some tokens only",
    "arrow_config": "Arrow, which routes between adapters",
    "kasa_config": "KaSA, which changes the base too",
    "layer_replication": "layer replication, which repeats layers of the base",
    "monteclora_config": "MonteCLoRA, which draws its update",
    "target_parameters": "target_parameters: LoRA on stacked experts",
    "use_bdlora": "block-diagonal LoRA",
    "use_qalora": "QA-LoRA, which pools the inputs",
}
# initialisations that take B·A out of the base: the update belongs to what is left of it, not to the published base
_RESIDUAL_INITS = ("pissa", "olora", "corda", "loftq", "lora_ga")


@dataclass(frozen=True)
class LoraConfig:
    """What scales the update of each module.

    Attributes:
        rank: of modules that no pattern names.
        alpha: of modules that no pattern names.
        rank_pattern: patterns of names, each with its rank; the first that matches wins.
        alpha_pattern: patterns of names, each with its alpha.
        is_rank_stabilized: s = alpha / √r instead of alpha / r.
        has_magnitudes: `use_dora`: each update comes with a vector of magnitudes.
        is_transposed: `fan_in_fan_out`: the weights are stored as (in, out).
        modules_to_save: last parts of the names of modules that the adapter holds whole.
        token_rows: rows of an embedding that the adapter replaces, by the embedding's name ("" for the only one).
        keeps_ties: `ensure_weight_tying`: an update of the embedding is one of the head too.
        base: the model it was trained on, as it says.
        path: of the file.
    """

    rank: int
    alpha: float
    rank_pattern: Patterns
    alpha_pattern: Patterns
    is_rank_stabilized: bool
    has_magnitudes: bool
    is_transposed: bool
    modules_to_save: tuple[str, ...]
    token_rows: Mapping[str, tuple[int, ...]]
    keeps_ties: bool
    base: str
    path: Path

    def scaling(self, module: str, rank: int) -> float:
        """Return s of a module, whose factors have this rank.

        Raises:
            CheckpointError: the config says another rank.
        """
        if len(module) > MAX_NAME and (self.rank_pattern or self.alpha_pattern):
            raise CheckpointError(
                f"a module's name has {len(module)} letters", where=str(self.path), right=f"names of at most {MAX_NAME}"
            )
        said = _first_match(self.rank_pattern, module, self.rank)
        if said != rank:
            raise CheckpointError(
                f"the factors of {printable(module)[:200]!r} have rank {rank}, but adapter_config.json says {said}",
                where=str(self.path),
                right="fetch both files of the adapter again, from one revision",
            )
        alpha = _first_match(self.alpha_pattern, module, self.alpha)
        return alpha / (math.sqrt(rank) if self.is_rank_stabilized else rank) if rank else 0.0


def _first_match(patterns: Patterns, module: str, default: float) -> float:
    return next((value for pattern, value in patterns if pattern.match(module)), default)


def read_lora_config(path: Path) -> LoraConfig:
    """Read an adapter_config.json.

    Raises:
        CheckpointError: it is malformed, or describes an adapter that is not plain LoRA or DoRA.
    """
    config = read_object(path, limit=MAX_CONFIG_BYTES, strict=False)
    _refuse_others(config, path)
    read = _Fields(config, path)
    return LoraConfig(
        rank=int(read.number("r", 8)),
        alpha=read.number("lora_alpha", 8),
        rank_pattern=read.patterns("rank_pattern"),
        alpha_pattern=read.patterns("alpha_pattern"),
        is_rank_stabilized=read.flag("use_rslora"),
        has_magnitudes=read.flag("use_dora"),
        is_transposed=read.flag("fan_in_fan_out"),
        modules_to_save=read.names("modules_to_save"),
        token_rows=read.token_rows(),
        keeps_ties=read.flag("ensure_weight_tying"),
        base=str(config.get("base_model_name_or_path") or ""),
        path=path,
    )


def _refuse_others(config: Mapping[str, Any], path: Path) -> None:
    kind = config.get("peft_type")
    if kind != "LORA":
        name = printable(str(kind))[:60] if kind else "an unnamed kind"
        raise CheckpointError(
            f"adapters of the kind {name} are not read; LORA (with or without DoRA) is",
            where=str(path),
            right=_MERGE_IN_PEFT,
        )
    for key, what in _UNREAD_OPTIONS.items():
        if config.get(key):
            raise CheckpointError(
                f"adapters with {what} are not read", where=f"{path}, key {key!r}", right=_MERGE_IN_PEFT
            )
    for key, value in config.items():
        if key.startswith("use_") and value is True and key not in ("use_rslora", "use_dora"):
            raise CheckpointError(
                f"the adapter has an option that is not known: {printable(key)[:60]}",
                where=str(path),
                right=_MERGE_IN_PEFT,
            )
    init = config.get("init_lora_weights")
    if isinstance(init, str) and init.lower().startswith(_RESIDUAL_INITS):
        raise CheckpointError(
            f"the adapter was begun by {printable(init)[:60]}, which takes a part out of the base: "
            "added to the published base it would give another model",
            where=f"{path}, key 'init_lora_weights'",
            right="save it as plain LoRA: save_pretrained(OTHER, path_initial_model_for_weight_conversion=...)",
        )


class _Fields:
    """The fields of a config, each checked as it is read."""

    def __init__(self, config: Mapping[str, Any], path: Path) -> None:
        self._config = config
        self._path = path

    def _wrong(self, key: str, right: str) -> CheckpointError:
        value = printable(str(self._config.get(key)))[:100]
        return CheckpointError(f"{key} is {value}", where=str(self._path), right=f"{key}: {right}")

    def number(self, key: str, default: float) -> float:
        """Return a finite number, none negative."""
        value = self._config.get(key, default)
        if not _is_number(value):
            raise self._wrong(key, "a number that is not negative")
        return float(value)

    def flag(self, key: str) -> bool:
        """Return a truth value, false where it is missing or null."""
        value = self._config.get(key)
        if value not in (None, True, False):
            raise self._wrong(key, "true or false")
        return bool(value)

    def patterns(self, key: str) -> Patterns:
        """Return patterns of names, compiled, each with its number."""
        value = self._config.get(key) or {}
        if not isinstance(value, dict) or not all(map(_is_number, value.values())) or len(value) > MAX_PATTERNS:
            raise self._wrong(key, f"a map from at most {MAX_PATTERNS} patterns to numbers")
        return tuple((self._compiled(key, pattern), float(number)) for pattern, number in value.items())

    def _compiled(self, key: str, pattern: str) -> re.Pattern[str]:
        where = f"{self._path}, key {key!r}"
        if _is_slow(pattern):
            raise CheckpointError(
                f"pattern {printable(pattern)[:100]!r} could take forever to match",
                where=where,
                right="a pattern with at most two of .* and .+, and no repeated group",
            )
        try:
            return re.compile(rf"(?:.*\.)?(?:{pattern})$")
        except (re.error, RecursionError, OverflowError) as error:
            raise CheckpointError(
                f"pattern {printable(pattern)[:100]!r} is no regular expression: {error}",
                where=where,
                right="mend adapter_config.json",
            ) from None

    def names(self, key: str) -> tuple[str, ...]:
        """Return a list of names."""
        value = self._config.get(key) or []
        if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
            raise self._wrong(key, "a list of names")
        return tuple(value)

    def token_rows(self) -> dict[str, tuple[int, ...]]:
        """Return the rows that the adapter replaces, by embedding."""
        key = "trainable_token_indices"
        value = self._config.get(key) or {}
        rows = value if isinstance(value, dict) else {"": value}
        for indices in rows.values():
            if not isinstance(indices, list) or not all(type(row) is int and row >= 0 for row in indices):
                raise self._wrong(key, "a list of rows, or a map from names to lists of rows")
        return {name: tuple(indices) for name, indices in rows.items()}


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < 1e9


def _is_slow(pattern: str) -> bool:
    """True for regular expressions that may backtrack without end: too many choices, or choices within choices."""
    wide = len(re.findall(r"(?:\.|\]|\\[DSWw])(?:[*+]|\{\d*,)", pattern))
    repeats = len(re.findall(r"[*+]|\{\d*,", pattern))
    options = pattern.count("?") + len(re.findall(r"\([^()]*\|", pattern))
    nested = re.search(r"\)\s*(?:[*+]|\{)|\([^()]*\(", pattern)
    refers_back = re.search(r"\\[1-9]|\(\?[P(=!<]", pattern)
    too_many = len(pattern) > 1000 or wide > 2 or repeats > 3 or options > 4
    return too_many or nested is not None or refers_back is not None
