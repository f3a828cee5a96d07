"""The laws of a merge method, and the line that checks them all.

Some hold for every method: the same bytes for any block size, thread count, order of tensors and process; arithmetic in
float32, rounded once; no NaN from frozen, empty or degenerate tensors; unchanged models give the base, as does scaling 0;
no value of a parameter is a traceback.
Three must be promised: equal models give that model, the order of models does not matter, and scaled task vectors give
the scaled result.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from cuvee.checkpoints.safetensors_format import open_safetensors
from cuvee.checkpoints.sources import read_all
from cuvee.engine.budget import Budget
from cuvee.engine.in_memory import merge_tensors
from cuvee.engine.plan import plan
from cuvee.engine.run import run
from cuvee.errors import CuveeError, Problems
from cuvee.methods.registry import ADAPTERS, DELTAS, MEMBER, OPTIONAL, REQUIRED, Method, edits, find_method
from cuvee.recipes import Recipe, RecipeModel
from cuvee.recipes.wrapping import INNER
from cuvee.testing.second_process import digests_elsewhere, digests_of
from cuvee.testing.specimens import FACTORS, LARGE, LARGE_FACTORS, SMALL, Specimens, by_place, specimens, statistics_of
from cuvee.testing.stand_in_device import stand_in_device

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["LAWS", "BrokenContract", "Contract", "check_method", "law"]

Tensors = Mapping[str, "Tensor"]


class BrokenContract(AssertionError):
    """A method breaks some laws; the message says which, and on what."""


@dataclass(frozen=True)
class Contract:
    """What is checked of a method.

    Attributes:
        method: its name, or that of an edit, which wraps a method (`inner`).
        parameters: with which it runs.
        equal_models: parameters, beside those, with which K equal models give that model; None: they do not.
        symmetric: parameters with which the order of models does not matter; None: it does.
        tolerance: of these two laws, relative to max(1, the largest magnitude). All others hold to the bit.
        turns: the sides, "left" and "right", on which rotated task vectors give the rotated result.
        scales: task vectors times c give the result times c, which no threshold, step or weight of absolute size allows.
        transposes: transposed task vectors give the transposed result.
        stable: noise of 1e-6 in task vectors of low rank moves the result by less than 1e-2.
        wide: how far float64 and float32 may be apart: decompositions of close singular values, and iterations, differ.
    """

    method: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    equal_models: Mapping[str, Any] | None = field(default_factory=dict)
    symmetric: Mapping[str, Any] | None = field(default_factory=dict)
    tolerance: float = 2e-6
    turns: Sequence[str] = ()
    scales: bool = False
    transposes: bool = False
    stable: bool = True
    wide: float = 1e-5

    @property
    def found(self) -> Method:
        """The method; of an edit, the one that it wraps."""
        return find_method(str(self.parameters.get("inner", INNER)) if self.method in edits() else self.method)

    @property
    def small(self) -> Mapping[str, tuple[int, ...]]:
        """The shapes of small specimens."""
        return SMALL | FACTORS if self.found.on is ADAPTERS else SMALL

    @property
    def large(self) -> Mapping[str, tuple[int, ...]]:
        """The shapes of large ones."""
        return LARGE | LARGE_FACTORS if self.found.on is ADAPTERS else LARGE

    @property
    def count(self) -> int:
        """How many models it is checked with."""
        fewest, most = self.found.models
        return max(fewest, 3 if most is None else most)

    @property
    def with_base(self) -> list[bool]:
        """Whether to give it a base: both where it may have one."""
        use = self.found.base
        return [True] if use is REQUIRED else [False, True] if use in (OPTIONAL, MEMBER) else [False]

    def merge(self, given: Specimens, base: bool, /, *, block: int | None = None, **settings: Any) -> dict[str, Tensor]:
        """Merge in memory."""
        count = len(given.models)
        parameters: dict[str, Any] = {
            name: value[:count] if isinstance(value, list) else value
            for name, value in {**self.parameters, **settings}.items()
        }
        return merge_tensors(
            self.method,
            given.models,
            given.base if base else None,
            statistics=by_place(statistics_of(self.found.needs, count)),
            block_elements=block,
            **parameters,
        )


Law = Callable[[Contract], Iterator[str]]
LAWS: dict[str, Law] = {}
"""Every law by name: given a contract, it yields what is wrong."""


def law(function: Law) -> Law:
    """Make a law one of all."""
    LAWS[function.__name__] = function
    return function


def check_method(
    method: str,
    *,
    equal_models: Mapping[str, Any] | None = {},  # noqa: B006  it is not changed
    symmetric: Mapping[str, Any] | None = {},  # noqa: B006
    tolerance: float = 2e-6,
    turns: Sequence[str] = (),
    scales: bool = False,
    transposes: bool = False,
    **parameters: Any,
) -> None:
    """Check a registered method against every law.

    Args:
        method: its name; the module that registers it must be importable by name.
        equal_models: parameters, beside the others, with which K equal models give that model; None: they do not.
        symmetric: parameters with which the order of models does not matter; None: it does.
        tolerance: of these two laws.
        turns, transposes: what a method on matrices promises, see `Contract`.
        scales: whether scaled task vectors give the scaled result.
        parameters: with which the method runs.

    Raises:
        BrokenContract: naming each law that it breaks.
    """
    contract = Contract(method, parameters, equal_models, symmetric, tolerance, turns, scales, transposes)
    broken = [f"{name}: {wrong}" for name, one in LAWS.items() for wrong in _findings(one, contract)]
    if broken:
        raise BrokenContract(f"{method} breaks {len(broken)} laws\n" + "\n".join(f"  {line}" for line in broken))


def _findings(one: Law, contract: Contract) -> list[str]:
    try:
        return list(one(contract))[:3]
    except Exception as error:  # a method that crashes breaks the law that made it crash
        return [f"{type(error).__name__}: {error}"]


# --- comparing ---


def _different(
    got: Tensors, want: Tensors, tolerance: float | None = None, what: str = "", flips: float = 0.0
) -> Iterator[str]:
    """Yield the tensors that differ: in any bit, or by more than `tolerance` × max(1, largest magnitude).

    `flips`: the share of elements that may, because a score was rounded to the other side of a threshold.
    """
    if got.keys() != want.keys():
        yield f"{what}tensors {sorted(got.keys() ^ want.keys())} are in one result only"
        return
    for name in want:
        a, b = got[name], want[name]
        if a.shape != b.shape or a.dtype != b.dtype:
            yield f"{what}{name} is {a.dtype} {tuple(a.shape)}, not {b.dtype} {tuple(b.shape)}"
        elif tolerance is None:
            unequal = (
                int((a.reshape(-1).view(torch.uint8) != b.reshape(-1).view(torch.uint8)).sum()) if a.numel() else 0
            )
            if unequal:
                yield f"{what}{name} differs in {unequal} bytes"
        elif a.numel():
            error = (a.double() - b.double()).abs()
            allowed = tolerance * max(1.0, float(b.double().abs().max()))
            if int((~(error <= allowed)).sum()) > flips * a.numel():
                yield f"{what}{name} is off by {float(error.max()):.3g}, allowed are {allowed:.3g}"


def _unlike_values(got: Tensors, want: Tensors, what: str = "") -> Iterator[str]:
    """Yield the tensors whose values are not equal; −0 equals 0."""
    for name in want:
        if not torch.equal(got[name], want[name]):
            error = float((got[name].double() - want[name].double()).abs().max())
            yield f"{what}{name} is off by {error:.3g}"


def _copy(base: Tensors) -> dict[str, Tensor]:
    """Return an expert that equals the base: the same dict among the models would be taken for the base itself."""
    return dict(base)


def _said(base: bool) -> str:
    return "with a base: " if base else ""


# --- laws that must be promised ---


@law
def equal_models_give_that_model(contract: Contract) -> Iterator[str]:
    """K equal models give that model, for every number of models."""
    if contract.equal_models is None:
        return
    fewest, most = contract.found.models
    for count in sorted({fewest, contract.count, contract.count if most else 5}):
        given = specimens(1, contract.small, seed=count)
        given.models *= count
        # A member base is one more model: it must be equal too.
        for base in contract.with_base:
            if contract.found.base is MEMBER:
                given.base = given.models[0]
            got = contract.merge(given, base, **contract.equal_models)
            yield from _different(got, given.models[0], contract.tolerance, f"{count} models, {_said(base)}")


@law
def the_order_of_models_does_not_matter(contract: Contract) -> Iterator[str]:
    """Models in another order give the same result, to rounding."""
    if contract.symmetric is None or contract.count == 1:
        return
    given = specimens(contract.count, contract.small)
    turned = Specimens(given.base, given.models[1:] + given.models[:1])
    for base in contract.with_base:
        one, other = (contract.merge(these, base, **contract.symmetric) for these in (given, turned))
        yield from _different(one, other, contract.tolerance, _said(base))


@law
def scaled_task_vectors_give_the_scaled_result(contract: Contract) -> Iterator[str]:
    """c τ_i on a base of zeros give c times the result; without a base, c θ_i do."""
    if not contract.scales:
        return
    given = specimens(contract.count, contract.small).to(torch.float64)
    base = {name: torch.zeros_like(tensor) for name, tensor in given.base.items()}
    deltas = [{name: tensor - given.base[name] for name, tensor in model.items()} for model in given.models]
    scaled = [{name: 3.0 * tensor for name, tensor in delta.items()} for delta in deltas]
    for with_base in contract.with_base:
        one, other = (contract.merge(Specimens(base, these), with_base) for these in (deltas, scaled))
        for name, tensor in one.items():
            error = float((other[name] - 3.0 * tensor).norm() / (3.0 * tensor).norm().clamp(min=1e-30))
            if not error < max(1e-6, contract.tolerance):
                yield f"{_said(with_base)}scaled {name} is off by {error:.2g} of its norm"


# --- laws of every method ---

UNLIKELY: tuple[Any, ...] = (-1, 0, 1e30, 10**30, math.inf, math.nan, "nothing", [], {}, [0.5])
"""What somebody may give a parameter."""


@law
def any_value_of_a_parameter_is_taken_or_refused(contract: Contract) -> Iterator[str]:
    """Whatever a parameter is given, there is a merge, or an error of Cuvée's tree that says what is right."""
    given, base = specimens(contract.count, contract.small), contract.with_base[-1]
    for name in (edits().get(contract.method) or contract.found).parameters:
        for value in UNLIKELY:
            try:
                contract.merge(given, base, **{name: value})
            except CuveeError as error:
                if not all(one.right for one in (error.errors if isinstance(error, Problems) else [error])):
                    yield f"{name}: {value!r} is refused without what is right: {error}"
            except Exception as error:
                yield f"{name}: {value!r} gives {type(error).__name__}: {error}"


