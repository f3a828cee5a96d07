"""The matrix toolbox: every decomposition of a task vector or an input Gram matrix is made here, and nowhere else.

Singular vectors and polar factors come from an eigendecomposition of the Gram matrix of the shorter side in float64: as
exact as a float32 SVD down to singular values of 1e-6 of the largest, and two to three times as fast. Directions that
weak are noise of the storage dtype, and a polar factor would give them the standing of all others: they are cut off.

Random projections are many times as fast and find only what a gap sets apart: a task vector of low rank, such as a merged LoRA.
They are used where the gap is there, and nowhere else: cut where there is none, they gave tsv_m another model altogether.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

from blake3 import blake3

from cuvee.errors import MethodError
from cuvee.methods.calls import current, noted
from cuvee.methods.combination import spread
from cuvee.methods.registry import Workspace
from cuvee.tensors.lazy_torch import torch

if TYPE_CHECKING:
    import torch as torch_types
    from torch import Tensor

__all__ = [
    "Frame",
    "Spectrum",
    "cayley",
    "decomposition_bytes",
    "eigh",
    "gram",
    "gram_solve",
    "gram_spectrum",
    "holding",
    "inverse_cayley",
    "least_solution",
    "numerical_rank",
    "orthogonalized",
    "polar",
    "product",
    "projected_svd",
    "right_vectors",
    "second_moment",
    "spectral_norm",
    "strong_svd",
    "svd",
    "truncated",
    "with_singular_values",
]

_CHUNK = 1 << 22
_WEAKEST = 1e-6
_LOW_RANK = 1e-2
_MUCH = 8.0
_MUCH_LONGER = 100.0
"""A solution this much longer than what it is to reach has been made so by directions that hardly differ."""
_PANEL = 256
_SHORTEST = 512
"""Sides from which on it is worth a look whether a matrix has low rank."""
_LARGEST_SAMPLE = 320
_SPARE = 8
_GAP = 0.1
_MOST_PASSES = 8


class Spectrum(NamedTuple):
    """A thin singular value decomposition U diag(s) Vh: u (m, r), s (r,), falling, vh (r, n)."""

    u: Tensor
    s: Tensor
    vh: Tensor

    def cut(self, rank: int | None) -> Spectrum:
        """Return the part of the `rank` largest singular values; None: all."""
        return Spectrum(self.u[:, :rank], self.s[:rank], self.vh[:rank])

    @property
    def matrix(self) -> Tensor:
        """The matrix, (m, n)."""
        return (self.u * self.s) @ self.vh


class Frame(NamedTuple):
    """Vectors (m, q) made orthogonal to one another, of which some were repetitions of others.

    Attributes:
        vectors: (m, q).
        condition: the largest singular value of the given ones beside the smallest that is no repetition's; 0 of none.
        repetitions: how many singular values are too small to be of another direction.
    """

    vectors: Tensor
    condition: float
    repetitions: int


def svd(matrix: Tensor, rank: int | None = None) -> Spectrum:
    """Return the singular triplets of a matrix (m, n), at most `rank`, without those below 1e-6 of the largest.

    A zero matrix has none: u is (m, 0). Vectors and values have the matrix's dtype.
    """
    digest = _digest(matrix)
    low = None if rank is None else projected_svd(matrix, digest)
    return low.cut(rank) if low is not None and len(low.s) >= (rank or 0) else _whole_svd(matrix, rank, digest)


def strong_svd(matrix: Tensor, rank: int | None = None) -> Spectrum:
    """Return the singular triplets of a matrix (m, n), at most `rank`; of one of low rank those that it was made with.

    `numerical_rank` says how many these are.
    """
    digest = _digest(matrix)
    low = projected_svd(matrix, digest)
    if low is not None:
        return low.cut(rank)
    found = _whole_svd(matrix, rank, digest)
    return found.cut(numerical_rank(found.s, min(matrix.shape)))


def projected_svd(matrix: Tensor, digest: str | None = None) -> Spectrum | None:
    """Return the strong singular triplets of a matrix (m, n) of low rank that a gap sets apart, as exact as its dtype allows.

    None where there is no such gap, or where the matrix is so small that all its triplets are soon found. `digest` is that of
    the matrix, where it is known.
    """
    if min(matrix.shape) < _SHORTEST:
        return None

    def compute() -> tuple[Tensor, ...]:
        rank = _rank_of_sample(matrix)
        return () if rank is None else _by_projection(matrix, rank + _SPARE)

    found = _known("projected", matrix, compute, digest)
    return Spectrum(*found) if found else None


def _whole_svd(matrix: Tensor, rank: int | None, digest: str | None = None) -> Spectrum:
    """See `svd`."""

    def compute() -> tuple[Tensor, ...]:
        tall = matrix.shape[0] >= matrix.shape[1]
        values, vectors = _short_side(matrix)
        kept = _count_above(values, _WEAKEST, rank)
        s, v = values[:kept].sqrt(), vectors[:, :kept]
        u = product(matrix if tall else matrix.mT, v / s)
        s, v = s.to(matrix.dtype), v.to(matrix.dtype)
        return (u, s, v.mT) if tall else (v, s, u.mT)

    return Spectrum(*_known(f"svd {rank}", matrix, compute, digest))


def right_vectors(matrix: Tensor, rtol: float) -> Tensor:
    """Return the right singular vectors of a matrix (m, n) with singular values above rtol · the largest, as columns (n, r)."""

    def compute() -> tuple[Tensor, ...]:
        values, vectors = _short_side(matrix)
        count = _count_above(values, max(rtol, _WEAKEST))
        if matrix.shape[0] >= matrix.shape[1]:
            return (vectors[:, :count],)
        return (product(matrix.mT, vectors[:, :count] / values[:count].sqrt(), torch.float64),)

    return _known(f"right {rtol}", matrix, compute)[0]


def with_singular_values(
    matrix: Tensor, change: Callable[[Tensor], Tensor], *, keep: bool = True, strong: bool = False
) -> Tensor:
    """Return U diag(f(s)) Vh of a matrix (m, n), in its dtype: the same directions with other singular values.

    Args:
        change: f, given the singular values above 1e-6 of the largest, (r,), falling, float64; the others become 0.
        keep: whether the decomposition may be wanted again.
        strong: f may be given the values of a matrix of low rank that a gap sets apart, without what is weaker.
    """
    digest = _digest(matrix) if keep else None
    low = projected_svd(matrix, digest) if strong else None
    if low is not None:
        return (low.u * change(low.s.double()).to(matrix.dtype)) @ low.vh
    tall = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.mT
    found = _known("short side", matrix, lambda: _short_side(matrix), digest) if keep else _short_side(matrix)
    values, vectors = found
    s = values[: _count_above(values, _WEAKEST)].sqrt()
    gain = change(s) / s
    used = gain != 0
    v, gain = (vectors[:, : len(s)], gain) if bool(used.all()) else (vectors[:, : len(s)][:, used], gain[used])
    # what is not made much larger keeps the precision of its dtype in products of that dtype
    wide = torch.float64 if bool((gain.abs() > _MUCH).any()) else matrix.dtype
    if 2 * len(gain) < len(v):
        out = product(product(tall, v.to(wide)), (v * gain).mT.to(wide))
    else:
        out = product(tall, ((v * gain) @ v.mT).to(wide))
    return out if tall is matrix else out.mT


def spectral_norm(matrix: Tensor) -> float:
    """Return the largest singular value of a matrix (m, n)."""
    side: Literal["columns", "rows"] = "columns" if matrix.shape[0] >= matrix.shape[1] else "rows"
    with _converging(matrix):
        return float(torch.linalg.eigvalsh(gram(matrix, side))[-1].clamp(min=0)) ** 0.5


def polar(matrix: Tensor, rtol: float = 1e-4, rank: int | None = None) -> Tensor:
    """Return U Vh of the SVD of a matrix (m, n): the nearest partial isometry, of at most that rank.

    Directions with singular values ≤ rtol · the largest are left out.
    """
    return _polar(matrix, rtol, rank)[0]


def _polar(matrix: Tensor, rtol: float, rank: int | None = None) -> tuple[Tensor, ...]:
    """Return the polar factor, and all squared singular values, falling, float64."""

    def compute() -> tuple[Tensor, ...]:
        values, vectors = _short_side(matrix)
        kept = _count_above(values, rtol, rank)
        root = (vectors[:, :kept] * values[:kept].rsqrt()) @ vectors[:, :kept].mT
        tall = matrix.shape[0] >= matrix.shape[1]
        return (product(matrix, root) if tall else product(matrix.mT, root).mT).contiguous(), values

    return _known(f"polar {rtol} {rank}", matrix, compute)


def orthogonalized(parts: Sequence[Tensor], rtol: float = 1e-4) -> Frame:
    """Return the polar factor of matrices (m, r_i) laid side by side, (m, Σ r_i): symmetric orthogonalisation."""
    stack = torch.cat(list(parts), 1)
    vectors, values = _polar(stack, rtol)
    kept = _count_above(values, rtol)
    condition = float(values[0] / values[kept - 1]) ** 0.5 if kept else 0.0
    return Frame(vectors, condition, stack.shape[1] - kept)


def eigh(symmetric: Tensor) -> tuple[Tensor, Tensor]:
    """Return (values, vectors) of a symmetric matrix (n, n), the largest first, float64; vectors are columns."""

    values, vectors = _known("eigh", symmetric, lambda: _decomposed(symmetric.double()))
    return values, vectors


def gram(matrix: Tensor, side: Literal["columns", "rows"] = "columns") -> Tensor:
    """Return AᵀA, (n, n), or AAᵀ, (m, m), in float64, made of chunks of rows so that A is never held in float64.

    Only what is on and above the diagonal is multiplied, in panels.
    """
    tall = matrix if side == "columns" else matrix.mT
    n = tall.shape[1]
    rows = max(1, _CHUNK // max(1, n))
    total = tall.new_zeros((n, n), dtype=torch.float64)
    for start in range(0, tall.shape[0], rows):
        chunk = tall[start : start + rows].double()
        for begin in range(0, n, _PANEL):
            total[begin : begin + _PANEL, begin:].addmm_(chunk[:, begin : begin + _PANEL].mT, chunk[:, begin:])
    for begin in range(0, n, _PANEL):
        end = begin + _PANEL
        total[end:, begin:end] = total[begin:end, end:].mT
    return total


def second_moment(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return AᵀA, (n, n), and A AᵀA, (m, n), float64, the second through the Gram matrix of the shorter side."""
    columns = gram(matrix)
    if matrix.shape[0] >= matrix.shape[1]:
        return columns, product(matrix, columns, torch.float64)
    return columns, product(matrix.mT, gram(matrix, "rows"), torch.float64).mT


