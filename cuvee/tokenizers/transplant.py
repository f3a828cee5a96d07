"""Transplanting a tokenizer: rows for another model's vocabulary, from the rows that both models know.

A token that both know keeps the base's row. Any other is written as a combination of shared tokens in the donor's
space, and the same combination of the base's rows is its row: E'_t = Σ c_j E_j with d_t ≈ Σ c_j d_j.

Source: Training-Free Tokenizer Transplantation via Orthogonal Matching Pursuit, arXiv 2506.06607; mergekit's
tokensurgeon names the other ways.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from cuvee.checkpoints.gathered import NormalRows, ProjectedRows, RowMean, RowTable, read_rows
from cuvee.checkpoints.sources import TensorSource
from cuvee.errors import IncompatibleModels, ResourceError
from cuvee.tensors.lazy_torch import torch
from cuvee.tokenizers.library import load_tokenizer
from cuvee.tokenizers.pursuit import orthogonal_pursuit
from cuvee.tokenizers.reading import Tokenizer
from cuvee.tokenizers.shared_tokens import byte_letters, meanings

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    Integers: TypeAlias = NDArray[np.int64]
    Floats: TypeAlias = NDArray[np.float64]

__all__ = [
    "METHODS",
    "Approximation",
    "Patient",
    "SubwordMethod",
    "Way",
    "WeightScheme",
    "Where",
    "following_rows",
    "junk_rows",
    "nearest_weights",
    "transplanted_rows",
]

Way: TypeAlias = Literal[
    "omp", "common_interpolation", "subword", "mean", "zero", "randn", "john_hewitt", "landmark_pca"
]
METHODS: tuple[Way, ...] = (
    "omp", "common_interpolation", "subword", "mean", "zero", "randn", "john_hewitt", "landmark_pca",
)  # fmt: skip
WeightScheme: TypeAlias = Literal["distance_proportional", "barycentric", "least_squares"]
Where: TypeAlias = Literal["no", "yes", "embed_only", "lm_head_only"]
SubwordMethod: TypeAlias = Literal["mean", "sum", "weighted_mean", "first_last"]

_CHUNK = 4096


@dataclass(frozen=True)
class Approximation:
    """How the rows of tokens that the base lacks are made.

    Attributes:
        method: one of `METHODS`.
        k: shared tokens that a new one is made of (omp, common_interpolation).
        weight_scheme: of common_interpolation.
        cosine_similarity: common_interpolation looks for the nearest by cosine, not by distance.
        subword_method: how the rows of a token's pieces become one.
        batch_size: new tokens worked on at once.
        prefix_match: a token that the base lacks has the row of its longest beginning that the base knows: nowhere,
            everywhere, or in the embeddings or the heads only.
        byte_match: `<0x41>` of one tokenizer is the `A` of another: likewise.
        magikarp: rows of tokens that were hardly trained are zero, and no new token is made of them.
        noise: normal draws of this size are added to every new row.
        scale: new rows are multiplied by this, after that.
        seed: of all draws.
    """

    method: Way = "omp"
    k: int = 64
    weight_scheme: WeightScheme = "distance_proportional"
    cosine_similarity: bool = False
    subword_method: SubwordMethod = "mean"
    batch_size: int = 512
    prefix_match: Where = "no"
    byte_match: Where = "no"
    magikarp: bool = False
    noise: float = 0.0
    scale: float = 1.0
    seed: int = 0


@dataclass(frozen=True, eq=False)
class _Rows:
    """Entries of new rows, and the sources that they point to beyond the base's tensor (number 0)."""

    targets: Integers
    sources: Integers
    rows: Integers
    coefficients: Floats
    extra: tuple[TensorSource, ...] = ()


