"""Random draws by counter: the draw for element i depends on (seed, tensor, model's place, i) and on nothing else.

The words are those of NumPy's Philox4x64-10 (Salmon et al., SC 2011), each 64-bit word giving two 32-bit draws, low half
first: twice as fast as one draw a word, and 2^-32 is far below any density's own precision. A GPU makes the same words.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from blake3 import blake3

from cuvee.tensors import kernels
from cuvee.tensors.lazy_torch import torch

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

__all__ = ["bernoulli", "bernoulli_array", "draw_key", "drawn_words", "limits_of", "normal", "philox_words", "uniform"]

_M0, _M1 = 0xD2E7470EE14C6C93, 0xCA5A826395121157
_W0, _W1 = 0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B
_MASK32 = 0xFFFFFFFF
_CHUNK = 1 << 18


def draw_key(seed: int, tensor: str, model: int, purpose: int = 0) -> tuple[int, int]:
    """Return the 128-bit key of the draws for one tensor of the model at one place, as two words.

    Args:
        purpose: tells apart several independent draws for the same element.
    """
    text = "\0".join([str(seed), tensor, str(model)] + ([str(purpose)] if purpose else []))
    digest = blake3(text.encode("utf-8")).digest()
    return int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:16], "little")


def bernoulli(key: tuple[int, int], start: int, stop: int, probability: float | Tensor, device: torch.device) -> Tensor:
    """Return for the elements `[start, stop)` whether their draw is below `probability`.

    Args:
        probability: in [0, 1], one for all or (stop − start,) on `device`. It is rounded to a multiple of 2^-32.

    Returns:
        (stop − start,) bool on `device`.
    """
    first, last = start // 2, -(-stop // 2)
    if isinstance(probability, float | int) and (probability <= 0 or probability >= 1):
        return torch.full((stop - start,), probability >= 1, dtype=torch.bool, device=device)
    if device.type != "cpu":
        words = philox_words(key, first, last, device)
        halves = torch.stack((words & _MASK32, (words >> 32) & _MASK32), dim=-1).reshape(-1)
        on_device = limits_of(torch.as_tensor(probability, device=device)).to(torch.int64)
        return halves[start - 2 * first : stop - 2 * first] < on_device
    limits: Any = min(round(probability * 2**32), _MASK32) if isinstance(probability, float | int) else None
    if limits is not None and kernels.available():
        return torch.from_numpy(bernoulli_array(key, start, stop, float(probability)))
    happens = np.empty(stop - start, np.bool_)
    for begin in range(start, stop, _CHUNK):  # in pieces that stay in the cache
        end = min(begin + _CHUNK, stop)
        piece = slice(begin - start, end - start)
        if not isinstance(probability, float | int):
            limits = limits_of(probability[piece]).numpy().astype(np.uint32)
        np.less(drawn_words(key, begin, end), np.uint32(limits), out=happens[piece])
    return torch.from_numpy(happens)


def bernoulli_array(key: tuple[int, int], start: int, stop: int, probability: float) -> NDArray[np.bool_]:
    """As `bernoulli` of one probability inside (0, 1), by the kernel."""
    return kernels.bernoulli(key, start, stop, min(round(probability * 2**32), _MASK32))


def drawn_words(key: tuple[int, int], start: int, stop: int) -> NDArray[np.uint32]:
    """Return the draws of the elements `[start, stop)`: 32-bit words."""
    if kernels.available():
        return kernels.draws(key, start, stop)
    first, last = start // 2, -(-stop // 2)
    return _numpy_words(key, first, last).view(np.uint32)[start - 2 * first : stop - 2 * first]


def uniform(key: tuple[int, int], start: int, stop: int) -> Tensor:
    """Return the elements `[start, stop)` of uniform draws: (stop − start,) float64 in (0, 1), each (word + ½) / 2^32."""
    return torch.from_numpy((drawn_words(key, start, stop) + 0.5) * 2.0**-32)


def normal(key: tuple[int, int], start: int, stop: int) -> Tensor:
    """Return the elements `[start, stop)` of standard normal draws: (stop − start,) float32, by the inverse of Φ."""
    return torch.special.ndtri(uniform(key, start, stop)).float()


def limits_of(probability: Any) -> Any:
    """Return the limits, as float64 whole numbers, that a draw must be below to happen with `probability`.

    Args:
        probability: an array or a tensor; the limits are the same.
    """
    wide = probability.astype(np.float64) if isinstance(probability, np.ndarray) else probability.double()
    return (wide * 2.0**32).round().clip(0, _MASK32)


def _numpy_words(key: tuple[int, int], first: int, last: int) -> NDArray[np.uint64]:
    """Return the words `[first, last)` of NumPy's stream."""
    block = first // 4
    generator = np.random.Philox(key=np.array(key, np.uint64), counter=[block, 0, 0, 0])
    words = generator.random_raw(last - 4 * block)
    return words[first - 4 * block :]


def _mulhi(a: Tensor, constant: int) -> Tensor:
    """Return the high 64 bits of an unsigned product, in int64 arithmetic that wraps."""
    low, high = constant & _MASK32, constant >> 32
    a_low, a_high = a & _MASK32, (a >> 32) & _MASK32
    # Each partial product is below 2^64 and is taken apart before anything is added to it.
    p00, p01, p10, p11 = a_low * low, a_low * high, a_high * low, a_high * high
    middle = ((p00 >> 32) & _MASK32) + (p01 & _MASK32) + (p10 & _MASK32)
    return p11 + ((p01 >> 32) & _MASK32) + ((p10 >> 32) & _MASK32) + (middle >> 32)


def _signed(word: int) -> int:
    word &= (1 << 64) - 1
    return word - (1 << 64) if word >> 63 else word


def philox_words(key: tuple[int, int], first: int, last: int, device: torch.device) -> Tensor:
    """Return the words `[first, last)` of the same stream, computed on `device`: (last − first,) int64 bit patterns."""
    # NumPy advances the counter before each block of four words.
    blocks = torch.arange(first // 4 + 1, -(-last // 4) + 1, dtype=torch.int64, device=device)
    c0, c1 = blocks, torch.zeros_like(blocks)
    c2, c3 = torch.zeros_like(blocks), torch.zeros_like(blocks)
    k0, k1 = key
    for _ in range(10):
        hi0, lo0 = _mulhi(c0, _M0), c0 * _signed(_M0)
        hi1, lo1 = _mulhi(c2, _M1), c2 * _signed(_M1)
        c0, c1, c2, c3 = hi1 ^ c1 ^ _signed(k0), lo1, hi0 ^ c3 ^ _signed(k1), lo0
        k0, k1 = k0 + _W0, k1 + _W1
    words = torch.stack((c0, c1, c2, c3), dim=-1).reshape(-1)
    return words[first - 4 * (first // 4) : last - 4 * (first // 4)]
