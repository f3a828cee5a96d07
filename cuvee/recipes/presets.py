"""Presets: recipes that studies have found good, with the study and places for the models."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cuvee.errors import RecipeError, nearest
from cuvee.methods.registry import Paper
from cuvee.recipes.recipe import Recipe
from cuvee.recipes.yaml_form import parse_recipe

__all__ = ["PRESETS", "Place", "Preset", "find_preset", "preset", "recipe_text"]


@dataclass(frozen=True)
class Place:
    """A place for a model in a preset.

    Attributes:
        role: its name, by which the model is given.
        parameters: those of the model.
        repeats: any number of models may be given.
    """

    role: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    repeats: bool = False


@dataclass(frozen=True)
class Preset:
    """A recipe without its models.

    Attributes:
        name: as it is called.
        paper: the study.
        summary: what it is for, in a line.
        method: the merge method.
        models: places for the models, in the method's order.
        base: the role of the base model; "" where there is none.
        parameters: those of the method.
        advice: what to change, and when.
    """

    name: str
    paper: Paper
    summary: str
    method: str
    models: tuple[Place, ...]
    base: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    advice: str = ""

    @property
    def roles(self) -> dict[str, bool]:
        """The roles in the order of the recipe, and whether several models may be given for each."""
        found = {self.base: False} if self.base else {}
        return found | {place.role: place.repeats for place in self.models}


_SLERP = [
    {"filter": "self_attn", "value": [0, 0.5, 0.3, 0.7, 1]},
    {"filter": "mlp", "value": [1, 0.5, 0.7, 0.3, 0]},
    {"value": 0.5},
]
_ALL = (
    Preset(
        "agents",
        Paper("Behavior Knowledge Merge in Reinforced Agentic Models", arxiv="2601.13572", year=2026),
        "agents that reinforcement learning made of one model, whose changes are sparse",
        "ram",
        (Place("agent", repeats=True),),
        "base",
        advice="store base and agents in one dtype: where they differ, everything counts as changed",
    ),
    Preset(
        "chat-vector",
        Paper(
            "The Construction of Instruction-tuned LLMs in Finance without Instruction Data",
            arxiv="2409.19854",
            year=2024,
        ),
        "a model that was trained on a domain, and follows instructions",
        "task_arithmetic",
        (Place("instruct", {"weight": 1.0}), Place("domain", {"weight": 1.0})),
        "base",
        advice="the two task vectors should be almost orthogonal: cuvee compare says so",
    ),
    Preset(
        "checkpoints",
        Paper("Model Merging in Pre-training of Large Language Models", arxiv="2505.12082", year=2025),
        "the last checkpoints of one run, as if its learning rate had fallen",
        "pma",
        (Place("checkpoint", repeats=True),),
        parameters={"scheme": "sma"},
        advice="about ten at even distances, the oldest first",
    ),
    Preset(
        "domain-slerp",
        Paper("Fine-tuning large language models for domain adaptation", arxiv="2409.03444", year=2024),
        "an instruct model and one trained on a domain, by the gradients that the study took over from practice",
        "slerp",
        (Place("domain"),),
        "instruct",
        parameters={"t": _SLERP},
        advice="gains were seen at 7 to 8 billion parameters, none at 1.7",
    ),
    Preset(
        "forget",
        Paper("NegMerge: Sign-Consensual Weight Merging for Machine Unlearning", arxiv="2410.05583", year=2024),
        "a model that has forgotten what several fine-tunes have learned",
        "negmerge",
        (Place("learned", repeats=True),),
        "base",
        parameters={"scaling": 0.5},
        advice="the largest scaling at which other tasks keep 95 % of their scores",
    ),
    Preset(
        "fuse-chat",
        Paper("FuseChat: Knowledge Fusion of Chat Models", arxiv="2408.07990", year=2024),
        "chat models of one base",
        "sce",
        (Place("chat", repeats=True),),
        "base",
        parameters={"select_topk": 0.1},
        advice="select_topk: 1 for long reasoning, as FuseO1 has it",
    ),
    Preset(
        "in-the-wild",
        Paper("A Systematic Study of In-the-Wild Model Merging for Large Language Models", year=2025),
        "fine-tunes of different authors: of six methods only task arithmetic gained for sure",
        "task_arithmetic",
        (Place("expert", repeats=True),),
        "base",
        parameters={"normalize": True},
        advice="the mean of the task vectors; scaling above 1 goes further, at a risk",
    ),
    Preset(
        "layer-swap",
        Paper("Layer Swapping for Zero-Shot Cross-Lingual Transfer in LLMs", arxiv="2410.01335", year=2024),
        "a skill learned in English, in another language",
        "layer_swapping",
        (Place("task"), Place("language")),
        advice="more language layers for a language with few resources",
    ),
    Preset(
        "long-to-short",
        Paper("Unlocking Efficient Long-to-Short LLM Reasoning with Model Merging", arxiv="2503.20641", year=2025),
        "a reasoning model that thinks about half as long",
        "ties",
        (Place("quick"), Place("thinking")),
        "base",
        parameters={"density": 0.7, "scaling": 0.7, "inclusive_threshold": True},
        advice="at 7 to 8 billion parameters; smaller and larger models are harder",
    ),
    Preset(
        "safety-restore",
        Paper("Safeguard Fine-Tuned LLMs Through Pre- and Post-Tuning Model Merging", arxiv="2412.19512", year=2024),
        "a fine-tune that is as safe as the aligned model that it was made of",
        "linear",
        (Place("aligned", {"weight": 0.5}), Place("tuned", {"weight": 0.5})),
        advice="the largest weight of the tuned model at which it is safe enough; the two sum to 1",
    ),
    Preset(
        "soup",
        Paper("Model soups", arxiv="2203.05482", year=2022),
        "fine-tunes of one model on one task with different hyper-parameters",
        "linear",
        (Place("model", repeats=True),),
        advice="leave out what scores far below the best",
    ),
)
PRESETS: Mapping[str, Preset] = {one.name: one for one in _ALL}
"""Every preset by name."""


def find_preset(name: str) -> Preset:
    """Return the preset of that name.

    Raises:
        RecipeError: there is none; the nearest name is suggested.
    """
    if name not in PRESETS:
        raise RecipeError(f"unknown preset {name!r}", right=nearest(name, PRESETS))
    return PRESETS[name]


def preset(name: str, /, **models: Any) -> Recipe:
    """Return the recipe of a preset with these models, such as `preset("soup", model=["a", "b"])`.

    Raises:
        RecipeError: there is no such preset or role, or a role has no model, or too many.
    """
    found = find_preset(name)
    given = {
        role: [str(one) for one in (value if isinstance(value, list | tuple) else [value])]
        for role, value in models.items()
    }
    return parse_recipe(recipe_text(found, given))


def recipe_text(preset: Preset, given: Mapping[str, Sequence[str]]) -> str:
    """Return a preset as YAML.

    Args:
        given: the models of each role.

    Raises:
        RecipeError: a role is unknown, or has no model, or too many.
    """
    roles = preset.roles
    for role in given:
        if role not in roles:
            raise RecipeError(f"the preset {preset.name} has no {role!r}", right=nearest(role, roles))
    missing = [role for role in roles if not given.get(role)]
    if missing:
        right = " ".join(f"{role}=MODEL" for role in missing)
        raise RecipeError(f"the preset {preset.name} needs {', '.join(missing)}", right=right)
    for role, repeats in roles.items():
        if len(given[role]) > 1 and not repeats:
            raise RecipeError(f"{len(given[role])} models are given as {role}", right=f"one {role}")
    return "\n".join(_lines(preset, given)) + "\n"


def _lines(preset: Preset, given: Mapping[str, Sequence[str]]) -> Iterator[str]:
    yield f"# {preset.name}: {preset.summary}"
    yield f"# {preset.paper}"
    if preset.advice:
        yield f"# {preset.advice}"
    yield f"merge_method: {preset.method}"
    if preset.base:
        yield f"base_model: {_word(given[preset.base][0])}"
    yield "models:"
    for place in preset.models:
        for model in given[place.role]:
            yield f"  - model: {_word(model)}"
            if place.parameters:
                yield f"    parameters: {_flow(place.parameters)}"
    if preset.parameters:
        yield f"parameters: {_flow(preset.parameters)}"


def _word(model: str) -> str:
    """Return a reference as YAML: plain where that is safe."""
    return model if re.fullmatch(r"[A-Za-z_./][\w./@+-]*", model) and "__" not in model else json.dumps(model)


def _flow(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_flow(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_flow(one) for one in value) + "]"
    return value if isinstance(value, str) else json.dumps(value)