@dataclass(frozen=True, eq=False)
class Patient:
    """One tensor of the base that gets rows for the donor's vocabulary.

    Attributes:
        name: of the tensor.
        base, donor: its rows, and the donor's rows of the same kind.
        copied: (rows of the result,), the base's row of each id that both models know, else −1.
        real: ids of the base that have a token.
        new: ids of the result whose rows must be made.
        zero: ids of the result whose rows are zero.
        is_head: it is an output head.
        device: where coefficients are chosen (omp, common_interpolation).
    """

    name: str
    base: TensorSource
    donor: TensorSource
    copied: Integers
    real: Integers
    new: Integers
    zero: Integers
    is_head: bool
    device: str = "cpu"

    @property
    def atoms(self) -> Integers:
        """Ids that both models know, of which new tokens are made."""
        shared = np.flatnonzero(self.copied >= 0)
        return shared[shared < self.donor.shape[0]]


def transplanted_rows(
    patient: Patient,
    how: Approximation,
    tokenizers: tuple[Tokenizer, Tokenizer],
    progress: Callable[[int, int], None] | None = None,
) -> tuple[RowTable, tuple[TensorSource, ...]]:
    """Return the rows of one tensor in the donor's vocabulary: a table, and the sources that it means.

    Ids without a token have the mean of the base's rows.

    Args:
        tokenizers: of the base and of the donor.
        progress: told the new tokens done, of all.

    Raises:
        IncompatibleModels: the models share no token.
    """
    made = _WAYS[how.method](patient, how, tokenizers, progress or (lambda done, total: None))
    shared = np.flatnonzero(patient.copied >= 0)
    padding = np.setdiff1d(np.arange(len(patient.copied)), np.concatenate((shared, patient.new, patient.zero)))
    sources: list[TensorSource] = [patient.base, *made.extra]
    targets = [shared, made.targets, padding]
    numbers = [np.zeros(len(shared), np.int64), made.sources, np.full(len(padding), len(sources))]
    rows = [patient.copied[shared], made.rows, np.zeros(len(padding), np.int64)]
    coefficients = [np.ones(len(shared)), made.coefficients * how.scale, np.ones(len(padding))]
    sources.append(RowMean(patient.base, of=patient.real))
    if how.noise:
        sources.append(NormalRows(patient.base, name=f"noise {patient.name}", seed=how.seed, rows=len(patient.copied)))
        targets.append(patient.new)
        numbers.append(np.full(len(patient.new), len(sources) - 1))
        rows.append(patient.new)
        coefficients.append(np.full(len(patient.new), how.noise * how.scale))
    table = RowTable.of(len(patient.copied), *map(np.concatenate, (targets, numbers, rows, coefficients)))
    return table, tuple(sources)


def following_rows(patient: Patient, table: RowTable) -> tuple[RowTable, tuple[TensorSource, ...]]:
    """Return the entries of a head's bias: combined as the head's rows are; their mean where these are made otherwise."""
    count = len(table)
    targets = np.repeat(np.arange(count), np.diff(table.starts))
    own = table.sources == 0
    other = np.setdiff1d(np.arange(count), np.concatenate((targets[own], patient.zero)))
    return RowTable.of(
        count,
        np.concatenate((targets[own], other)),
        np.concatenate((np.zeros(int(own.sum()), np.int64), np.ones(len(other), np.int64))),
        np.concatenate((table.rows[own], np.zeros(len(other), np.int64))),
        np.concatenate((table.coefficients[own], np.ones(len(other)))),
    ), (patient.base, RowMean(patient.base, of=patient.real))


