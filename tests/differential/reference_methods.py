"""The methods again, naively: whole tensors, NumPy, straight from the reference text (../shared/methods/task_vector.md).

Nothing here is shared with the library. Elementwise steps are in float32 and in the order of the text, because signs and
selections hang on single bits; norms, sums and angles are in float64. `x` is a list of K whole tensors of one name (of
weights, or of task vectors), `c` the `Context` of that tensor. Whole-model steps get all tensors at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from blake3 import blake3

F32 = np.float32


@dataclass(frozen=True)
class Context:
    """What a method may know beside the values: name, seed, base, and the arguments by keyword."""

    name: str
    seed: int
    base: np.ndarray | None
    arguments: Mapping[str, Any]

    def __call__(self, key: str, default: Any = None) -> Any:
        return self.arguments.get(key, default)

    def per_model(self, key: str, count: int, default: float) -> list[float]:
        value = self(key, default)
        return list(value) if isinstance(value, list) else [value] * count


# ---------------------------------------------------------------------------------------------------------- primitives


def weighted(x: Sequence[np.ndarray], weights: Sequence[float], *, normalize: bool = False) -> np.ndarray:
    total = np.zeros_like(x[0])
    for value, w in zip(x, weights, strict=True):
        total = total + value * F32(w)
    return total / F32(sum(weights)) if normalize and abs(sum(weights)) >= 1e-8 else total


def by_magnitude(x: np.ndarray) -> np.ndarray:
    """Indices from the largest magnitude to the smallest, the lower index first among equals (P2)."""
    return np.argsort(-np.abs(x).reshape(-1), kind="stable")


def keep(x: np.ndarray, indices: np.ndarray) -> np.ndarray:
    result = np.zeros_like(x).reshape(-1)
    result[indices] = x.reshape(-1)[indices]
    return result.reshape(x.shape)


def trim_exact(x: np.ndarray, density: float) -> np.ndarray:
    return x if density >= 1 else keep(x, by_magnitude(x)[: int(density * x.size)])


def trim_at(x: np.ndarray, threshold: float) -> np.ndarray:
    return np.where(np.abs(x) >= threshold, x, F32(0))


def l1(x: np.ndarray) -> float:
    return float(np.abs(x.astype(np.float64)).sum())


def rescaled(kept: np.ndarray, x: np.ndarray, rescale: Any, probability: Any) -> np.ndarray:
    """P4."""
    if rescale in (False, "none"):
        return kept
    if rescale == "expected":
        return kept / np.asarray(probability).astype(F32)
    if l1(x) < 1e-7 or l1(kept) < 1e-7:
        return kept
    return kept * F32(l1(x) / l1(kept))


def consensus(
    x: Sequence[np.ndarray],
    weights: Sequence[float],
    *,
    normalize: bool,
    merge_func: str = "weighted_mean",
    tie: float = 1.0,
) -> np.ndarray:
    """P5; `tie` is the sign of a balanced vote."""
    y = [value * F32(w) for value, w in zip(x, weights, strict=True)]
    votes = weighted(y, [1.0] * len(y))
    sign = np.where(votes > 0, F32(1), np.where(votes < 0, F32(-1), F32(tie)))
    agree = [np.sign(value) == sign for value in y]
    agree = [a & (value != 0) for a, value in zip(agree, y, strict=True)]
    if merge_func == "mean":
        total = weighted([np.where(a, v, F32(0)) for a, v in zip(agree, x, strict=True)], [1.0] * len(x))
        return total / np.maximum(1, sum(a.astype(F32) for a in agree))
    if merge_func == "max":
        return sign * np.max([np.where(a, np.abs(v), F32(0)) for a, v in zip(agree, x, strict=True)], axis=0)
    total = weighted([np.where(a, v, F32(0)) for a, v in zip(agree, y, strict=True)], [1.0] * len(x))
    if merge_func == "sum" or not normalize:
        return total
    divisor = weighted([a.astype(F32) for a in agree], weights)
    return total / np.where(divisor == 0, F32(1), divisor)


def draws(c: Context, model: int, shape: tuple[int, ...]) -> np.ndarray:
    """The uniform draws in [0, 1): halves of Philox words under blake3(seed, tensor, model), low half first."""
    key = blake3("\0".join([str(c.seed), c.name, str(model)]).encode()).digest()
    words = np.random.Philox(key=np.frombuffer(key[:16], "<u8").copy()).random_raw((math.prod(shape) + 1) // 2)
    halves = np.stack([words & np.uint64(0xFFFFFFFF), words >> np.uint64(32)], -1).reshape(-1)
    return (halves[: math.prod(shape)] / 2.0**32).reshape(shape)


def gram(x: Sequence[np.ndarray]) -> np.ndarray:
    wide = [value.astype(np.float64).reshape(-1) for value in x]
    return np.array([[float(a @ b) for b in wide] for a in wide])


# ------------------------------------------------------------------------------------------------- methods on one tensor


def linear(x, c):
    return weighted(x, c.per_model("weight", len(x), 1.0), normalize=c("normalize", True))


def task_arithmetic(x, c):
    return weighted(x, c.per_model("weight", len(x), 1.0), normalize=c("normalize", False))


def passthrough(x, c):
    return x[0] * F32(c("scale", 1.0))


def slerp_pair(a, b, t, *, near, unit_floor, line_below=1e-8):
    norm_a, norm_b = np.sqrt(l2(a)), np.sqrt(l2(b))
    d = float((a.astype(np.float64) * b.astype(np.float64)).sum())
    d /= norm_a if norm_a > unit_floor else 1.0
    d /= norm_b if norm_b > unit_floor else 1.0
    d = min(1.0, max(-1.0, d))
    theta = math.acos(d)
    if abs(d) > near or d < 1e-6 - 1 or math.sin(theta) < line_below:
        return weighted([a, b], [1 - t, t])
    return weighted([a, b], [math.sin((1 - t) * theta) / math.sin(theta), math.sin(t * theta) / math.sin(theta)])


def l2(x):
    return float((x.astype(np.float64) ** 2).sum())


def slerp(x, c):
    return slerp_pair(x[0], x[1], c("t"), near=c("dot_threshold", 0.9995), unit_floor=c("eps", 1e-8))


def nuslerp(x, c):
    first, second = c("weight")
    t = 0.5 if abs(first + second) < 1e-6 else second / (first + second)
    a, b = x
    settings = {"near": 1 - 1e-12, "unit_floor": 1e-7}
    if c("nuslerp_flatten", True) or a.ndim < 2:
        return slerp_pair(a, b, t, **settings)
    result = np.zeros_like(a)
    if c("nuslerp_row_wise", False):  # vectors along dimension 0
        for column in np.ndindex(a.shape[1:]):
            at = (slice(None), *column)
            result[at] = slerp_pair(a[at], b[at], t, **settings)
    else:  # vectors along the last dimension
        for row in np.ndindex(a.shape[:-1]):
            result[row] = slerp_pair(a[row], b[row], t, **settings)
    return result


def multislerp(x, c):
    if len(x) == 1:
        return x[0]
    w = np.array(c.per_model("weight", len(x), 1.0))
    if c("normalize_weights", True):
        w = w / w.sum()
    norms = [math.sqrt(l2(value)) for value in x]
    wide = [value.astype(np.float64) for value in x]
    m = sum(wi * value / (n + 1e-8) for wi, value, n in zip(w, wide, norms, strict=True))
    length = math.sqrt(float((m**2).sum()))
    if length < 1e-8:
        return sum(wi * value for wi, value in zip(w, wide, strict=True)).astype(F32)
    return (m / length * float(w @ norms)).astype(F32)


def karcher(x, c):
    """On explicit unit vectors, as in the text."""
    if len(x) == 1:
        return x[0]
    tol = c("tol", 1e-5)
    wide = [value.astype(np.float64).reshape(-1) for value in x]
    norms = [float(np.linalg.norm(value)) for value in wide]
    units = [value / n for value, n in zip(wide, norms, strict=True) if n > tol]
    if not units:
        return np.zeros_like(x[0])
    u = sum(units) / len(units)
    u = u / np.linalg.norm(u) if np.linalg.norm(u) >= tol else units[0]
    for _ in range(c("max_iter", 10)):
        tangent = np.zeros_like(u)
        for unit in units:
            d = min(1.0, max(-1.0, float(u @ unit)))
            theta = math.acos(d)
            if theta >= tol:
                tangent += theta / math.sin(theta) * (unit - d * u) / len(units)
        step = float(np.linalg.norm(tangent))
        if step < tol:
            break
        u = math.cos(step) * u + math.sin(step) * tangent / step
        u = u / np.linalg.norm(u)
    return (u * sum(norms) / len(norms)).reshape(x[0].shape).astype(F32)


def dare(x, c):
    result = []
    for k, (value, density) in enumerate(zip(x, c.per_model("density", len(x), 1.0), strict=True)):
        if density >= 1:
            result.append(value)
            continue
        kept = np.where(draws(c, k, value.shape) < density, value, F32(0))
        result.append(rescaled(kept, value, c("rescale", True), density))
    return result


def dare_linear(x, c):
    return weighted(dare(x, c), c.per_model("weight", len(x), 1.0), normalize=c("normalize", False))


def dare_ties(x, c):
    trimmed = [
        trim_exact(value, d) for value, d in zip(dare(x, c), c.per_model("ties_density", len(x), 1.0), strict=True)
    ]
    return consensus(trimmed, c.per_model("weight", len(x), 1.0), normalize=c("normalize", False))


def rows_of(x: np.ndarray) -> np.ndarray:
    """MagPrune's rows: slices of dimension 0; where one has more than 2^16 elements, runs of the last dimension."""
    if x.ndim < 2:
        return x.reshape(1, -1)
    return x.reshape(len(x), -1) if x[0].size <= 65536 else x.reshape(-1, x.shape[-1])


