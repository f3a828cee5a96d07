"""What is computed: one output tensor and its inputs, the method with the edits around it, and both applied to a block."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from cuvee.checkpoints.sources import Slice, TensorSource
from cuvee.methods.calls import Call, Decompositions, Kept, Place, current
from cuvee.methods.combination import Matrices, Stored, plain
from cuvee.methods.measuring import each, each_loaded
from cuvee.methods.pieces.combine import OTHERS
from cuvee.methods.registry import ADAPTERS, DELTAS, EMBEDDINGS, MATRIX, OPTIONAL, Edit, Method
from cuvee.tensors import kernels
from cuvee.tensors.dtypes import DType
from cuvee.tensors.layout import Layout
from cuvee.tensors.rows import Row

if TYPE_CHECKING:
    from torch import Tensor

    from cuvee.architectures import Fused

__all__ = ["ENGINE_PARAMETERS", "Formula", "Input", "Task", "apply_formula", "needs_base"]

_NO_LINEAR_MAPS = ("embedding", "position", "head", "task_head")

ENGINE_PARAMETERS = ("scaling", "embed_mismatch", "others", "not_matrix", "conv")
"""What the engine does with a tensor, beside the method's own parameters."""


@dataclass(frozen=True)
class Input:
    """One model's tensor as an input.

    Attributes:
        model: which model's.
        source: the values.
        name: in that model, where it is not the output's.
        change: what a copy does to it, elementwise: given flat float values and the place of the first, returns them
            changed. It must not depend on where blocks begin and end.
        is_delta: the values are a task vector already: no base is taken from them.
    """

    model: int
    source: TensorSource
    name: str = ""
    change: Callable[[Tensor, int], Tensor] | None = None
    is_delta: bool = False


@dataclass(frozen=True)
class Task:
    """One output tensor.

    Attributes:
        name: in the output.
        layout: its shape and cut.
        dtype: in the output.
        inputs: the models' tensors in the method's order; when it is copied, what is laid end to end, mostly one.
        base: the base's, where the method works on task vectors.
        arguments: the method's parameters for this tensor; None: the inputs are copied.
        layer, layers, role, fused, transposed: see `Place`.
        experts: how many matrices are stacked along dimension 0, 0 where none are.
        of: of one of them that is worked on by itself, the task that it belongs to.
        begin: the flat element of that one's tensor where this one begins.
    """

    name: str
    layout: Layout
    dtype: DType
    inputs: tuple[Input, ...]
    base: Input | None = None
    arguments: Mapping[str, Any] | None = None
    layer: int | None = None
    layers: int = 0
    role: str = ""
    fused: Fused | None = None
    transposed: bool = False
    experts: int = 0
    of: Task | None = None
    begin: int = 0

    @property
    def is_copy(self) -> bool:
        """True when the values come out as they went in, end to end where there are several inputs."""
        return self.arguments is None

    @property
    def is_plain_copy(self) -> bool:
        """True when one input comes out as it went in, dtype apart."""
        return self.is_copy and len(self.inputs) == 1 and self.inputs[0].change is None

    @property
    def bytes_read(self) -> int:
        """Bytes of all inputs, once."""
        return sum(math.prod(one.source.shape) * one.source.dtype.itemsize for one in self.all_inputs)

    @property
    def bytes_written(self) -> int:
        """Bytes of the output."""
        return self.layout.numel * self.dtype.itemsize

    @property
    def all_inputs(self) -> tuple[Input, ...]:
        """The base first, then the models."""
        return (self.base, *self.inputs) if self.base else self.inputs

    @property
    def scaling(self) -> float:
        """The coefficient of what is added to the base."""
        return float((self.arguments or {}).get("scaling", 1.0))

    def own_arguments(self, method: Method) -> dict[str, Any]:
        """Return the arguments that are the method's own, not the engine's."""
        return {name: value for name, value in (self.arguments or {}).items() if name in method.own}

    def as_matrix(self, piece: Method | Edit, parameters: Mapping[str, Any]) -> tuple[int, int] | None:
        """Return its outputs and inputs where it is a linear map to a method or an edit that works on matrices, else None.

        Of a tensor that holds several experts, those of each.
        """
        shape = self.layout.shape[1:] if self.experts else self.layout.shape
        named = parameters.get("not_matrix", EMBEDDINGS)
        if piece.unit is not MATRIX or self.is_copy or len(shape) < 2:
            return None
        if len(shape) > 2 and parameters["conv"] != "flatten":
            return None
        if (self.role in _NO_LINEAR_MAPS) if named == EMBEDDINGS else ((self.of or self).name in named):
            return None
        rows, columns = shape[0], math.prod(shape[1:])
        if min(rows, columns) <= 1:
            return None
        return (columns, rows) if self.transposed else (rows, columns)

    def as_stored(self, shape: tuple[int, int]) -> tuple[int, int]:
        """Return the rows and columns of the matrix on the disk that stands for a linear map."""
        return shape[::-1] if self.transposed else shape

    def expert(self, number: int) -> Task:
        """Return the task of one expert's matrix."""
        layout = Layout(self.layout.shape[1:])

        def own(one: Input) -> Input:
            return replace(one, source=Slice(one.source, number))

        return replace(
            self,
            name=f"{self.name}[{number}]",
            layout=layout,
            inputs=tuple(map(own, self.inputs)),
            base=self.base and own(self.base),
            experts=0,
            of=self,
            begin=number * layout.numel,
        )

    def place(self, start: int, stop: int) -> Place:
        """Return the place of a block."""
        how = (self.layer, self.layers, self.role, self.fused, self.transposed)
        return Place(self.name, self.layout, start, stop, *how)


