"""Plans of copies: renamed, laid end to end, changed elementwise; with the lineage of each input."""

from __future__ import annotations

import json

import pytest
import torch
from models import assert_equal, contents, read_folder, write_model
from safetensors.torch import load_file

import cuvee
from cuvee.checkpoints.sources import MemoryTensor
from cuvee.engine.copying import plan_copies
from cuvee.engine.plan import Asked
from cuvee.engine.tasks import Input, Task
from cuvee.engine.verifying import verify
from cuvee.errors import NonFinite
from cuvee.tensors.digests import TensorDigest
from cuvee.tensors.dtypes import DTYPES
from cuvee.tensors.layout import Layout

ROWS = {"a": (300, 257), "b": (300, 257), "c": (3, 1)}


def tensors(seed: int, dtype: torch.dtype = torch.bfloat16) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in ROWS.items()}


def stacked(workplace, *, change=None, threads=1, memory=None, dtype="BF16"):
    """Plan (4, 300, 257): a and b of two models, end to end."""
    for seed, name in enumerate(("one", "two")):
        if not (workplace / name).exists():
            write_model(workplace / name, tensors(seed))
    models = {n: cuvee.open_model(name) for n, name in enumerate(("one", "two"))}
    inputs = [Input(n, models[n].tensors[key], key, change) for n in models for key in ("a", "b")]
    tasks = [
        Task("stack", Layout((4, 300, 257)), DTYPES[dtype], tuple(inputs)),
        Task("made", Layout((2,)), DTYPES["F32"], (Input(-2, MemoryTensor(torch.tensor([1.0, 2.0]))),)),
    ]
    asked = Asked({"stack": True}, "", "stacking")
    return plan_copies(asked, models, tasks, config=None, threads=threads, memory=memory, roles={1: "second"})


def test_inputs_laid_end_to_end_are_the_stack(workplace):
    cuvee.run(stacked(workplace), "out")
    one, two = tensors(0), tensors(1)
    want = {"stack": torch.stack([one["a"], one["b"], two["a"], two["b"]]), "made": torch.tensor([1.0, 2.0])}
    assert_equal(read_folder(workplace / "out"), want)
    assert not verify(workplace / "out").problems


def test_the_manifest_names_each_input_with_the_digest_of_its_own_tensor(workplace):
    cuvee.run(stacked(workplace), "out")
    manifest = json.loads((workplace / "out" / "cuvee.json").read_text())
    for number, entry in enumerate(manifest["inputs"]):
        stored = load_file(workplace / entry["model"] / "model.safetensors")
        assert entry["role"] == ["model 0", "second"][number]
        assert entry["unread"] == ["c"]
        for name, digest in entry["tensors"].items():
            whole = TensorDigest(DTYPES["BF16"], Layout(ROWS[name]))
            whole.add(0, stored[name].reshape(-1).view(torch.uint8).numpy())
            assert digest == whole.hexdigest()


def test_threads_and_small_blocks_leave_no_trace(workplace):
    cuvee.run(stacked(workplace), "out")
    cuvee.run(stacked(workplace, threads=3, memory=450_000_000), "again")
    small = stacked(workplace)
    budget = small.budget.__class__(2, 1 << 16, 0)
    cuvee.run(type(small)(**{**vars(small), "budget": budget}), "small")
    for other in ("again", "small"):
        assert contents(workplace / other) == contents(workplace / "out")


def test_a_change_sees_each_element_once_at_its_own_place(workplace):
    def change(values, start):
        return values * 2 + torch.arange(start, start + len(values), dtype=torch.float32)

    cuvee.run(stacked(workplace, change=change, dtype="F32"), "out")
    ramp = torch.arange(300 * 257, dtype=torch.float32).view(300, 257)
    want = [tensors(seed)[key].float() * 2 + ramp for seed in (0, 1) for key in ("a", "b")]
    assert torch.equal(read_folder(workplace / "out")["stack"], torch.stack(want))


def test_nan_in_one_part_is_named_with_its_own_model_and_tensor(workplace):
    broken = tensors(1)
    broken["b"][7, 7] = float("nan")
    write_model(workplace / "two", broken)
    with pytest.raises(NonFinite, match="tensor 'b' of 'two' holds NaN or infinite values: 1 of 77100"):
        cuvee.run(stacked(workplace), "out")
    assert not (workplace / "out").exists()