def magprune(x, c):
    result = []
    densities, epsilons = c.per_model("density", len(x), 1.0), c.per_model("epsilon", len(x), 0.15)
    for k, (value, density, epsilon) in enumerate(zip(x, densities, epsilons, strict=True)):
        if density >= 1 or value.size == 0:
            result.append(value)
            continue
        rows = rows_of(value)
        rank = np.argsort(np.argsort(np.abs(rows), axis=-1, kind="stable"), axis=-1, kind="stable")
        length = rows.shape[-1]
        p = (density - epsilon) + 2 * epsilon * rank / (length - 1) if length > 1 else np.full(rows.shape, density)
        p = p.reshape(value.shape)
        kept = np.where(draws(c, k, value.shape) < p, value, F32(0))
        result.append(rescaled(kept, value, c("rescale", True), p))
    return result


def della(x, c):
    return consensus(magprune(x, c), c.per_model("weight", len(x), 1.0), normalize=c("normalize", True))


def della_linear(x, c):
    return weighted(magprune(x, c), c.per_model("weight", len(x), 1.0), normalize=c("normalize", False))


def band(x, c):
    result = []
    for value, density, gamma in zip(
        x, c.per_model("density", len(x), 1.0), c.per_model("gamma", len(x), 0.01), strict=True
    ):
        if c("keep_top") is not None:
            result.append(band_of_rows(value, c("keep_top"), c("remove_top", 0.0)))
        elif density >= 1:
            result.append(value)
        else:
            n = value.size
            kept, top = int(density * n), int(gamma * n)
            top = min(top, n - kept)
            result.append(
                rescaled(keep(value, by_magnitude(value)[top : top + kept]), value, c("rescale", False), density)
            )
    return result