@dataclass(frozen=True)
class Formula:
    """What is done to every tensor: the method, the edits around it, how it computes, and what it need not compute again."""

    method: Method
    before: tuple[tuple[Edit, Mapping[str, Any]], ...] = ()
    after: tuple[tuple[Edit, Mapping[str, Any]], ...] = ()
    seed: int = 0
    compat: str | None = None
    compute_dtype: str = "float32"
    device: str = "cpu"
    statistics: Mapping[str, Any] = field(default_factory=dict)
    kept: Kept | None = None
    decompositions: Decompositions | None = None

    @property
    def on_arrays(self) -> bool:
        """True when the method and the edits are given NumPy arrays."""
        plain = self.device == "cpu" and self.compute_dtype == "float32"
        plain = plain and all(step.arrays for step, _ in (*self.before, *self.after))
        plain = plain and (not self.statistics or bool(self.method.needs))  # else they may be masks of single elements
        return self.method.arrays and plain and kernels.available()

    @property
    def kinds(self) -> set[str]:
        """The kinds of statistics that it has a use for."""
        steps = (*self.before, *self.after)
        return {"mask", *self.method.needs, *self.method.uses, *(kind for step, _ in steps for kind in step.uses)}

    def on_matrix(self, task: Task) -> tuple[int, int] | None:
        """Return rows and columns of a tensor, or of each expert in it, that the method is given as `Matrices`, else None."""
        return task.as_matrix(self.method, task.arguments or {})

    def needs_whole(self, task: Task) -> bool:
        """True where the method or an edit must see all of a tensor at once."""
        if task.arguments is not None and self.asks_for_whole(task.arguments):
            return True
        return self._works_on_matrices(task)

    def apart(self, task: Task) -> Iterator[Task]:
        """Yield what is worked on one after the other: each expert's matrix where a tensor holds several, else the task."""
        if task.experts and self._works_on_matrices(task):
            yield from map(task.expert, range(task.experts))
        else:
            yield task

    def _works_on_matrices(self, task: Task) -> bool:
        edits = (*self.before, *self.after)
        return self.on_matrix(task) is not None or any(task.as_matrix(*step) is not None for step in edits)

    def asks_for_whole(self, arguments: Mapping[str, Any]) -> bool:
        """Return whether the method is given whole tensors, whatever they are: of adapters, or by its settings."""
        settings = self.method.whole.items()
        return self.method.on is ADAPTERS or any(arguments[name] == value for name, value in settings)

    def call(self, place: Place, answers: Mapping[Any, Any], states: Mapping[Any, Any]) -> Call:
        """Return a call on one block that knows these measurements."""
        return Call(
            place,
            answers,
            states,
            self.statistics,
            self.seed,
            self.compat,
            kept=self.kept,
            decompositions=self.decompositions,
        )


