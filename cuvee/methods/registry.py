"""The registry: a method is a plain typed function, and all that the tool needs is read from its signature.

    @merge_method(paper=Paper("TIES-Merging", arxiv="2306.01708"), on=DELTAS, base=REQUIRED)
    def ties(deltas, *, weight: PerModel[float] = 1.0, density: PerModel[Fraction] = 1.0, normalize: bool = True): ...

A file in `methods/papers/` is found by being there. `@edit` registers a filter (`before:`) or a refiner (`after:`).
"""

from __future__ import annotations

import enum
import functools
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from cuvee.errors import MethodError, nearest
from cuvee.methods.parameters import Bound, Fraction, Parameter, Patterns, PerModel, parameters_of

__all__ = [
    "ADAPTERS",
    "DELTAS",
    "ELEMENT",
    "EMBEDDINGS",
    "ENDPOINT",
    "MATRIX",
    "MEMBER",
    "NONE",
    "OPTIONAL",
    "REQUIRED",
    "ROW",
    "WEIGHTS",
    "BaseUse",
    "Bound",
    "Edit",
    "Fraction",
    "Method",
    "On",
    "Paper",
    "Parameter",
    "Patterns",
    "PerModel",
    "Role",
    "Unit",
    "Workspace",
    "edit",
    "edits",
    "find_edit",
    "find_method",
    "merge_method",
    "methods",
    "unknown_method",
]


class On(enum.Enum):
    """What a method works on: the models' weights, their task vectors, or what the files of adapters hold."""

    WEIGHTS = "weights"
    DELTAS = "task vectors"
    ADAPTERS = "adapters"


class BaseUse(enum.Enum):
    """What a base model is to a method."""

    REQUIRED = "required"
    OPTIONAL = "optional: with one, task vectors are merged"
    MEMBER = "one more model"
    ENDPOINT = "the first of the two models"
    NONE = "not used"


class Role(enum.Enum):
    """What an edit is: a filter changes one task vector before, a refiner the merged one after."""

    FILTER = "before"
    REFINER = "after"


class Unit(enum.Enum):
    """How much of a tensor one call must see: any block of whole rows, also a long 1-D tensor whole, or matrices whole."""

    ELEMENT = "element"
    ROW = "row"
    MATRIX = "matrix"


EMBEDDINGS = "embeddings"
"""The value of `not_matrix` that means embeddings and heads, whatever they are called."""
WEIGHTS, DELTAS, ADAPTERS = On.WEIGHTS, On.DELTAS, On.ADAPTERS
ELEMENT, ROW, MATRIX = Unit.ELEMENT, Unit.ROW, Unit.MATRIX
REQUIRED, OPTIONAL, MEMBER, ENDPOINT, NONE = (
    BaseUse.REQUIRED,
    BaseUse.OPTIONAL,
    BaseUse.MEMBER,
    BaseUse.ENDPOINT,
    BaseUse.NONE,
)


Workspace = Callable[[int, int, int, Mapping[str, Any]], int]
"""(rows, columns, models, arguments) -> the most bytes that a method on matrices holds at once, base and result included."""


@dataclass(frozen=True)
class Paper:
    """Where a method comes from; `url` where there is no paper."""

    title: str
    arxiv: str = ""
    year: int = 0
    url: str = ""

    def __str__(self) -> str:
        source = f"arXiv {self.arxiv}" if self.arxiv else self.url
        year = f", {self.year}" if self.year else ""
        return f"{self.title}{year}" + (f" ({source})" if source else "")


@dataclass(frozen=True)
class Edit:
    """A step that wraps any method: a filter of the task vectors, or a refiner of the merged one.

    Attributes:
        joint: a filter that is given the task vectors of all models, not one after the other.
        arrays: it takes NumPy arrays, and blocks that nobody has decoded, as well as tensors.
        unit: how much of a tensor one call must see; one on matrices leaves all else as it is.
        workspace: of one on matrices, see `Workspace`.
        status, formula, differs, cost: as of a `Method`; the formula says what becomes of τ_i, or of the merged τ.
        alone: parameters of the method that it wraps where a recipe names it as the merge method and no `inner`.
        uses: the kinds of statistics that it takes where they are given.
        once: why it does not stand twice on its side of the merge; empty where it may.
    """

    name: str
    role: Role
    function: Callable[..., Any]
    paper: Paper
    parameters: Mapping[str, Parameter]
    joint: bool
    arrays: bool
    unit: Unit
    status: str
    formula: str
    differs: str
    cost: str
    workspace: Workspace | None = None
    alone: Mapping[str, Any] = field(default_factory=dict)
    uses: tuple[str, ...] = ()
    once: str = ""