def band_of_rows(x, keep_top, remove_top):
    if x.ndim == 0:
        return x
    result = np.zeros_like(x)
    for row in np.ndindex(x.shape[:-1]):
        length, order = x.shape[-1], by_magnitude(x[row])
        first = int(length * remove_top)
        result[row] = keep(x[row], order[first : first + int(length * keep_top)])
    return result


def breadcrumbs(x, c):
    return weighted(band(x, c), c.per_model("weight", len(x), 1.0), normalize=c("normalize", False))


def breadcrumbs_ties(x, c):
    return consensus(band(x, c), c.per_model("weight", len(x), 1.0), normalize=c("normalize", False))


def sce(x, c):
    selected = x
    if c("select_topk", 1.0) < 1:
        center = weighted(x, [1.0] * len(x)) / F32(len(x))
        variance = weighted([(value - center) ** 2 for value in x], [1.0] * len(x)) / F32(len(x))
        variance = np.where((np.stack(x) == x[0]).all(0), F32(0), variance)
        chosen = by_magnitude(variance)[: int(c("select_topk") * np.count_nonzero(variance))]
        if c("variant") == "fuseai" or np.any(variance):
            selected = [keep(value, chosen) for value in x]
    energies = [l2(value) / max(1, value.size) for value in selected]
    total = sum(energies)
    weights = [1 / len(x)] * len(x) if total == 0 else [e / total for e in energies]
    x = x if c("variant") == "fuseai" else selected
    sign = np.where(weighted(x, [1.0] * len(x)) >= 0, F32(1), F32(-1))
    agree = [np.sign(value) == sign for value in x]
    total = weighted([np.where(a, v, F32(0)) for a, v in zip(agree, x, strict=True)], weights)
    divisor = weighted([a.astype(F32) for a in agree], weights)
    return total / (
        np.where(divisor == 0, F32(1), divisor) if c("variant") == "fuseai" else np.maximum(divisor, F32(1e-6))
    )