def gram_spectrum(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return (values, vectors) of RᵀR without making it, for few long rows (p, n): at most p, falling, vectors (n, ≤ p)."""
    found = svd(rows.double())
    return found.s.square(), found.vh.mT


def gram_solve(
    spectrum: tuple[Tensor, Tensor],
    t: Tensor,
    anchor: Tensor,
    response: Callable[[Tensor], Tensor],
    floor: float = 1e-8,
) -> Tensor:
    """Solve Θ C = T with a spectral filter: Θ = A − A Q diag(f) Qᵀ + T Q diag(f/λ) Qᵀ, where C = Q diag(λ) Qᵀ.

    Args:
        spectrum: (λ, Q) of C, (q,) and (n, q), as `eigh` and `gram_spectrum` give them; eigenvalues that are not there are 0.
        t: (m, n).
        anchor: (m, n), what stays where the filter is 0.
        response: from all n eigenvalues, falling, to the filter f, each in [0, 1].
        floor: directions of eigenvalues up to this keep the anchor; the filter sees this in their place.

    Returns:
        (m, n) in the anchor's dtype. f = 1 solves exactly, λ/(λ + a) is a ridge around the anchor, 1 − exp(−λt) gradient flow
        from it, 1 − (1 − ηλ)^s are s steps of gradient descent.
    """
    values, q = spectrum
    unseen = values.new_full((len(q) - len(values),), floor)
    f = response(torch.cat([values.clamp(min=floor), unseen]))[: len(values)] * (values > floor)
    seen = int((f > 0).sum())  # those at the end have no part in the products
    noted(directions_solved=seen)
    values, q, f = values[:seen], q[:, :seen], f[:seen]
    # Θ = A + (T Q diag(1/λ) − A Q) diag(f) Qᵀ
    along = product(t, q, torch.float64).div_(values).sub_(product(anchor, q, torch.float64))
    return anchor + product(along, (q * f).mT, anchor.dtype)


def least_solution(symmetric: Tensor, target: Tensor, rtol: float = 1e-6) -> tuple[Tensor, int]:
    """Return the least x, (n,), float64, that comes nearest to A x = b, of a positive semidefinite A (n, n) and b (n,).

    Directions with eigenvalues up to rtol · their mean count as repetitions of others; how many there are comes second.
    """
    a, b = symmetric.double(), target.double()
    if not len(b):
        return b, 0
    factor, failed = torch.linalg.cholesky_ex(a)
    if not int(failed) and float(factor.diagonal().min()) ** 2 > rtol * float(a.diagonal().mean()):
        x = torch.cholesky_solve(b[:, None], factor)[:, 0]
        if float(x.norm()) <= _MUCH_LONGER * float(b.norm()):
            return x, 0
    values, q = eigh(a)
    kept = int((values > rtol * values.mean()).sum())
    q = q[:, :kept]
    return q @ ((q.mT @ b) / values[:kept]), len(b) - kept


def numerical_rank(s: Tensor, side: int) -> int:
    """Return the rank that a matrix was made with, min(m, n) where it is full.

    It is low where at most half of the directions have singular values over 1 % of the largest: a task vector of rank 16
    that was stored in bfloat16 has a seventeenth of 0.002, and noise from there on.

    Args:
        s: the leading singular values, falling.
        side: min(m, n).
    """
    strong = int((s > _LOW_RANK * s[0]).sum()) if len(s) else 0
    return strong if strong <= side // 2 else side


def truncated(matrix: Tensor, rank: int) -> Tensor:
    """Return the best approximation of a matrix (m, n) of that rank."""
    return svd(matrix, rank).matrix


def cayley(skew: Tensor) -> Tensor:
    """Return the rotation (I − A)⁻¹(I + A) of a skew-symmetric matrix A, (n, n)."""
    one = torch.eye(len(skew), dtype=skew.dtype, device=skew.device)
    with _converging(skew):
        return torch.linalg.solve(one - skew, one + skew)


def inverse_cayley(rotation: Tensor) -> Tensor:
    """Return the skew-symmetric (R + I)⁻¹(R − I) of a rotation R, (n, n); with an eigenvalue of −1 it is huge or not finite."""
    one = torch.eye(len(rotation), dtype=rotation.dtype, device=rotation.device)
    skew = torch.linalg.solve_ex(rotation + one, rotation - one).result
    return (skew - skew.mT) / 2


def decomposition_bytes(side: int) -> int:
    """Return the bytes that a decomposition over a short side (or an input Gram) of that length holds at its peak."""
    return 8 * 6 * side * side + 3 * 8 * _CHUNK


def holding(*, matrices: int, factors: int = 0, cores: int = 0) -> Workspace:
    """Return the workspace of a method that holds so much at once beside one decomposition of the shorter side.

    Args:
        matrices: (m, n), in the compute dtype: base, task vector, result and what else there is.
        factors: sets of left and right vectors, (m, q) and (q, n): q = min(m, n) directions, or more where `rank` asks each
            model for so many.
        cores: (q, q).
    """

    def workspace(rows: int, columns: int, models: int, arguments: Mapping[str, Any]) -> int:
        side = min(rows, columns)
        asked = [rank for rank in spread(arguments.get("rank"), models) if isinstance(rank, int)]
        directions = max(side, sum(min(rank, side) for rank in asked))
        held = matrices * rows * columns + factors * directions * (rows + columns) + cores * directions**2
        return 4 * held + decomposition_bytes(directions)

    return workspace


def _rank_of_sample(matrix: Tensor) -> int | None:
    """Return the rank of rows and columns taken evenly from a matrix, which that of all is; None where it is not low."""
    side = min(min(matrix.shape) // 4, _LARGEST_SAMPLE)
    rows, columns = (torch.linspace(0, size - 1, side, device=matrix.device).long() for size in matrix.shape)
    sample = gram(matrix[rows][:, columns])
    with _converging(sample):
        strong = _count_above(torch.linalg.eigvalsh(sample).flip(0), _LOW_RANK)
    return strong if strong <= side // 2 else None


def _by_projection(matrix: Tensor, width: int) -> tuple[Tensor, ...]:
    """Return the strong singular triplets by subspace iteration over so many vectors; nothing where no gap sets them apart.

    What is left of an error falls by the square of (the weakest that is iterated / the weakest that is wanted) in each pass.
    """
    enough = 10 * torch.finfo(matrix.dtype).eps
    random = torch.randn(matrix.shape[1], width, generator=torch.Generator().manual_seed(0), dtype=matrix.dtype)
    q = torch.linalg.qr(matrix @ random.to(matrix.device)).Q
    for half_passes in range(1, 2 * _MOST_PASSES, 2):
        z = matrix.mT @ q
        values, w = _decomposed(gram(z))
        strong = _count_above(values, _LOW_RANK)
        if not 0 < strong <= width - _SPARE or float(values[strong]) > _GAP**2 * float(values[strong - 1]):
            return ()
        if (float(values[-1].clamp(min=0) / values[strong - 1]) ** 0.5) ** half_passes <= enough:
            s, w = values[:strong].sqrt(), w[:, :strong]
            u, v = product(q, w), product(z, w / s)
            return u, s.to(matrix.dtype), v.mT
        q = torch.linalg.qr(matrix @ torch.linalg.qr(z).Q).Q
    return ()


def _short_side(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return squared singular values, falling, and singular vectors of the shorter side as columns, float64."""
    return _decomposed(gram(matrix, "columns" if matrix.shape[0] >= matrix.shape[1] else "rows"))


def _decomposed(symmetric: Tensor) -> tuple[Tensor, Tensor]:
    """Return eigenvalues, falling, and eigenvectors as columns."""
    with _converging(symmetric):
        values, vectors = torch.linalg.eigh(symmetric)
    return values.flip(0), vectors.flip(1)


@contextmanager
def _converging(matrix: Tensor) -> Iterator[None]:
    """Say in words that LAPACK gives up."""
    try:
        yield
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        raise MethodError(
            f"the decomposition of a matrix of side {len(matrix)} does not converge",
            right='values of a sane size, or not_matrix: ["…"] with the name of this tensor',
        ) from None


def _count_above(squares: Tensor, rtol: float, most: int | None = None) -> int:
    """Return how many squared singular values, falling, are above (rtol · largest)²: at most `most`."""
    count = int(((squares > squares[:1] * rtol**2) & (squares > 0)).sum())
    return count if most is None else min(count, most)


def product(matrix: Tensor, factor: Tensor, dtype: torch_types.dtype | None = None) -> Tensor:
    """Return matrix @ factor, (m, r), multiplied in the factor's dtype by chunks of rows; in the matrix's dtype, or another."""
    if matrix.dtype == factor.dtype and dtype in (None, matrix.dtype):
        return matrix @ factor
    rows = max(1, _CHUNK // max(1, matrix.shape[1]))
    out = matrix.new_empty((matrix.shape[0], factor.shape[1]), dtype=dtype or matrix.dtype)
    for start in range(0, matrix.shape[0], rows):
        out[start : start + rows] = matrix[start : start + rows].to(factor.dtype) @ factor
    return out


def _known(
    how: str, matrix: Tensor, compute: Callable[[], tuple[Tensor, ...]], digest: str | None = None
) -> tuple[Tensor, ...]:
    """Return `compute()`, or what an equal matrix gave before; `digest` is that of the matrix, where it is known."""
    known = current().decompositions
    if known is None:
        return compute()
    key = blake3(f"{how} {digest or _digest(matrix)} {_made_by()}".encode()).hexdigest()
    found = known.get(key)
    if found is None:
        found = tuple(one.contiguous() for one in compute())
        known.put(key, found)
    return tuple(one.to(matrix.device) for one in found)


def _digest(matrix: Tensor) -> str | None:
    """Return the digest of a matrix by which decompositions are known; None where none are kept."""
    if current().decompositions is None:
        return None
    content = blake3(matrix.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return f"{tuple(matrix.shape)} {matrix.dtype} {content.hexdigest()}"


@functools.cache
def _made_by() -> str:
    """Return the digest of this source, and PyTorch's version: others may decompose otherwise."""
    source = cast(Any, __spec__).loader.get_data(__file__)
    return f"{blake3(source).hexdigest()} {torch.__version__}"