@law
def unchanged_models_give_the_base(contract: Contract) -> Iterator[str]:
    """Where all task vectors are zero, the base comes out."""
    for base in contract.with_base:
        given = specimens(0, contract.small)
        given.models = [_copy(given.base) for _ in range(contract.count)]
        if base and contract.found.base is not MEMBER:
            yield from _unlike_values(contract.merge(given, base), given.base)


@law
def scaling_zero_gives_the_base(contract: Contract) -> Iterator[str]:
    """`scaling: 0` gives the base, for methods on task vectors."""
    given = specimens(contract.count, contract.small)
    for base in contract.with_base:
        if base and contract.found.base is not MEMBER:
            yield from _unlike_values(contract.merge(given, base, scaling=0.0), given.base)


@law
def scaling_multiplies_the_merged_task_vector(contract: Contract) -> Iterator[str]:
    """Half the scaling goes half the way."""
    given = specimens(contract.count, contract.small)
    for base in contract.with_base:
        if base and contract.found.on is DELTAS:
            whole, half = contract.merge(given, base), contract.merge(given, base, scaling=0.5)
            middle = {name: (whole[name] + given.base[name]) / 2 for name in whole}
            yield from _different(half, middle, contract.tolerance)


@law
def degenerate_models_give_finite_values(contract: Contract) -> Iterator[str]:
    """No NaN, whatever is zero, equal, opposite, tiny, empty or alone."""
    given = specimens(contract.count, contract.small)
    zeros = {name: torch.zeros_like(tensor) for name, tensor in given.base.items()}
    opposite = {name: 2 * given.base[name] - tensor for name, tensor in given.models[0].items()}
    tiny = {name: tensor + 1e-30 for name, tensor in given.base.items()}
    rest = contract.count - 1
    fewest = max(1, contract.found.models[0])
    cases = {
        "an unchanged expert": Specimens(given.base, [*given.models[:rest], _copy(given.base)]),
        "only the last expert changed": Specimens(given.base, [_copy(given.base)] * rest + [given.models[0]]),
        "opposite experts": Specimens(given.base, ([given.models[0], opposite] * contract.count)[: contract.count]),
        "a base of zeros": Specimens(zeros, given.models),
        "experts of zeros": Specimens(given.base, [zeros] * contract.count),
        "all zeros": Specimens(zeros, [_copy(zeros)] * contract.count),
        "tiny task vectors": Specimens(zeros, [tiny] * contract.count),
        "the fewest models": Specimens(given.base, given.models[:fewest]),
    }
    for what, these in cases.items():
        for base in contract.with_base:
            for name, tensor in contract.merge(these, base).items():
                if not bool(torch.isfinite(tensor).all()):
                    yield f"{what}, {_said(base)}{name} is not finite"
                if tensor.shape != these.models[0][name].shape:
                    yield f"{what}, {_said(base)}{name} is {tuple(tensor.shape)}"