def model_stock(x, c):
    if c("filter_wise", False) and x[0].ndim > 1:
        result = np.zeros_like(x[0])
        for row in np.ndindex(x[0].shape[:-1]):
            result[row] = model_stock([value[row] for value in x], Context(c.name, c.seed, None, {}))
        return result
    g, count = gram(x), len(x)
    norms = [math.sqrt(g[i, i]) for i in range(count)]
    cosines = [g[i, j] / (norms[i] * norms[j]) if norms[i] * norms[j] else 0.0 for i in range(count) for j in range(i)]
    cosine = sum(min(1.0, max(-1.0, value)) for value in cosines) / len(cosines)
    t = count * cosine / (1 + (count - 1) * cosine) if 1 + (count - 1) * cosine else 0.0
    return weighted(x, [min(1.0, max(0.0, t)) / count] * count)


def nearswap(x, c):
    (delta,) = x
    return delta * np.clip(F32(c("t")) / np.maximum(np.abs(delta), F32(1e-6)), F32(0), F32(1))


def arcee_fusion(x, c):
    (delta,) = x
    if delta.size == 0:
        return delta
    changed, base = torch.from_numpy(np.atleast_1d(delta)), torch.from_numpy(np.atleast_1d(c.base))
    p, q = torch.softmax(base + changed, -1) + 1e-8, torch.softmax(base, -1) + 1e-8
    divergence = (p * (p / q).log()).sum(-1, keepdim=True)
    importance = (changed.abs() * divergence).numpy().reshape(delta.shape)
    in_order = np.sort(importance.reshape(-1))
    q1, q2, q3 = (in_order[int(q * (delta.size - 1))].astype(np.float64) for q in (0.25, 0.5, 0.75))
    return np.where(importance >= q2 + 1.5 * (q3 - q1), delta, F32(0))


def ram(x, c):
    active = [np.abs(value) > c("epsilon", 1e-5) for value in x]
    total = weighted([np.where(a, v, F32(0)) for a, v in zip(active, x, strict=True)], [1.0] * len(x))
    return total / np.maximum(1, sum(a.astype(F32) for a in active))


def ramplus_tl(x, c):
    epsilon = c("epsilon", 1e-5)
    active = np.array([np.abs(value) > epsilon for value in x])
    count = active.sum(0)
    total = np.zeros_like(x[0])
    for a, value in zip(active, x, strict=True):
        shared, unique = int((a & (count >= 2)).sum()), int((a & (count == 1)).sum())
        ratio = min(max(shared / max(unique, epsilon), 0.0), c("alpha", 0.2))
        total = total + np.where(a & (count == 1), value * F32(1 + c("r", 0.1) * ratio), F32(0))
        total = total + np.where(a & (count >= 2), value / F32(1), F32(0)) / np.maximum(count, 1).astype(F32)
    return total