@dataclass(frozen=True)
class Method:
    """A merge method and what the tool knows of it.

    Attributes:
        name: in recipes.
        function: called with the (K, …) values and the parameters by name.
        on: weights, task vectors or adapters.
        base: what a base model is to it.
        models: the fewest and most models it takes, the base not counted (None: any number).
        parameters: by name, in the order of the signature, then those of the engine: `scaling` for every method on
            task vectors, `embed_mismatch`; `not_matrix`, `conv` and mostly `others` for a method on matrices.
        wants_base: True when the function also takes the base's block as `base`.
        status: "published", "community", or "reconstruction".
        formula: one line, with the parameters' names.
        differs: differences from the paper and from mergekit, as prose.
        cost: in words.
        unit: how much of a tensor one call must see.
        arrays: it runs on NumPy arrays as well as on tensors.
        workspace: of a method on matrices, see `Workspace`.
        continual: its merges keep what it hands to `left_beside`, and can be continued.
        needs: the kinds of statistics without which it does nothing, such as "hidden".
        uses: those that it takes where they are given.
        whole: settings with which it must be given tensors whole, whatever they are.
        sequence: settings with which its models stand in the order of their training, and the values that say so.
        own: the names of the parameters that its function takes.
    """

    name: str
    function: Callable[..., Any]
    paper: Paper
    on: On
    base: BaseUse
    models: tuple[int, int | None]
    parameters: Mapping[str, Parameter]
    wants_base: bool
    status: str
    formula: str
    differs: str
    cost: str
    unit: Unit
    arrays: bool = False
    workspace: Workspace | None = None
    continual: bool = False
    needs: tuple[str, ...] = ()
    uses: tuple[str, ...] = ()
    whole: Mapping[str, Any] = field(default_factory=dict)
    sequence: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    own: frozenset[str] = frozenset()

    @property
    def summary(self) -> str:
        """The first sentence of its docstring."""
        return (inspect.getdoc(self.function) or "").split("\n", 1)[0]


_METHODS: dict[str, Method] = {}
_EDITS: dict[str, Edit] = {}