@law
def low_precision_is_merged_in_float32_and_rounded_once(contract: Contract) -> Iterator[str]:
    """bfloat16 and float16 models give, bit for bit, what the same values in float32 give, rounded."""
    for dtype in (torch.bfloat16, torch.float16):
        given = specimens(contract.count, contract.small).to(dtype)
        for base in contract.with_base:
            got, wide = contract.merge(given, base), contract.merge(given.to(torch.float32), base)
            yield from _different(got, {name: t.to(dtype) for name, t in wide.items()}, what=f"{dtype}, {_said(base)}")


@law
def float64_is_merged_in_float64(contract: Contract) -> Iterator[str]:
    """float64 models give what float32 ones give, but finer: equal ones that model to 1e-12."""
    given = specimens(contract.count, contract.small)
    for base in contract.with_base:
        if contract.equal_models is not None:
            start = given.models[0] if contract.found.base is MEMBER else given.base
            equal = Specimens(start, given.models[:1] * contract.count).to(torch.float64)
            got = contract.merge(equal, base, **contract.equal_models)
            yield from _different(got, equal.models[0], 1e-12, f"equal models in float64, {_said(base)}")
        got, narrow = contract.merge(given.to(torch.float64), base), contract.merge(given, base)
        rounded = {name: tensor.float() for name, tensor in got.items()}
        yield from _different(rounded, narrow, contract.wide, f"float64, {_said(base)}")
        if got and next(iter(got.values())).dtype is not torch.float64:
            yield "float64 models do not give float64"