def _combined(
    patient: Patient,
    how: Approximation,
    progress: Callable[[int, int], None],
    choose: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
) -> _Rows:
    """Write each new token as a combination of shared ones, a batch at a time."""
    shared = patient.atoms
    if not len(shared):
        raise IncompatibleModels("the two tokenizers share no token", right="--approximation-method mean")
    atoms = read_rows(patient.donor, shared).to(patient.device)
    targets: list[Integers] = [np.zeros(0, np.int64)]
    rows: list[Integers] = [np.zeros(0, np.int64)]
    coefficients: list[Floats] = [np.zeros(0)]
    for begin in range(0, len(patient.new), how.batch_size):
        batch = patient.new[begin : begin + how.batch_size]
        indices, weights = (found.cpu() for found in choose(read_rows(patient.donor, batch).to(patient.device), atoms))
        used = weights.numpy() != 0
        targets.append(np.broadcast_to(batch[:, None], used.shape)[used])
        rows.append(patient.copied[shared[indices.numpy()]][used])
        coefficients.append(weights.numpy().astype(np.float64)[used])
        progress(begin + len(batch), len(patient.new))
    at = np.concatenate(targets)
    return _Rows(at, np.zeros(len(at), np.int64), np.concatenate(rows), np.concatenate(coefficients))


def _omp(patient: Patient, how: Approximation, _: Any, progress: Callable[[int, int], None]) -> _Rows:
    return _combined(patient, how, progress, lambda targets, atoms: orthogonal_pursuit(targets, atoms, how.k))


def _common_interpolation(patient: Patient, how: Approximation, _: Any, progress: Callable[[int, int], None]) -> _Rows:
    return _combined(patient, how, progress, lambda targets, atoms: nearest_weights(targets, atoms, how))


def nearest_weights(targets_BD: Tensor, atoms_SD: Tensor, how: Approximation) -> tuple[Tensor, Tensor]:
    """Return for each target its k nearest atoms (B, k) and their weights (B, k).

    Weights are 1/max(distance, 1e-6), normalised; with `cosine_similarity` the similarities, normalised; barycentric:
    least squares under the condition that they sum to 1; least_squares: free.
    """
    k = min(how.k, len(atoms_SD))
    if how.cosine_similarity:
        lengths = (targets_BD.norm(dim=1)[:, None] * atoms_SD.norm(dim=1)[None]).clamp_min(1e-6)
        distances_BS = 1 - targets_BD @ atoms_SD.T / lengths
    else:
        distances_BS = torch.cdist(targets_BD, atoms_SD)
    nearest_BK, indices_BK = distances_BS.topk(k, dim=1, largest=False)
    points_BKD = atoms_SD[indices_BK].double()
    targets = targets_BD.double()
    if how.weight_scheme == "least_squares":
        solved = torch.linalg.lstsq(
            points_BKD.transpose(1, 2), targets[:, :, None], driver=_driver(points_BKD)
        ).solution
        return indices_BK, solved[:, :, 0].float()
    if how.weight_scheme == "barycentric":
        # min ‖Pᵀw − t‖² with Σw = 1: the stationary point of the Lagrangian; gelsd where points coincide.
        count = len(targets)
        system = torch.ones(count, k + 1, k + 1, dtype=torch.float64, device=targets.device)
        system[:, :k, :k] = points_BKD @ points_BKD.transpose(1, 2)
        system[:, k, k] = 0.0
        right = torch.ones(count, k + 1, 1, dtype=torch.float64, device=targets.device)
        right[:, :k] = points_BKD @ targets[:, :, None]
        return indices_BK, torch.linalg.lstsq(system, right, driver=_driver(system)).solution[:, :k, 0].float()
    weights_BK = 1 - nearest_BK if how.cosine_similarity else 1 / nearest_BK.clamp_min(1e-6)
    return indices_BK, weights_BK / weights_BK.sum(1, keepdim=True).clamp_min(1e-6)


def _driver(matrix: Tensor) -> str:
    """Return LAPACK's driver for matrices without full rank; CUDA has only one, for those with it."""
    return "gels" if matrix.is_cuda else "gelsd"


def _mean(patient: Patient, how: Approximation, _: Any, __: Any) -> _Rows:
    return _each_one_row(patient, RowMean(patient.base, of=patient.real), np.zeros(len(patient.new), np.int64))


