"""What random projection saves where a task vector has low rank, and what looking for that costs where it has not.

    taskset -c 1 python benchmarks/projections.py

prints, of merged LoRAs of rank 16 stored in bfloat16 and of task vectors of full rank, the processor time of one thread by
either route.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from cuvee.methods import spectral

SHAPES = ((1024, 1024), (1024, 4096), (2048, 2048))
RANK, SIZE = 16, 2e-3


def task_vector(m: int, n: int, rank: int | None) -> torch.Tensor:
    """Return a task vector (m, n) whose elements have a deviation of `SIZE`; of a rank, as bfloat16 leaves it."""
    generator = torch.Generator().manual_seed(0)
    if rank is None:
        return SIZE * torch.randn(m, n, generator=generator)
    base = (0.02 * torch.randn(m, n, generator=generator)).bfloat16().float()
    delta = torch.randn(m, rank, generator=generator) @ torch.randn(rank, n, generator=generator)
    return (base + delta * (SIZE / delta.std())).bfloat16().float() - base


def seconds(work: Callable[[], object]) -> float:
    """Return the least processor time of three runs."""
    found = []
    for _ in range(3):
        begin = time.process_time()
        work()
        found.append(time.process_time() - begin)
    return min(found)


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    for m, n in SHAPES:
        for rank in (RANK, None):
            delta = task_vector(m, n, rank)
            found = spectral.projected_svd(delta)
            projected = seconds(lambda delta=delta: spectral.projected_svd(delta))  # type: ignore[misc]
            whole = seconds(lambda delta=delta: spectral._whole_svd(delta, RANK))  # type: ignore[misc]
            said = "full rank, looked at" if found is None else f"rank {len(found.s)}, projected"
            print(f"{m} x {n}, {said}: {1e3 * projected:.0f} ms; decomposed whole: {1e3 * whole:.0f} ms", flush=True)


if __name__ == "__main__":
    main()
