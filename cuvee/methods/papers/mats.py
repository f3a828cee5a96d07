"""MaTS: match models in their task subspaces, by conjugate gradients on what the inputs of all of them ask for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from cuvee.errors import MethodError
from cuvee.methods.calls import current, noted
from cuvee.methods.combination import Matrices
from cuvee.methods.needs import collect_command
from cuvee.methods.pieces.combine import mean
from cuvee.methods.pieces.descent import conjugate_gradient
from cuvee.methods.pieces.metrics import Metric, of_gram, of_rows, sum_of
from cuvee.methods.pieces.regression import FLOOR, GramSource, given_gram, given_matrices, has_moved, uses_data
from cuvee.methods.registry import MATRIX, OPTIONAL, WEIGHTS, Bound, Paper, merge_method
from cuvee.methods.spectral import decomposition_bytes, gram_solve
from cuvee.tensors.lazy_torch import torch

if TYPE_CHECKING:
    from torch import Tensor

Objective = Literal["regmean", "block_fisher", "diag_fisher"]
Start = Literal["average", "task_arithmetic", "pretrained", "zero"]


def mats_bytes(rows: int, columns: int, models: int, _: Mapping[str, Any]) -> int:
    """Return the bytes that it holds: base, a model, result, the iteration and right side in float64, metrics of all models."""
    side = min(rows, columns)
    metrics = 8 * models * (rows * columns + side * side)
    return (4 * 3 + 8 * 8) * rows * columns + metrics + decomposition_bytes(min(columns, models * rows))


class Asked(NamedTuple):
    """Σ O_i Θ G_i = T: the metrics of the models' inputs and of the gradients of their outputs, where these count.

    Attributes:
        inputs: G_i of each model, or their sum alone.
        outputs: O_i of each model, on the columns of Θᵀ; none: they are 1.
        t: (m, n), float64.
        total: Σ θ_i, (m, n).
    """

    inputs: list[Metric]
    outputs: list[Metric]
    t: Tensor
    total: Tensor

    def operator(self, x: Tensor) -> Tensor:
        """Return Σ O_i X G_i."""
        found = _answer(x, self.inputs[0], self.outputs[:1])
        for k in range(1, len(self.inputs)):
            found += _answer(x, self.inputs[k], self.outputs[k : k + 1])
        return found


@merge_method(
    paper=Paper("Merging by Matching Models in Task Parameter Subspaces", arxiv="2312.04339", year=2023),
    on=WEIGHTS,
    base=OPTIONAL,
    unit=MATRIX,
    others=None,
    workspace=mats_bytes,
    uses=("gram", "outgram", "fisher"),
    cost="iterations of 2 m n²; block_fisher: of K (2 m n² + 2 m² n); converged: 1 eigendecomposition",
    formula="Σ G_i Θᵀ = Σ G_i θ_iᵀ  (block_fisher: Σ O_i Θ G_i = Σ O_i θ_i G_i), by conjugate gradients from init;  out = Θ",
    differs="The paper needs the Gram matrices of inputs, and for block_fisher of the gradients of outputs too. Without any "
    "(gram: task_vector) those of the task vectors stand in for them, τ_iᵀτ_i and τ_i τ_iᵀ over ‖τ_i‖², which is ours; without "
    "a base those of the weights. The official code begins at the pretrained weights untransposed (init: pretrained is right "
    "here), and at zero where nothing is said. What has no Gram matrix is averaged, as there. Its outer "
    "products of vectors (IA3) are not here.",
)
def mats(
    values: Matrices,
    *,
    base: Tensor | None = None,
    objective: Objective = "regmean",
    gram: GramSource = "auto",
    offdiag: Annotated[float, Bound(0, 1)] = 1.0,
    iterations: Annotated[int, Bound(0)] | Literal["converged"] = 100,
    init: Start = "average",
    init_scale: float = 0.3,
    rtol: Annotated[float, Bound(0)] = 1e-5,
) -> Tensor:
    """Solve for the weights that answer each model's inputs as that model does, stopping early on the way from a start.

    Args:
        values: (K, m, n): weights, or task vectors with a base.
        objective: regmean, by inputs alone; block_fisher, by inputs and outputs; diag_fisher, element by element, by the
            statistics fisher/model0/<tensor> (≥ 0): the average weighted by them.
        gram: data: the statistics gram/model0/<module> (and outgram/… for block_fisher) and so on; task_vector: without
            data; auto: data where there is any.
        offdiag: what elements off the diagonal of these matrices are multiplied by.
        iterations: of conjugate gradients, over all elements of a matrix at once; few keep it near the start. converged:
            the exact solution of regmean, which stays at the start where no input reaches.
        init: the start: the average; init_scale times the summed task vectors; the base; or, with data, zero weights.
        init_scale: of init: task_arithmetic, what the sum of the task vectors is multiplied by.
        rtol: it stops where the residual is this small beside the right side.

    Returns:
        (m, n). What is no matrix, or has no Gram matrix where others have, is averaged.

    Raises:
        MethodError: init needs a base, or data; some models lack a Gram matrix, or one does not fit; converged with
            block_fisher, or with offdiag and no data.
    """
    if not isinstance(values, Matrices):
        return mean(values)
    if base is None and init in ("task_arithmetic", "pretrained"):
        raise MethodError(f"init: {init} without a base model", right="a base_model, or init: average")
    data = objective == "diag_fisher" or uses_data(gram)
    if init == "zero" and not data:
        right = "init: average, or Gram matrices of data"
        raise MethodError("init: zero leaves nothing of a weight where no task vector reaches", right=right)
    if objective == "diag_fisher":
        return _by_diagonals(values, base, init, init_scale, iterations, rtol)
    asked = _asked(values, objective, offdiag, data=data)
    if asked is None:
        noted(fallback="the mean: no Gram matrices of it")
        return mean(values)
    start = _start(init, init_scale, asked.total, len(values), base)
    if iterations == "converged":
        if asked.outputs or (offdiag < 1 and not data):
            what = "block_fisher" if asked.outputs else "offdiag of task vectors"
            raise MethodError(f"{what} has no exact solution", right="iterations: 1000, for example")
        values_of_c, basis = asked.inputs[0].spectrum
        floor = FLOOR * float(values_of_c.sum()) / len(values)
        return gram_solve((values_of_c, basis), asked.t, start, torch.ones_like, max(floor, 1e-300))
    whole = asked.t if base is None else asked.t + asked.operator(base.double())  # the right side for weights
    enough = rtol * float(torch.linalg.vector_norm(whole))
    found = conjugate_gradient(asked.operator, asked.t, start.double(), iterations, enough)
    return found.to(start.dtype)


def _by_diagonals(
    values: Matrices,
    base: Tensor | None,
    init: Start,
    init_scale: float,
    iterations: int | Literal["converged"],
    rtol: float,
) -> Tensor:
    """Solve Σ F_i ⊙ Θ = Σ F_i ⊙ θ_i from a start; where no F_i says anything, stay there."""
    fishers = given_matrices("fisher", len(values), values.shape[1:])
    if fishers is None:
        if not any(key.startswith("fisher/") for key in current().statistics):
            raise MethodError(
                "objective: diag_fisher needs diagonal Fishers, and no model has any", right=collect_command("fisher")
            )
        noted(fallback="the mean: no diagonal Fisher information of it")
        return mean(values)
    weight, t, total = None, None, None
    for k in range(len(values)):
        value = values[k]
        fisher = fishers[k].to(value.device, torch.float64)
        if bool((fisher < 0).any()):
            raise MethodError("a diagonal Fisher below zero", where=f"model {k}", right="squares of gradients")
        weight = fisher.clone() if weight is None else weight.add_(fisher)
        t = fisher * value if t is None else t.addcmul_(fisher, value.double())
        total = value.clone() if total is None else total.add_(value)
    assert weight is not None and t is not None and total is not None, "there is at least one model"
    start = _start(init, init_scale, total, len(values), base).double()
    if iterations == "converged":
        return torch.where(weight > 0, t / weight.clamp(min=torch.finfo(weight.dtype).tiny), start).to(total.dtype)
    whole = t if base is None else t + weight * base
    enough = rtol * float(torch.linalg.vector_norm(whole))
    return conjugate_gradient(lambda x: weight * x, t, start, iterations, enough).to(total.dtype)


def _answer(x: Tensor, inputs: Metric, outputs: list[Metric]) -> Tensor:
    """Return O X G, or X G."""
    found = inputs.times(x)
    return outputs[0].times(found.mT).mT if outputs else found


def _start(init: Start, init_scale: float, total: Tensor, count: int, base: Tensor | None) -> Tensor:
    """Return where the solution starts, less the base where there is one."""
    if init == "average":
        return total / count
    if init == "task_arithmetic":
        return total * init_scale
    if init == "zero" and base is not None:
        return -base
    return torch.zeros_like(total)


def _asked(values: Matrices, objective: Objective, offdiag: float, *, data: bool) -> Asked | None:
    """Return what the models ask for; None where a tensor has no Gram matrices."""
    count, m, n = values.shape
    given: Any = given_gram("gram", count, n) if data else None
    given_out: Any = None
    if data and given is None:
        return None
    if data and objective == "block_fisher":
        given_out = given_gram("outgram", count, m)
        if given_out is None:
            right = f"{collect_command('outgram')}; or objective: regmean"
            raise MethodError("no outgram of this tensor", right=right)
    inputs: list[Metric] = []
    outputs: list[Metric] = []
    t, total = None, None
    for k in range(count):
        value = values[k]
        wide = value.double()
        rows = None if data else _unit(wide)
        own = of_gram(given[k].to(value.device), offdiag) if rows is None else of_rows(rows, offdiag)
        out = []
        if objective == "block_fisher":
            out = [of_gram(given_out[k].to(value.device), offdiag) if rows is None else of_rows(rows.mT, offdiag)]
        term = _answer(wide, own, out)
        t = term if t is None else t.add_(term)
        total = value.clone() if total is None else total.add_(value)
        inputs.append(own)
        outputs += out
        if not out and not own.is_rows:
            inputs = [sum_of(inputs)]
    assert t is not None and total is not None, "there is at least one model"
    return Asked(inputs if outputs else [sum_of(inputs)], outputs, t, total)


def _unit(value: Tensor) -> Tensor:
    """Return a matrix over its norm; zeros where it has none."""
    norm = float(torch.linalg.vector_norm(value))
    return value / norm if has_moved(norm**2, value.numel()) else torch.zeros_like(value)
