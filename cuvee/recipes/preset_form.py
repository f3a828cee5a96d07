"""The form of a preset: a recipe with places for the models, and its text once they are given."""

from __future__ import annotations

import itertools
import json
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cuvee.errors import RecipeError, nearest
from cuvee.methods.registry import Paper

__all__ = ["Blend", "Place", "Preset", "example_text", "given_models", "recipe_text"]


@dataclass(frozen=True)
class Blend:
    """What becomes of a model before the merge: it is merged with the base model alone, in a stage of its own."""

    method: str
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Place:
    """A place for a model in a preset.

    Attributes:
        role: its name, by which the model is given.
        parameters: those of the model.
        repeats: any number of models may be given.
        blend: what becomes of each model first.
    """

    role: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    repeats: bool = False
    blend: Blend | None = None


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
    def places(self) -> str:
        """The places for models as they stand on a command line."""
        return " ".join(f"{role}=MODEL{' …' if repeats else ''}" for role, repeats in self.roles.items())

    @property
    def roles(self) -> dict[str, bool]:
        """The roles in the order of the recipe, and whether several models may be given for each."""
        found = {self.base: False} if self.base else {}
        return found | {place.role: place.repeats for place in self.models}


def given_models(preset: Preset, words: Sequence[str]) -> dict[str, list[str]]:
    """Return the models of each role of a preset from words such as `base=llama`.

    Raises:
        RecipeError: a word does not say a role.
    """
    given: dict[str, list[str]] = {}
    for word in words:
        role, equals, model = word.partition("=")
        if not equals:
            right = " or ".join(f"{one}={word}" for one in preset.roles)
            raise RecipeError(f"{word!r} does not say whose place in {preset.name} it takes", right=right)
        if not model:
            raise RecipeError(f"no model is given as {role}", right=f"{role}=MODEL")
        given.setdefault(role, []).append(model)
    return given


def recipe_text(preset: Preset, given: Mapping[str, Sequence[str]], *, with_study: bool = True) -> str:
    """Return a preset as YAML.

    Args:
        given: the models of each role.
        with_study: begin with the name, the study and the advice as comments.

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
    advice = textwrap.wrap(preset.advice, 110)
    study = [f"# {line}" for line in (f"{preset.name}: {preset.summary}", str(preset.paper), *advice)]
    return "\n".join([*(study if with_study else ()), *_lines(preset, given)]) + "\n"


def example_text(preset: Preset) -> str:
    """Return a preset as YAML with names to fill in, without its study."""
    names = {role: [f"{role}1", f"{role}2"] if repeats else [role] for role, repeats in preset.roles.items()}
    return recipe_text(preset, names, with_study=False)


def _lines(preset: Preset, given: Mapping[str, Sequence[str]]) -> Iterator[str]:
    base = [f"base_model: {_word(given[preset.base][0])}"] if preset.base else []
    taken = {model for models in given.values() for model in models}
    listed: list[str] = []
    for place in preset.models:
        for number, model in enumerate(given[place.role], 1):
            merged = model
            if place.blend is not None:
                merged = next(name for name in _stage_names(place.role, number) if name not in taken)
                yield from (f"name: {merged}", f"merge_method: {place.blend.method}", *base)
                yield from (f"models: [{_word(model)}]", *_parameters(place.blend.parameters), "---")
            listed += [f"  - model: {_word(merged)}", *_parameters(place.parameters, "    ")]
    yield from (f"merge_method: {preset.method}", *base, "models:", *listed, *_parameters(preset.parameters))


def _stage_names(role: str, number: int) -> Iterator[str]:
    yield from (f"{role}{number}-blended{'-again' * times}" for times in itertools.count())


def _parameters(values: Mapping[str, Any], indent: str = "") -> list[str]:
    return [f"{indent}parameters: {_flow(values)}"] if values else []


def _word(model: str) -> str:
    """Return a reference as YAML: plain where that is safe."""
    return model if re.fullmatch(r"[A-Za-z_./][\w./@+-]*", model) and "__" not in model else json.dumps(model)


def _flow(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_flow(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_flow(one) for one in value) + "]"
    return value if isinstance(value, str) else json.dumps(value)
