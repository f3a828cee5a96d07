"""The budget on a device with a memory of its own, and the device's streams: several threads, the bytes of one."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from models import LLAMA, family, llama_shapes, write_model

import cuvee
from cuvee.engine import in_memory, rounds
from cuvee.engine.budget import choose_budget
from cuvee.errors import ResourceError
from cuvee.tensors.devices import free_bytes, need_device

WIDE = {"model.layers.0.mlp.up_proj.weight": (2000, 1500)}


def planned(folder, method, shapes, **options):
    """Return a plan of two experts."""
    base, experts = family(2, shapes)
    folders = [str(write_model(folder / f"model{n}", one, LLAMA)) for n, one in enumerate([base, *experts])]
    parameters = {"density": 0.5} if method == "ties" else {}
    return cuvee.plan(cuvee.Recipe(method, models=folders[1:], base_model=folders[0], parameters=parameters), **options)


def chosen(plan, device_bytes, **options):
    """Return the budget of a plan on a GPU with so much free memory."""
    formula = replace(plan.formula, device="cuda")
    return choose_budget(
        plan.tasks, formula, memory=None, threads=8, device="cuda", device_bytes=device_bytes, **options
    )


def test_fewer_threads_work_on_matrices_where_the_device_has_little_memory(tmp_path):
    plan = planned(tmp_path, "tsv_m", WIDE)
    threads = [chosen(plan, gigabytes * 10**9).threads for gigabytes in (80, 2, 1)]
    assert threads[0] == 8
    assert threads == sorted(threads, reverse=True) and threads[-1] < threads[0]


def test_blocks_are_smaller_where_the_device_has_little_memory(tmp_path):
    plan = planned(tmp_path, "ties", {"model.layers.0.mlp.up_proj.weight": (4096, 4096)})
    much, little = chosen(plan, 80 * 10**9), chosen(plan, 10**9)
    assert (little.threads, little.block_elements) < (much.threads, much.block_elements)


def test_a_device_that_cannot_hold_one_matrix_is_refused_with_the_tensor(tmp_path):
    plan = planned(tmp_path, "tsv_m", WIDE)
    with pytest.raises(ResourceError, match=r"cuda has 100 MB free: this merge needs \d+ MB there") as caught:
        chosen(plan, 100 * 10**6)
    assert "up_proj" in caught.value.where
    needed = int(str(caught.value).split("needs ")[1].split()[0]) * 10**6
    assert chosen(plan, needed / 0.8 + 10**7).threads == 1


def test_the_memory_of_the_cpu_is_no_device_s():
    assert free_bytes("cpu") is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("device", ["cuda", "cuda:3", "tpu"])
def test_a_plan_for_a_device_that_is_not_there_is_refused(tmp_path, device):
    with pytest.raises(ResourceError, match="no device|no CUDA device"):
        planned(tmp_path, "tsv_m", WIDE, device=device)
    need_device("cpu")


def test_every_thread_has_a_stream_and_settles_before_others_read_what_it_measured(tmp_path, monkeypatch):
    plan = planned(tmp_path, "ties", llama_shapes(LLAMA), threads=2)
    streams, events, deliver = [], [], in_memory._Collecting.deliver

    @contextmanager
    def own_stream(device):
        streams.append((device, threading.current_thread().name))
        yield

    def delivered(self, task, start, block):
        events.append((threading.current_thread().name, "delivered"))
        deliver(self, task, start, block)

    monkeypatch.setattr(rounds, "own_stream", own_stream)
    monkeypatch.setattr(rounds, "settle", lambda _: events.append((threading.current_thread().name, "settled")))
    monkeypatch.setattr(in_memory._Collecting, "deliver", delivered)
    in_memory.compute(plan)
    assert sorted(streams) == [("cpu", "cuvee-0"), ("cpu", "cuvee-1")]
    for thread in ("cuvee-0", "cuvee-1"):
        own = [what for name, what in events if name == thread]
        assert all(after == "settled" for what, after in pairwise(own) if what == "delivered")
    assert sum(what == "settled" for _, what in events) > 2 * sum(what == "delivered" for _, what in events)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("method", ["tsv_m", "iso_cts", "wudi_merging", "ties"])
def test_threads_with_streams_of_their_own_give_the_bytes_of_one(tmp_path, method):
    made = [
        in_memory.compute(planned(tmp_path / str(threads), method, llama_shapes(LLAMA), device="cuda", threads=threads))
        for threads in (1, 4)
    ]
    assert all(torch.equal(made[0][name], made[1][name]) for name in made[0])
