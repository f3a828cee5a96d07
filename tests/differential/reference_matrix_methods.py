"""Methods on matrices as their papers write them, in NumPy and float64: whole decompositions, and nothing shared with ours.

Each takes the base (m, n), the task vectors, K of (m, n), and gives the merged task vector.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

Array = np.ndarray
Arrays = Sequence[Array]
WEAKEST, LOW = 1e-6, 1e-2


def svd(matrix: Array, rank: int | None = None, rtol: float = WEAKEST) -> tuple[Array, Array, Array]:
    u, s, vh = np.linalg.svd(matrix, full_matrices=False)
    kept = int((s > rtol * s[0]).sum())
    kept = kept if rank is None else min(kept, rank)
    return u[:, :kept], s[:kept], vh[:kept]


def polar(matrix: Array, rtol: float = 1e-4) -> Array:
    u, _, vh = svd(matrix, rtol=rtol)
    return u @ vh


def rank_made_with(s: Array, side: int) -> int:
    strong = int((s > LOW * s[0]).sum()) if len(s) else 0
    return strong if strong <= side // 2 else side


def leading(delta: Array, count: int, rank: int | str) -> tuple[Array, Array, Array]:
    u, s, vh = svd(delta)
    side = min(delta.shape)
    kept = rank if isinstance(rank, int) else side // count
    if rank == "auto" and count > 1:
        kept = min(kept, rank_made_with(s, side))
    return u[:, :kept], s[:kept], vh[:kept]


def beside(parts: Sequence[tuple[Array, Array, Array]]) -> tuple[Array, Array, Array]:
    u, s, vh = zip(*parts, strict=True)
    return np.concatenate(u, 1), np.concatenate(s), np.concatenate(vh)


def tsv_m(base: Array, deltas: Arrays, *, rank: int | str = "auto") -> Array:
    u, s, vh = beside([leading(delta, len(deltas), rank) for delta in deltas])
    return polar(u) * s @ polar(vh)


def iso_c(base: Array, deltas: Arrays, *, rank: str = "auto") -> Array:
    u, s, vh = svd(sum(deltas))
    slots = rank_made_with(s, min(base.shape)) if rank == "auto" else min(base.shape)
    return s[:slots].sum() / slots * u[:, :slots] @ vh[:slots]


def iso_cts(base: Array, deltas: Arrays, *, common_fraction: float = 0.8) -> Array:
    count = len(deltas)
    u, s, vh = svd(sum(deltas))
    slots = rank_made_with(s, min(base.shape))
    own = min(round((slots - int(slots * common_fraction)) / count), slots // count)
    common = slots - own * count
    u, s, vh = u[:, :common], s[:common], vh[:common]
    parts = [svd(delta - u @ u.T @ delta, own, rtol=1e-6) for delta in deltas]
    us, ss, vhs = beside([*parts, (u, s, vh)])
    return ss.sum() / slots * polar(us) @ polar(vhs)


def star(base: Array, deltas: Arrays, *, eta: float = 40.0) -> Array:
    merged = np.zeros_like(base)
    for u, s, vh in map(svd, deltas):
        rank = 1 + int((s.cumsum()[:-1] < eta / 100 * s.sum()).sum())
        merged += (u[:, :rank] * s[:rank] @ vh[:rank]) * (s.sum() / s[:rank].sum()) / len(deltas)
    return merged


def drm(
    base: Array, deltas: Arrays, *, direction: str = "horizontal", drop: float = 0.8, disjoint: bool = True
) -> Array:
    if direction == "vertical":
        return drm(base.T, [delta.T for delta in deltas], drop=drop, disjoint=disjoint).T
    u, s, vh = svd(np.concatenate(deltas, 1), rtol=1e-2)
    blocks = np.stack(np.split(vh, len(deltas), 1))
    lengths = np.linalg.norm(blocks, axis=2, keepdims=True)
    unit = blocks / lengths
    sizes = np.sort(np.abs(unit), axis=None)
    least = sizes[max(0, sizes.size - round(sizes.size * (1 - drop)) - 1)]
    found = s[:, None] * lengths * unit * (np.abs(unit) >= least)
    found *= np.sign(found) == np.where(found.sum(0) >= 0, 1, -1)
    merged = found.sum(0) / (np.maximum(1, (found != 0).sum(0)) if disjoint else len(deltas))
    return u @ merged


def dc_merge(
    base: Array, deltas: Arrays, *, rank: int | str = "auto", smoothing: str | None = None, keep: float = 1e-3
) -> Array:
    def smooth(s: Array) -> Array:
        top = min(5.0, s[0] / s[-1]) if smoothing == "linear" else 1.0
        shape = np.linspace(top, 1, len(s)) if smoothing else s
        return shape * (s.sum() / shape.sum())

    parts = [leading(delta, len(deltas), rank) for delta in deltas]
    us, _, vhs = beside(parts)
    cu, cv = polar(us), polar(vhs)
    sizes = [len(s) for _, s, _ in parts]
    side = min(base.shape)
    padded = rank == "auto" and set(sizes) == {side // len(deltas)}
    kept = max(1, int(keep * (side if padded else sum(sizes)) ** 2))
    cores = np.stack([cu.T @ (u * smooth(s) @ vh) @ cv.T for u, s, vh in parts])
    least = np.sort(np.abs(cores).reshape(len(deltas), -1), 1)[:, -min(kept, cores[0].size)]
    cores *= np.abs(cores) >= least[:, None, None] * (1 - 1e-9)
    agrees = cores * np.sign(cores.sum(0)) > 0
    merged = (cores * agrees).sum(0) / np.maximum(1, agrees.sum(0))
    owner = np.repeat(np.arange(len(deltas)), sizes)
    return cu @ (merged * (owner[:, None] == owner)) @ cv


def moments(deltas: Arrays) -> tuple[Array, Array]:
    grams = [delta.T @ delta / (delta**2).sum() for delta in deltas]
    return sum(grams), sum(delta @ g for delta, g in zip(deltas, grams, strict=True))


def filtered(c: Array, t: Array, anchor: Array, response: Callable[[Array], Array]) -> Array:
    values, q = (one[..., ::-1] for one in np.linalg.eigh(c))
    f = response(np.maximum(values, 1e-8)) * (values > 1e-8)
    return anchor - anchor @ (q * f) @ q.T + t @ (q * f / np.maximum(values, 1e-8)) @ q.T


def adam(x: Array, gradient: Callable[[Array], Array], steps: int, lr: float) -> Array:
    first, second = np.zeros_like(x), np.zeros_like(x)
    for step in range(1, steps + 1):
        g = gradient(x)
        first, second = 0.9 * first + 0.1 * g, 0.999 * second + 0.001 * g * g
        x = x - lr * (first / (1 - 0.9**step)) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
    return x


def wudi_merging(
    base: Array,
    deltas: Arrays,
    *,
    solver: str = "closed_form",
    filter: str = "exponential",
    keep_ratio: float = 1.0,
    rank_rule: str = "",
    steps: int = 30,
    lr: float = 1e-5,
) -> Array:
    c, t = moments(deltas)
    if solver == "adam":
        return adam(sum(deltas), lambda x: 2 * (x @ c - t), steps, lr)

    def response(values: Array) -> Array:
        f = {
            "exponential": 1 - np.exp(-300 * values),
            "tikhonov": values / (values + 0.01),
            "landweber": 1 - (1 - 0.9 * values / values[0]) ** steps,
            "none": np.ones_like(values),
        }[filter]
        rank = math.ceil(keep_ratio * len(values) - 1e-9)
        if rank_rule == "participation_sqrt":
            rank = math.ceil(np.sqrt(values).sum() ** 2 / values.sum() * (1 - 1e-12))
        return f * (np.arange(len(values)) < rank)

    return filtered(c, t, sum(deltas), response)


def optmerge(
    base: Array, deltas: Arrays, *, solver: str = "closed_form", center: bool = False, steps: int = 300
) -> Array:
    middle, rank = sum(deltas) / len(deltas), min(base.shape) // len(deltas)
    c, t = np.zeros((base.shape[1],) * 2), np.zeros_like(base)
    for delta in deltas:
        _, s, vh = svd(delta, rank)
        u_t, s_t, vh_t = svd(delta - middle if center else delta, rank)
        g = (s[:, None] * vh).T @ (s[:, None] * vh) / (delta**2).sum()
        c, t = c + g, t + ((u_t * s_t) @ vh_t + (middle if center else 0)) @ g
    if solver == "closed_form":
        return filtered(c, t, middle, lambda values: 1 - np.exp(-300 * values))
    x, velocity = middle, np.zeros_like(base)
    for _ in range(steps):
        velocity = 0.9 * velocity + 2 * (x @ c - t)
        x = x - 1e-4 * velocity
    return x


def bayesian_model_merging(base: Array, deltas: Arrays, *, prior_precision: float = 1.0) -> Array:
    c, t = (one * base.shape[1] / len(deltas) for one in moments(deltas))
    return np.linalg.solve(c + prior_precision * np.eye(len(c)), (t + prior_precision * sum(deltas)).T).T


def mats(base: Array, deltas: Arrays, *, iterations: int = 100, init: str = "average") -> Array:
    c, t = moments(deltas)
    x = sum(deltas) * (0.3 if init == "task_arithmetic" else 1 / len(deltas))
    enough = 1e-5 * np.linalg.norm(t + base @ c)
    residual = t - x @ c
    along = residual
    for _ in range(iterations):
        squared = (residual**2).sum()
        if math.sqrt(squared) <= enough:
            break
        step = squared / (along * (along @ c)).sum()
        x, residual = x + step * along, residual - step * (along @ c)
        along = residual + (residual**2).sum() / squared * along
    return x


def stf(base: Array, deltas: Arrays, *, rank: int | str = "auto") -> Array:
    u, s, vh = beside([leading(delta, len(deltas), rank) for delta in deltas])
    return u * (np.linalg.pinv((u.T @ u) * (vh @ vh.T), rcond=1e-7, hermitian=True) @ s) @ vh


def doge(base: Array, deltas: Arrays, *, steps: int = 400, keep_percent: float = 30, subspace: int = 6) -> Array:
    side, count = min(base.shape), len(deltas)
    lambdas = [0.07 / np.linalg.norm(delta) for delta in deltas]
    shared = np.linalg.svd(np.concatenate([svd(delta, side // count)[0] for delta in deltas], 1))[0][
        :, : side // subspace
    ]

    def gradient(e: Array) -> Array:
        merged = sum(share * (delta + e) for share, delta in zip(lambdas, deltas, strict=True))
        g = sum(-2 * sum(lambdas) * (delta * (delta - merged)).sum(1, keepdims=True) * delta for delta in deltas)
        return g - shared @ (shared.T @ g)

    e, merged = adam(np.zeros_like(base), gradient, steps, 1e-4), np.zeros_like(base)
    for share, delta in zip(lambdas, deltas, strict=True):
        least = np.sort(np.abs(delta), axis=None)[max(0, delta.size - int(delta.size * keep_percent / 100) - 1)]
        merged += share * (np.abs(delta) >= least) * (delta + e)
    return merged


def opcm(base: Array, deltas: Arrays, *, alpha: float = 0.5) -> Array:
    """Scaled after every model, as the paper does."""
    norms = [np.linalg.norm(delta) for delta in deltas]
    merged, scale = deltas[0], 1.0
    for t, delta in enumerate(deltas[1:], 2):
        u, s, vh = svd(merged, rank_made_with(svd(merged)[1], min(base.shape)))
        split = int(np.argmax(s.cumsum() / s.sum() > alpha))
        mask = np.eye(len(s), dtype=bool)
        mask[:split, :split] = True
        merged = scale * merged + delta - u @ ((u.T @ delta @ vh.T) * mask) @ vh
        scale = np.linalg.norm(merged) / np.mean(norms[:t])
        merged = merged / scale
    return merged


def ortho_merge(base: Array, deltas: Arrays, *, target: str = "all", theta: str = "mean") -> Array:
    one, middle = np.eye(base.shape[1]), sum(deltas) / len(deltas)
    skews, residual = [], np.zeros_like(base)
    for delta in deltas:
        conflict = (delta * middle).sum(1, keepdims=True) < 0
        overlap = base.T @ (base + (delta if target == "all" else delta * conflict))
        r = polar(overlap + 1e-4 * np.linalg.norm(overlap, 2) * one, rtol=0)
        skews.append(np.linalg.solve(r + one, r - one))
        residual += base + delta - base @ r
    sizes = [np.linalg.norm(skew) for skew in skews]
    a = {"mean": np.mean, "max": np.max}[theta](sizes) * sum(skews) / np.linalg.norm(sum(skews))
    return base @ np.linalg.solve(one - a, one + a) + 0.2 * residual - base


def lore_merging(base: Array, deltas: Arrays, *, mu: float = 0.01, iterations: int = 20, scaling: float = 1.0) -> Array:
    parts = [np.zeros_like(base) for _ in deltas]
    for _ in range(iterations):
        shared = sum(base + delta - part for delta, part in zip(deltas, parts, strict=True)) / len(deltas)
        found = [svd(base + delta - shared, rtol=0) for delta in deltas]
        parts = [u * np.maximum(s - mu, 0) @ vh for u, s, vh in found]
    return shared + scaling * sum(parts) - base


def singular_value_calibration(base: Array, deltas: Arrays, *, alpha: float = 1.0) -> Array:
    u, s, vh = svd(sum(deltas))
    counts = np.zeros(len(s))
    for delta in deltas:
        answers = u.T @ delta
        counts += np.maximum(alpha, (s[:, None] * vh * answers).sum(1) / (answers**2).sum(1))
    return u * (s * len(deltas) / counts) @ vh