def ties(x, c):
    trimmed = []
    for value, density in zip(x, c.per_model("density", len(x), 1.0), strict=True):
        if density >= 1:
            trimmed.append(value)
            continue
        if c("inclusive_threshold", False):
            removed = int(value.size * (1 - density))
            kept = trim_at(value, np.sort(np.abs(value).reshape(-1))[removed - 1]) if removed else value
        else:
            kept = trim_exact(value, density)
        trimmed.append(rescaled(kept, value, c("rescale", False), density))
    return consensus(
        trimmed,
        c.per_model("weight", len(x), 1.0),
        normalize=c("normalize", True),
        merge_func=c("merge_func", "weighted_mean"),
    )


ON_ONE_TENSOR: dict[str, Callable[..., np.ndarray]] = {
    function.__name__: function
    for function in (
        linear, task_arithmetic, passthrough, slerp, nuslerp, multislerp, karcher, dare_linear, dare_ties, della,
        della_linear, breadcrumbs, breadcrumbs_ties, sce, model_stock, nearswap, arcee_fusion, ram, ramplus_tl, ties,
    )
}  # fmt: skip


# ---------------------------------------------------------------------------------------------- whole-model TIES, official


def ties_of_a_model(deltas: Sequence[Mapping[str, np.ndarray]], arguments: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Flatten the whole model in the order of sorted names, as prateeky2806/ties-merging does."""
    names = sorted(deltas[0], key=str.encode)
    flat = [np.concatenate([delta[name].reshape(-1) for name in names]) for delta in deltas]
    density = arguments.get("density", 1.0)
    if density < 1 and arguments.get("inclusive_threshold", True):
        n = len(flat[0])
        flat = [trim_at(x, np.sort(np.abs(x))[max(n - int(density * n), 1) - 1]) for x in flat]
    elif density < 1:
        flat = [trim_exact(x, density) for x in flat]
    weights = arguments.get("weight", [1.0] * len(flat))
    votes = weighted(flat, weights)
    majority = float(np.sign(np.sign(votes).sum())) if arguments.get("tie_sign") == "global_majority" else 1.0
    merged = consensus(
        flat, weights, normalize=True, merge_func=arguments.get("merge_func", "weighted_mean"), tie=majority
    )
    result, at = {}, 0
    for name in names:
        shape = deltas[0][name].shape
        result[name] = merged[at : at + math.prod(shape)].reshape(shape)
        at += math.prod(shape)
    return result


# ------------------------------------------------------------------------------------------------------------------ merge


def merge(
    method: str,
    models: Sequence[Mapping[str, torch.Tensor]],
    base: Mapping[str, torch.Tensor] | None,
    *,
    on_deltas: bool,
    seed: int = 0,
    **arguments: Any,
) -> dict[str, np.ndarray]:
    """Merge in float32; task vectors are float32 differences, `scaling` comes last, then the base is added."""

    def plain(tensors):
        return {name: tensor.float().numpy() for name, tensor in tensors.items()}

    x = [plain(model) for model in models]
    zero = plain(base) if base is not None else None
    scaling = F32(arguments.pop("scaling", 1.0))
    if not on_deltas:
        members = x if zero is None else ([zero, *x] if method == "slerp" else [*x, zero])
        return {
            name: ON_ONE_TENSOR[method]([m[name] for m in members], Context(name, seed, None, arguments))
            for name in x[0]
        }
    assert zero is not None
    deltas = [{name: model[name] - zero[name] for name in zero} for model in x]
    if arguments.get("trim_scope") == "model":
        merged = ties_of_a_model(deltas, arguments)
    else:
        merged = {
            name: ON_ONE_TENSOR[method]([d[name] for d in deltas], Context(name, seed, zero[name], arguments))
            for name in zero
        }
    return {name: zero[name] + merged[name] * scaling for name in zero}