def merge_method(
    *,
    paper: Paper,
    on: On = DELTAS,
    base: BaseUse = REQUIRED,
    models: tuple[int, int | None] = (1, None),
    unit: Unit = ELEMENT,
    others: Literal["mean", "base", "sum"] | None = "mean",
    embeddings: bool = False,
    workspace: Workspace | None = None,
    arrays: bool = False,
    continual: bool = False,
    needs: tuple[str, ...] = (),
    uses: tuple[str, ...] = (),
    whole: Mapping[str, Any] | None = None,
    sequence: Mapping[str, tuple[Any, ...]] | None = None,
    cost: str = "one pass",
    formula: str = "",
    differs: str = "",
    status: str = "published",
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a merge method under its function's name.

    Args:
        paper: its source.
        on: `WEIGHTS` or `DELTAS`; on deltas the engine adds the base back and applies `scaling`. `ADAPTERS`: the models
            are folders of adapters, the function is given each tensor of their files whole, and finds the others under the
            statistics `adapter/model0/<tensor>`.
        base: what a base model is to it.
        models: fewest and most models, the base not counted.
        unit: `ROW` where vectors that are one row must be seen whole; `MATRIX`: the function is given `Matrices`, and what
            is no matrix becomes the mean of the task vectors, or what `others` says.
        others: the default of the parameter of that name; None: there is none, and the function is also given the (K, …)
            blocks of what is no matrix.
        embeddings: True when embeddings and heads are matrices to it, unless `not_matrix` names them.
        workspace: of a method on matrices, see `Workspace`.
        arrays: True when it leaves all work on values to pieces that take arrays as well as tensors: its merges do
            not load torch.
        continual: True when it hands what a later merge goes on from to `left_beside`.
        needs: the kinds of statistics without which it does nothing.
        uses: those that it takes where they are given.
        whole: settings with which it must be given tensors whole.
        sequence: settings with which its models stand in the order of their training, and the values that say so.
        cost: in words: "one pass", "a few visits of each tensor", "two rounds over the model".
        formula: one line of plain text, with the parameters' names.
        differs: where it differs from the paper and from mergekit.
        status: "published", "community" (no paper) or "reconstruction" (the paper's text was not enough).
    """

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        parameters = parameters_of(function)
        own = frozenset(parameters)
        if on is DELTAS or base is OPTIONAL:
            parameters["scaling"] = Parameter("scaling", False, (float,), (), Bound(), 1.0)
        parameters["embed_mismatch"] = Parameter(
            "embed_mismatch", False, (), ("error", "common_submatrix"), Bound(), "error"
        )
        if unit is MATRIX:
            parameters |= _matrix_parameters(embeddings, others)
        name = function.__name__
        wants_base = "base" in inspect.signature(function).parameters
        _METHODS[name] = Method(
            name,
            function,
            paper,
            on,
            base,
            models,
            parameters,
            wants_base,
            status,
            formula,
            differs,
            cost,
            unit,
            arrays,
            workspace,
            continual,
            needs,
            uses,
            whole or {},
            sequence or {},
            own,
        )
        return function

    return register


def edit(
    *,
    role: Role,
    paper: Paper,
    arrays: bool = False,
    unit: Unit = ELEMENT,
    embeddings: bool = False,
    workspace: Workspace | None = None,
    cost: str = "one pass",
    formula: str = "",
    differs: str = "",
    status: str = "published",
    alone: Mapping[str, Any] | None = None,
    uses: tuple[str, ...] = (),
    once: str = "",
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a filter or a refiner under its function's name.

    A filter is called as `f(delta, **parameters)` for each model, or, where its first argument is called `deltas`, as
    `f(deltas, **parameters)` once for all; a refiner as `f(merged, deltas, **parameters)`.

    Args:
        arrays, cost, formula, differs, status: as of `merge_method`.
        alone: parameters of what it wraps where a recipe names it as the merge method, and no `inner`.
        uses: the kinds of statistics that it takes where they are given.
        once: what a second of it would do, if that is nothing, or nonsense: a refiner stands on its side once then, a
            filter not twice in a row.
    """

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        name = function.__name__
        joint = next(iter(inspect.signature(function).parameters)) == "deltas"
        parameters = parameters_of(function)
        if unit is MATRIX:
            parameters |= _matrix_parameters(embeddings, None)
        _EDITS[name] = Edit(
            name,
            role,
            function,
            paper,
            parameters,
            joint,
            arrays,
            unit,
            status,
            formula,
            differs,
            cost,
            workspace,
            alone or {},
            uses,
            once,
        )
        return function

    return register


def _matrix_parameters(embeddings: bool, others: str | None) -> dict[str, Parameter]:
    """Return the parameters of all that works on matrices. Embeddings and heads are 2-D, but no linear maps."""
    found = [
        Parameter("not_matrix", False, (Patterns,), (EMBEDDINGS,), Bound(), Patterns() if embeddings else EMBEDDINGS),
        Parameter("conv", False, (), ("others", "flatten"), Bound(), "others"),
    ]
    if others is not None:
        found.append(Parameter("others", False, (), ("mean", "base", "sum"), Bound(), others))
    return {one.name: one for one in found}


@functools.cache
def _load() -> None:
    """Import every paper and every piece, which registers them."""
    for package in ("cuvee.methods.papers", "cuvee.methods.pieces"):
        module = importlib.import_module(package)
        for found in pkgutil.iter_modules(module.__path__):
            importlib.import_module(f"{package}.{found.name}")


def methods() -> Mapping[str, Method]:
    """Return every registered method by name, sorted."""
    _load()
    return dict(sorted(_METHODS.items()))


def edits() -> Mapping[str, Edit]:
    """Return every registered edit by name, sorted."""
    _load()
    return dict(sorted(_EDITS.items()))


_NO_METHODS = {
    "fda": (
        "fda learns inputs and trains layers on them, which no recipe can: it is a command",
        "cuvee fda BASE EXPERT… --out OUT; in Python cuvee.learning.plan_anchors",
    ),
    "seme": (
        "there is no method seme: the formulas of its paper were not seen, and what went by its name would not be faithful",
        "cuvee.methods.pieces.latent_maps.latent_map: its map between hidden spaces; then any merge",
    ),
}
"""Names from the literature that are asked for and are no methods here: why, and what there is instead."""


def unknown_method(name: str, *, where: str = "") -> MethodError:
    """Return what is wrong with a name that no method has; the nearest name, or what there is instead, is suggested."""
    if name in _NO_METHODS:
        found, right = _NO_METHODS[name]
        return MethodError(found, where=where, right=right)
    if name in edits():
        found = f"{name!r} is an edit, which goes {edits()[name].role.value} a merge method and is none"
        return MethodError(found, where=where, right=f"{_entry(edits()[name])}, beside the merge method")
    return MethodError(f"unknown merge method {name!r}", where=where, right=nearest(name, [*methods(), *edits()]))


def find_method(name: str, *, where: str = "") -> Method:
    """Return the method of that name.

    Raises:
        MethodError: there is none; the nearest name, or what there is instead, is suggested.
    """
    if name not in methods():
        raise unknown_method(name, where=where)
    return methods()[name]


def find_edit(name: str, role: Role, *, where: str = "") -> Edit:
    """Return the filter or refiner of that name.

    Raises:
        MethodError: there is none, or it belongs on the other side of the merge.
    """
    known = edits()
    if name not in known:
        if name in methods():
            found = f"{name!r} is a merge method, and {role.value} it stand edits"
            raise MethodError(found, where=where, right=f"merge_method: {name}")
        of_role = [other for other, found in known.items() if found.role is role]
        raise MethodError(f"unknown edit {name!r}", where=where, right=nearest(name, of_role))
    if known[name].role is not role:
        found = f"{name!r} cannot stand {role.value} the merge: {_OTHER_SIDE[role]}"
        raise MethodError(found, where=where, right=_entry(known[name]))
    return known[name]


_OTHER_SIDE = {
    Role.FILTER: "it changes the merged task vector, which is not there yet",
    Role.REFINER: "it changes the task vectors of single models, which are merged by then",
}
"""Why what belongs on the other side cannot stand on this one."""


def _entry(step: Edit) -> str:
    """Return how an edit is written in a recipe."""
    must = ", ".join(f"{one.name}: …" for one in step.parameters.values() if one.required)
    return f"{step.role.value}: [{step.name}: {{{must}}}]" if must else f"{step.role.value}: [{step.name}]"
