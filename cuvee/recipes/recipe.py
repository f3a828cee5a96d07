"""A recipe: what the user wants merged, as a value.

    Recipe("ties", models=["math", "code"], base_model="llama", parameters={"density": 0.5})

YAML becomes the same value (`recipes/yaml_form.py`). Settings are plain: a number, a word, a list of numbers (a
gradient over the layers), or a list of `{"filter": …, "value": …}`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cuvee.errors import RecipeError
from cuvee.tokenizers.request import TokenizerRequest

__all__ = ["Module", "Recipe", "RecipeModel", "Slice", "place_of"]

Setting = Any


@dataclass(frozen=True)
class RecipeModel:
    """One model of a recipe.

    Attributes:
        model: a folder, a file, a hub id, `model+adapter`; in Python also a state dict, a module, or a `Recipe`, whose
            output is merged without being written where that can be.
        parameters: its own settings (weight, density …), each a number, a gradient or filter entries.
        statistics: a file of what data say of it, such as `cuvee collect` writes; in Python also a dict of tensors, with
            names as in such a file (`gram/<module>`, `hidden/<layer>`).
        layer_range: in a slice, the first layer and the one after the last; None: all layers.
    """

    model: Any
    parameters: Mapping[str, Setting] = field(default_factory=dict)
    layer_range: tuple[int, int] | None = None
    statistics: Any = None


@dataclass(frozen=True)
class Slice:
    """Consecutive layers of the output, and where they come from.

    Attributes:
        sources: one `RecipeModel` for each model, with ranges of equal length; bare models are wrapped. The same model
            may stand here twice.
        parameters: settings for all sources.
        base_model: for this slice; None: the recipe's.
    """

    sources: Sequence[RecipeModel | Any]
    parameters: Mapping[str, Setting] = field(default_factory=dict)
    base_model: Any = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "sources", _wrapped(self.sources))


@dataclass(frozen=True)
class Module:
    """One part of a model of several parts (the encoder, the vision tower), and what it is made of.

    Attributes:
        models: whole ones, or
        slices: of its layers.
        parameters: settings for all of them.
    """

    models: Sequence[RecipeModel | Any] = ()
    slices: Sequence[Slice] = ()
    parameters: Mapping[str, Setting] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "models", _wrapped(self.models))


def _wrapped(models: Sequence[RecipeModel | Any]) -> tuple[RecipeModel, ...]:
    is_one = isinstance(models, str | Mapping) or hasattr(models, "state_dict")
    if is_one or not isinstance(models, Iterable):
        said = repr(models) if isinstance(models, str) else f"one {type(models).__name__}"
        raise RecipeError(f"models is {said}, and not a list", right="a list, also of one model: [model]")
    return tuple(m if isinstance(m, RecipeModel) else RecipeModel(m) for m in models)


@dataclass(frozen=True)
class Recipe:
    """What to merge, and how.

    Attributes:
        merge_method: a name that `cuvee methods` lists.
        models: `RecipeModel`s; bare models are wrapped.
        slices: instead of models, `Slice`s of the output, from the first layer to the last.
        modules: instead of both, for models of several parts, name -> `Module`. What belongs to none of them is carried
            from the base (without one: the first model).
        base_model: the common ancestor, where the method has one.
        parameters: settings for all models. In Python a per-model parameter may be a list of K values here;
            from YAML (`from_yaml`) a list of numbers is always a gradient.
        dtype: of the output, where `out_dtype` is not given. Arithmetic is `compute_dtype` whatever this says.
        out_dtype: of the output; neither given: as the base stores it.
        compute_dtype: "float32" or "float64".
        seed: of all random draws.
        exclude: glob patterns of tensors that are left out, carried from the base (without one: the first model).
        only: glob patterns of the only tensors merged.
        compat: None or "mergekit".
        before: edits of each task vector, `[{"dare": {"density": 0.5}}]`.
        after: edits of the merged task vector.
        name: of a stage, by which the recipes of one file use its output; "" for what is published.
        tokenizer: the output's: "union", "base", a model, or a `TokenizerRequest`; None: the models have one vocabulary.
        chat_template: the output's: "auto", the name of a built-in one, or the template; None: as it is.
        from_yaml: True when it was read from YAML.
        text: the YAML as written, for the record.
        places: key path -> "file:line:column", for errors.
        notes: what reading the text has to say (keys without effect).
    """

    merge_method: str
    models: Sequence[RecipeModel | Any] = ()
    slices: Sequence[Slice] = ()
    modules: Mapping[str, Module] = field(default_factory=dict)
    base_model: Any = None
    parameters: Mapping[str, Setting] = field(default_factory=dict)
    dtype: str | None = None
    out_dtype: str | None = None
    compute_dtype: str = "float32"
    seed: int = 0
    exclude: Sequence[str] = ()
    only: Sequence[str] | None = None
    compat: str | None = None
    before: Sequence[Mapping[str, Mapping[str, Any]]] = ()
    after: Sequence[Mapping[str, Mapping[str, Any]]] = ()
    name: str = ""
    tokenizer: TokenizerRequest | Any = None
    chat_template: str | None = None
    from_yaml: bool = False
    text: str = ""
    places: Mapping[tuple[Any, ...], str] = field(default_factory=dict)
    notes: Sequence[str] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "models", _wrapped(self.models))
        if not isinstance(self.parameters, Mapping):
            raise RecipeError(f"parameters is {self.parameters!r}", right='a dict, such as {"density": 0.5}')
        if self.tokenizer is not None and not isinstance(self.tokenizer, TokenizerRequest):
            object.__setattr__(self, "tokenizer", TokenizerRequest(self.tokenizer))
        for patterns in ("exclude", "only"):
            if isinstance(getattr(self, patterns), str):
                object.__setattr__(self, patterns, (getattr(self, patterns),))

    def place(self, *path: Any) -> str:
        """Return where a key path was written, the nearest parent's place when it is not itself in the text."""
        return place_of(self.places, path)


def place_of(places: Mapping[tuple[Any, ...], str], path: tuple[Any, ...]) -> str:
    """Return "file:line:column (key path)" of a key path or of its nearest parent that was written."""
    spoken = ".".join(map(str, path))
    for end in range(len(path), -1, -1):
        if path[:end] in places:
            place = places[path[:end]]
            return f"{place} ({spoken})" if path else place
    return spoken
