"""The time of the matrix products and decompositions that a merge method cannot avoid, measured on this machine.

    python benchmarks/decompositions.py HIDDEN MLP LAYERS VOCABULARY MODELS

prints, as JSON, seconds on one BLAS thread for each method of the table below, over all matrices of a Llama of this shape,
which embeddings and head are to some methods.
A polar factor and singular vectors are counted by their cheapest sound route: the Gram matrix of the short side and its
eigenvectors in float64, and products in float32. The steps of Adam (doge, wudi_merging) are counted as the products of each
and one pass of PyTorch's fused Adam: an element's step depends on its own gradients so far, so none is to be had without
those before.
"""

from __future__ import annotations

import functools
import json
import sys
import time
from collections import Counter
from collections.abc import Callable

from cuvee.methods.registry import EMBEDDINGS, edits, methods

Work = Counter[tuple[str, int, int, int]]
"""How often each of ("gemm" | "gram" | "eigh" | "solve" | "rows" | "adam", its sizes) is called."""


def gemm(m: int, k: int, n: int, times: int = 1) -> Work:
    """(m, k) times (k, n) in float32."""
    return Counter({("gemm", m, k, n): times})


def vectors(m: int, n: int, rank: int, times: int = 1) -> Work:
    """The leading singular triplets of an (m, n) matrix."""
    short, long = min(m, n), max(m, n)
    return Counter(
        {("gram", short, long, short): times, ("eigh", short, 0, 0): times, ("gemm", long, short, rank): times}
    )


def polar(m: int, n: int) -> Work:
    """The nearest isometry of an (m, n) matrix."""
    short = min(m, n)
    return vectors(m, n, short) + gemm(short, short, short)


def _tsv_m(m: int, n: int, models: int) -> Work:
    rank = min(m, n) // models
    stacked = models * rank
    return vectors(m, n, rank, models) + polar(m, stacked) + polar(n, stacked) + gemm(m, stacked, n)