def _zero(patient: Patient, how: Approximation, _: Any, __: Any) -> _Rows:
    nothing = np.zeros(0, np.int64)
    return _Rows(nothing, nothing, nothing, np.zeros(0))


def _randn(patient: Patient, how: Approximation, _: Any, __: Any) -> _Rows:
    """Draw rows of the spread that the base's have around their mean."""
    _, covariance = _moments(patient)
    spread = float(covariance.diagonal().mean().clamp_min(0).sqrt())
    rows = NormalRows(
        patient.base, name=f"randn {patient.name}", seed=how.seed, rows=len(patient.copied), factor=spread
    )
    return _each_one_row(patient, rows, patient.new)


def _john_hewitt(patient: Patient, how: Approximation, _: Any, __: Any) -> _Rows:
    """Draw rows from the normal distribution with the mean and the covariance of the base's rows."""
    mean, covariance = _moments(patient)
    values, vectors = torch.linalg.eigh(covariance)
    factor = values.clamp_min(0).sqrt()[:, None] * vectors.T
    name = f"john_hewitt {patient.name}"
    rows = NormalRows(patient.base, name=name, seed=how.seed, rows=len(patient.copied), mean=mean, factor=factor)
    return _each_one_row(patient, rows, patient.new)


def _landmark_pca(patient: Patient, how: Approximation, _: Any, __: Any) -> _Rows:
    """Turn the donor's space into the base's by the rotation and scale that fit the shared tokens best (Procrustes)."""
    shared = patient.atoms
    if not len(shared):
        raise IncompatibleModels("the two tokenizers share no token", right="--approximation-method mean")
    theirs, ours = read_rows(patient.donor, shared).double(), read_rows(patient.base, patient.copied[shared]).double()
    from_mean, to_mean = theirs.mean(0), ours.mean(0)
    theirs, ours = theirs - from_mean, ours - to_mean
    left, values, right = torch.linalg.svd(theirs.T @ ours, full_matrices=False)
    turned = theirs @ (left @ right)
    scale = values.sum() / turned.square().sum().clamp_min(1e-300)
    rows = ProjectedRows(
        patient.donor,
        matrix=(left @ right * scale).float(),
        from_mean=from_mean.float(),
        to_mean=to_mean.float(),
    )
    return _each_one_row(patient, rows, patient.new)


def _subword(patient: Patient, how: Approximation, tokenizers: tuple[Tokenizer, Tokenizer], _: Any) -> _Rows:
    """Cut each new token by the base's tokenizer, and take the rows of its pieces.

    A weighted mean gives the last piece the largest weight in an embedding and the first in a head; first_last takes
    that one alone.
    """
    segment = _segmenter(tokenizers[0])
    texts = meanings(tokenizers[1]).texts
    targets: list[int] = []
    rows: list[int] = []
    coefficients: list[float] = []
    for number in patient.new:
        pieces = [one for one in segment(texts.get(int(number), b"")) if one < patient.base.shape[0]]
        for row, weight in zip(pieces, _piece_weights(len(pieces), how.subword_method, patient.is_head), strict=True):
            targets.append(int(number))
            rows.append(row)
            coefficients.append(weight)
    at = np.array(targets, np.int64)
    kept = np.array(coefficients) != 0
    return _Rows(
        at[kept], np.zeros(int(kept.sum()), np.int64), np.array(rows, np.int64)[kept], np.array(coefficients)[kept]
    )


def _piece_weights(count: int, method: SubwordMethod, is_head: bool) -> list[float]:
    if not count:
        return []
    if method == "sum":
        return [1.0] * count
    if method == "mean":
        return [1.0 / count] * count
    rising = [float(n) for n in range(1, count + 1)]
    weights = rising if method == "weighted_mean" else [0.0] * (count - 1) + [1.0]
    total = sum(weights)
    return [weight / total for weight in (reversed(weights) if is_head else weights)]