@law
def inputs_are_left_alone(contract: Contract) -> Iterator[str]:
    """The tensors of the caller are not changed."""
    given, copy = specimens(contract.count, contract.small), specimens(contract.count, contract.small)
    for base in contract.with_base:
        contract.merge(given, base)
        for one, other in zip([given.base, *given.models], [copy.base, *copy.models], strict=True):
            yield from _different(one, other, what="an input: ")


@law
def the_order_of_tensors_does_not_matter(contract: Contract) -> Iterator[str]:
    """Models whose tensors come in another order give the same bytes."""
    given = specimens(contract.count, contract.small)
    turned = Specimens(dict(reversed(given.base.items())), [dict(reversed(model.items())) for model in given.models])
    for base in contract.with_base:
        yield from _different(contract.merge(turned, base), contract.merge(given, base), what=_said(base))


@law
def blocks_and_threads_leave_no_trace(contract: Contract) -> Iterator[str]:
    """Streamed from and to files by the engine, in any block size and number of threads: the bytes of whole tensors."""
    given = specimens(contract.count, contract.large)
    for base in contract.with_base:
        whole = contract.merge(given, base)
        yield from _different(
            contract.merge(given, base, block=1 << 16), whole, what=f"{_said(base)}blocks of one leaf: "
        )
        got = _streamed(contract, given, base)
        yield from _different(got, whole, what=f"{_said(base)}as planned: ")
        for threads, block in ((1, 1 << 17), (4, 1 << 16)):
            got = _streamed(contract, given, base, Budget(threads, block, 0))
            yield from _different(got, whole, what=f"{_said(base)}{threads} threads, blocks of {block}: ")


def _streamed(contract: Contract, given: Specimens, base: bool, budget: Budget | None = None) -> dict[str, Tensor]:
    told = statistics_of(contract.found.needs, len(given.models))
    recipe = Recipe(
        contract.method,
        models=[RecipeModel(model, statistics=own or None) for model, own in zip(given.models, told, strict=True)],
        base_model=given.base if base else None,
        parameters=contract.parameters,
    )
    with tempfile.TemporaryDirectory(prefix="cuvee-testing-") as folder:
        out = Path(folder) / "out"
        planned = plan(recipe)
        run(replace(planned, budget=budget or planned.budget), out)
        file, stored, _ = open_safetensors(out / planned.shards[0].file)
        try:
            return {name: read_all(source) for name, source in stored.items()}
        finally:
            file.close()


@law
def another_process_gives_the_same_bytes(contract: Contract) -> Iterator[str]:
    """A process with another PYTHONHASHSEED gives the same bytes."""
    for base in contract.with_base:
        here = digests_of(contract.method, contract.parameters, contract.count, base)
        there = digests_elsewhere(
            contract.method, contract.parameters, contract.count, base, module=contract.found.function.__module__
        )
        yield from (f"{_said(base)}{name} differs" for name in here if here[name] != there.get(name))


@law
def devices_agree(contract: Contract) -> Iterator[str]:
    """A GPU gives what the CPU gives, to rounding, with the same random draws; where there is none, a stand-in.

    One element of ten thousand may fall to the other side of a threshold: scores are rounded as the device rounds.
    """
    has_gpu = torch.cuda.is_available()
    with nullcontext("cuda") if has_gpu else stand_in_device() as device:
        for shapes in (contract.small, contract.large)[: 1 + has_gpu]:
            given = specimens(contract.count, shapes)
            for base in contract.with_base:
                there = contract.merge(given.to(device), base)
                yield from _different(there, contract.merge(given, base), 1e-5, f"{device}, {_said(base)}", 1e-4)