def _doge(m: int, n: int, models: int) -> Work:
    """Its subspace, and 400 steps: coefficients of each row and what they sum to, the projection of that, and Adam."""
    shared, steps = min(m, n) // 6, 400
    bases = vectors(m, n, min(m, n) // models, models) + vectors(m, min(m, n), shared)
    projections = gemm(shared, m, n, steps) + gemm(m, shared, n, steps)
    return bases + projections + Counter({("rows", m, models, n): steps, ("adam", m, 0, n): steps})


def _iso_cts(m: int, n: int, models: int) -> Work:
    short = min(m, n)
    bases = vectors(m, n, short, models + 1) + polar(m, short) + polar(n, short)
    return bases + gemm(short, m, n, models) + gemm(m, short, n, models + 1)


def _on_inputs(m: int, n: int, models: int) -> Work:
    """The Gram matrices over the inputs, T, one eigh and the filtered solution: WUDI and its kin."""
    return Counter({("gram", n, m, n): models, ("eigh", n, 0, 0): 1}) + gemm(m, n, n, models + 3)


def _adam_on_inputs(m: int, n: int, models: int) -> Work:
    """The Gram matrices over the inputs, T, and 300 steps: the gradient 2 (Θ C − T), and Adam."""
    made = Counter({("gram", n, m, n): models}) + gemm(m, n, n, models)
    return made + gemm(m, n, n, 300) + Counter({("adam", m, 0, n): 300})


def _output_filter(m: int, n: int, models: int) -> Work:
    """WUDI, and after it the Gram matrices over the outputs, one eigh, and the filtered product."""
    return _on_inputs(m, n, models) + Counter({("gram", m, n, m): models, ("eigh", m, 0, 0): 1}) + gemm(m, m, n, 2)


def _star(m: int, n: int, models: int) -> Work:
    """Of a random matrix a quarter of the directions or more hold 40 % of the nuclear norm."""
    rank = min(m, n) // 4
    return vectors(m, n, rank, models) + gemm(m, rank, n, models)


def _opcm(m: int, n: int, models: int) -> Work:
    return vectors(m, n, min(m, n), models - 1) + gemm(m, min(m, n), n, 4 * (models - 1))


def _ortho_merge(m: int, n: int, models: int) -> Work:
    rotations = vectors(n, n, n, models) + gemm(n, m, n, models) + gemm(m, n, n, models + 1)
    return rotations + Counter({("solve", n, 0, 0): models + 1})


WORK: dict[str, Callable[[int, int, int], Work]] = {
    "bayesian_model_merging": _on_inputs,
    "dc_merge": lambda m, n, k: _tsv_m(m, n, k) + gemm(min(m, n), max(m, n), min(m, n), k),
    "doge": _doge,
    "drm": lambda m, n, k: vectors(m, k * n, m) + gemm(m, m, n),
    "iso_c": lambda m, n, k: polar(m, n),
    "iso_cts": _iso_cts,
    "lore_merging": lambda m, n, k: vectors(m, n, min(m, n), 20 * k) + gemm(m, min(m, n), n, 20 * k),
    "low_rank": lambda m, n, k: vectors(m, n, min(m, n) // 4, k) + gemm(m, min(m, n) // 4, n, k),
    "mats": lambda m, n, k: gemm(m, n, n, 100 + k) + Counter({("gram", n, m, n): k}),
    "opcm": _opcm,
    "optmerge": lambda m, n, k: vectors(m, n, min(m, n) // k, k) + _on_inputs(m, n, k),
    "ortho_merge": _ortho_merge,
    "output_filter": _output_filter,
    "r_tsvm": _tsv_m,
    "reforge": _on_inputs,
    "singular_value_calibration": lambda m, n, k: vectors(m, n, min(m, n)) + gemm(m, min(m, n), n, k + 1),
    "star": _star,
    "stf": lambda m, n, k: vectors(m, n, min(m, n) // k, k) + gemm(m, min(m, n), n),
    "tsv_m": _tsv_m,
    "twin_svd": lambda m, n, k: vectors(m, n, min(m, n) // 10, k) + gemm(m, min(m, n) // 10, n, k),
    "wudi_merging": _on_inputs,
    "wudi_merging (adam)": _adam_on_inputs,
}
"""What each method and edit on matrices, and each variant of one, needs of an (m, n) matrix with K models."""


@functools.cache
def seconds(what: str, m: int, k: int, n: int) -> float:
    """Return the best of three runs of one operation on random numbers."""
    import torch

    generator = torch.Generator().manual_seed(0)
    if what == "gemm":
        left, right = torch.randn(m, k, generator=generator), torch.randn(k, n, generator=generator)
        return _best(lambda: left @ right)
    if what == "gram":
        both = torch.randn(m, k, generator=generator)
        return _best(lambda: both.double() @ both.double().T)
    if what == "rows":
        stack, row = torch.randn(m, k, n, generator=generator), torch.randn(m, 1, n, generator=generator)
        return _best(lambda: torch.bmm(torch.bmm(row, stack.mT), stack))
    if what == "adam":
        from torch.optim.adam import adam

        x, gradient, first, second = torch.randn(4, m, n, generator=generator).abs()
        settings = {"lr": 1e-4, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.0}
        state = [[x], [gradient], [first], [second], [], [torch.zeros(())]]
        return _best(lambda: adam(*state, fused=True, amsgrad=False, maximize=False, **settings))
    square = torch.randn(m, m, generator=generator, dtype=torch.float64)
    if what == "eigh":
        square = square @ square.T
        return _best(lambda: torch.linalg.eigh(square))
    return _best(lambda: torch.linalg.solve(square, square))


def _best(call: Callable[[], object]) -> float:
    found = []
    for _ in range(3):
        start = time.perf_counter()
        call()
        found.append(time.perf_counter() - start)
    return min(found)


def matrices(method: str, hidden: int, mlp: int, layers: int, vocabulary: int) -> Counter[tuple[int, int]]:
    """Return how many matrices of each shape there are to a method, in a Llama whose head is not tied."""
    piece = {**methods(), **edits()}[method.split()[0]]
    others = 0 if piece.parameters["not_matrix"].default == EMBEDDINGS else 2
    return Counter(
        {(hidden, hidden): 4 * layers, (mlp, hidden): 2 * layers, (hidden, mlp): layers, (vocabulary, hidden): others}
    )


def main() -> None:
    """Measure, with one thread, and print."""
    import torch

    torch.set_num_threads(1)
    *sizes, models = map(int, sys.argv[1:])
    floors = dict.fromkeys(WORK, 0.0)
    for method, work in WORK.items():
        for (m, n), count in (+matrices(method, *sizes)).items():
            floors[method] += count * sum(times * seconds(*call) for call, times in work(m, n, models).items())
    sys.stdout.write(json.dumps(floors) + "\n")


if __name__ == "__main__":
    main()