def _segmenter(base: Tokenizer) -> Callable[[bytes], Sequence[int]]:
    """Return the base's own segmentation of bytes, without its normaliser, which knows only whole texts."""
    if base.content is None:
        raise IncompatibleModels(
            f"{base.label!r} has no tokenizer.json, which cutting tokens into pieces needs",
            where=base.where,
            right="--approximation-method omp",
        )
    try:
        text = json.dumps(base.content)
        right = "fetch the file again, or --approximation-method omp"
        model = load_tokenizer(text, what="the tokenizer", where=base.where, right=right).model
    except ImportError:
        raise ResourceError(
            "cutting tokens into pieces needs the package tokenizers", right='pip install "cuvee[tokens]"'
        ) from None
    letters = byte_letters()

    def segment(text: bytes) -> list[int]:
        if not text:
            return []
        if base.alphabet == "bytes":
            spelt = "".join(letters[byte] for byte in text)
        else:
            try:
                spelt = text.decode("utf-8")
            except UnicodeDecodeError:
                codes = [base.vocabulary.get(f"<0x{byte:02X}>") for byte in text]
                return [code for code in codes if code is not None]
            spelt = spelt.strip() if base.kind == "WordPiece" else spelt.replace(" ", "▁")
        return [token.id for token in model.tokenize(spelt)] if spelt else []

    return segment


def _each_one_row(patient: Patient, source: TensorSource, rows: Integers) -> _Rows:
    count = len(patient.new)
    return _Rows(patient.new, np.ones(count, np.int64), rows.astype(np.int64), np.ones(count), (source,))


def junk_rows(source: TensorSource, real: Integers, unused: Integers) -> Integers:
    """Return the rows among `real` that look as if they were hardly trained.

    Their norm is below the 0.01 quantile, or their cosine to the mean of the `unused` rows is above the 99th
    percentile and above 0.5.

    Source: Fishing for Magikarp, arXiv 2405.05417, as mergekit's tokensurgeon applies it.
    """
    width = source.shape[1] if len(source.shape) > 1 else 1
    mean = torch.zeros(width, dtype=torch.float64)
    for begin in range(0, len(unused), _CHUNK):
        mean += read_rows(source, unused[begin : begin + _CHUNK]).double().sum(0)
    mean /= mean.norm().clamp_min(1e-300)
    norms, cosines = np.zeros(len(real)), np.zeros(len(real))
    for begin in range(0, len(real), _CHUNK):
        rows = read_rows(source, real[begin : begin + _CHUNK]).double()
        length = rows.norm(dim=1)
        norms[begin : begin + _CHUNK] = length.numpy()
        cosines[begin : begin + _CHUNK] = (rows @ mean / length.clamp_min(1e-300)).numpy()
    if not len(real):
        return real
    junk = norms < np.quantile(norms, 0.01)
    if len(unused):
        junk |= cosines > max(np.quantile(cosines, 0.99), 0.5)
    return real[junk]


def _moments(patient: Patient) -> tuple[Tensor, Tensor]:
    """Return mean (D,) and covariance (D, D) of the base's rows, in float64."""
    width = patient.base.shape[1] if len(patient.base.shape) > 1 else 1
    total = torch.zeros(width, dtype=torch.float64)
    products = torch.zeros(width, width, dtype=torch.float64)
    for begin in range(0, len(patient.real), _CHUNK):
        rows = read_rows(patient.base, patient.real[begin : begin + _CHUNK]).double()
        total += rows.sum(0)
        products += rows.T @ rows
    count = max(1, len(patient.real))
    mean = total / count
    return mean, products / count - mean[:, None] * mean[None]


_WAYS: dict[Way, Callable[[Patient, Approximation, Any, Any], _Rows]] = {
    "omp": _omp,
    "common_interpolation": _common_interpolation,
    "subword": _subword,
    "mean": _mean,
    "zero": _zero,
    "randn": _randn,
    "john_hewitt": _john_hewitt,
    "landmark_pca": _landmark_pca,
}