def apply_formula(task: Task, formula: Formula, values: Any, base: Tensor | Row | None) -> Any:
    """Run the edits and the method on blocks, decoded or not, or `Matrices`.

    Returns:
        what is added to the base, or without one the merged.
    """
    method = formula.method
    function, arguments = method.function, task.own_arguments(method)
    if task.transposed and isinstance(values, Matrices):
        function = _turned(function)
    elif (
        method.unit is MATRIX and not isinstance(values, Matrices) and "others" in method.parameters.keys() - method.own
    ):
        function = OTHERS[(task.arguments or {})["others"]]
        arguments = {name: value for name, value in arguments.items() if name == "weight"}
    if base is None:
        return function(values, **arguments)
    if method.wants_base and (isinstance(values, Matrices) or function is method.function):
        arguments["base"] = base
    steps = [(step.joint, _step(task, step, parameters)) for step, parameters in formula.before]
    filters = [(joint, function) for joint, function in steps if function is not None]
    if isinstance(values, Matrices) and not any(joint for joint, _ in filters):
        values = each_loaded([one for _, one in filters], values) if filters else values
    else:
        stack: Any = values if isinstance(values, Stored) else plain(values)
        for joint, one in filters:
            stack = one(stack) if joint else each(one, stack)
        values = Matrices(values.shape, lambda k: stack[k].clone()) if isinstance(values, Matrices) else stack
    merged = function(values, **arguments)
    for step, parameters in formula.after:
        if (function_of_step := _step(task, step, parameters)) is not None:
            merged = function_of_step(merged, values)
    return merged


def _step(task: Task, step: Edit, parameters: Mapping[str, Any]) -> Callable[..., Any] | None:
    """Return an edit with its parameters; None for one on matrices where the tensor is none."""
    own = {name: value for name, value in parameters.items() if name not in ENGINE_PARAMETERS}
    if step.unit is not MATRIX:
        return partial(step.function, **own)
    shape = task.as_matrix(step, parameters)
    if shape is None:
        return None
    function, stored = _turned(step.function) if task.transposed else step.function, task.as_stored(shape)

    def on_matrices(values: Any, *deltas: Any) -> Any:
        flat = [one if isinstance(one, Matrices) else one.reshape(-1, *stored) for one in deltas]
        return function(values.reshape(stored), *flat, **own).reshape(values.shape)

    return on_matrices


def _turned(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return a function of linear maps (out, in) that is given, and gives, what is stored as (in, out)."""

    def turn(values: Any) -> Any:
        if isinstance(values, Matrices):
            count, rows, columns = values.shape
            return Matrices((count, columns, rows), lambda k: values[k].mT.contiguous())
        return values.mT.contiguous()

    def on_stored(*matrices: Any, base: Any = None, **own: Any) -> Tensor:
        given = {} if base is None else {"base": turn(base)}
        call = current()
        before, merged = call.left, function(*map(turn, matrices), **given, **own)
        if call.left is not None and call.left is not before:
            call.left = replace(call.left, values=call.left.values.mT.contiguous())
        return merged.mT

    return on_stored


def needs_base(method: Method, has_base: bool) -> bool:
    """True when the method is given task vectors."""
    return method.on is DELTAS or (method.base is OPTIONAL and has_base)
