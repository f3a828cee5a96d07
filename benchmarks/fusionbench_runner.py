"""One merge by FusionBench, timed: run by the Python of FusionBench's environment, never imported.

    python fusionbench_runner.py METHOD OUT BASE EXPERT...

Reads model.safetensors of each folder into a module of plain layers, merges in float32 as its vision pools do, writes the
result in bf16, and prints the seconds of reading, merging and writing, imports not counted.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import torch
from fusion_bench.method import base_algorithm  # noqa: F401
from fusion_bench.modelpool import BaseModelPool
from safetensors.torch import load_file, save_file
from torch import nn


def module_of(weights: dict[str, torch.Tensor]) -> nn.Module:
    """Return a tree of modules with these parameters: `nn.Linear` for matrices within layers."""
    root = nn.Module()
    for name, value in weights.items():
        *path, last = name.split(".")
        parent = root
        for part in path[:-1]:
            if not hasattr(parent, part):
                parent.add_module(part, nn.Module())
            parent = getattr(parent, part)
        if value.ndim == 2 and "proj" in name:
            leaf: nn.Module = nn.Linear(value.shape[1], value.shape[0], bias=False, device="meta")
        else:
            leaf = nn.Module()
        leaf.register_parameter(last, nn.Parameter(value.float(), requires_grad=False))
        parent.add_module(path[-1], leaf)
    return root


def read(folder: str) -> nn.Module:
    """Return a model; layers are called `encoder`, which is where DOGE looks for them."""
    weights = load_file(Path(folder) / "model.safetensors")
    return module_of({name.replace("model.layers", "encoder.layers"): value for name, value in weights.items()})


def merge(method: str, pool: dict[str, nn.Module]) -> nn.Module:
    """Merge by an algorithm of FusionBench, with the settings of its paper."""
    not_matrices = ["model.embed_tokens.weight", "lm_head.weight"]
    if method == "ties":
        from fusion_bench.method import TiesMergingAlgorithm

        return TiesMergingAlgorithm(scaling_factor=0.3, threshold=20, remove_keys=[], merge_func="sum").run(pool)
    if method == "magmax":
        from fusion_bench.method.magmax import MagMaxAlgorithm

        return MagMaxAlgorithm(scaling_factor=0.5).run(pool)
    if method == "consensus_ta":
        return consensus(pool)
    models = BaseModelPool(pool)
    if method == "tsv_m":
        from fusion_bench.method.task_singular_vector import TaskSingularVectorMerging

        return TaskSingularVectorMerging(alpha=1.0, exclude_keys=not_matrices).run(models)
    if method in ("iso_c", "iso_cts"):
        from fusion_bench.method.isotropic_merging import iso

        if method == "iso_c":
            return iso.IsotropicMergingInCommonSubspace(1.0, not_matrices).run(models)
        return iso.IsotropicMergingInCommonAndTaskSubspace(1.0, 0.8, not_matrices).run(models)
    if method == "wudi_merging":
        from fusion_bench.method.wudi.wudi import WUDIMerging

        return WUDIMerging(iter_num=300, exclude_keys=not_matrices).run(models)
    if method == "doge":
        from fusion_bench.method.doge_ta.doge_ta import DOGE_TA_Algorithm

        class OnLayers(DOGE_TA_Algorithm):
            """The algorithm without the norms, whose vectors it cannot decompose."""

            def compute_task_vectors(self, *given):
                found = super().compute_task_vectors(*given)
                return [{k: v for k, v in one.items() if v.ndim == 2} for one in found]

        return OnLayers(subspace=6, K=30, lamda=0.07).run(models)
    if method == "opcm":
        from fusion_bench.method.opcm.opcm import OPCMForCLIP

        algorithm = OPCMForCLIP(alpha=0.5, shuffle_order=False, save_on_every_step=False)
        algorithm._program = SimpleNamespace(taskpool=SimpleNamespace(_test_datasets={}))
        return algorithm.run(models)
    raise SystemExit(f"no such method here: {method}")


def consensus(pool: dict[str, nn.Module], mask_lambda: float = 0.4, least: int = 2) -> nn.Module:
    """Add task vectors and keep what several tasks use, by FusionBench's TALL masks: it has no algorithm around them."""
    from fusion_bench.method.tall_mask.utils import generate_task_masks
    from fusion_bench.utils import state_dict_to_vector, vector_to_state_dict

    base = pool["_pretrained_"].state_dict()
    flat = torch.stack([state_dict_to_vector(model.state_dict()) for model in pool.values()])
    deltas, total = flat[1:] - flat[0], (flat[1:] - flat[0]).sum(0)
    masks = generate_task_masks(deltas, flat[1:], flat[0], tv=total, tall_mask_lambda=mask_lambda)
    merged = flat[0] + total * (masks.sum(0) >= least)
    pool["_pretrained_"].load_state_dict(vector_to_state_dict(merged, base))
    return pool["_pretrained_"]


def main() -> None:
    """Merge, and print the seconds."""
    method, out, *folders = sys.argv[1:]
    torch.manual_seed(0)
    start = time.perf_counter()
    pool = {"_pretrained_": read(folders[0])} | {f"expert{k}": read(one) for k, one in enumerate(folders[1:])}
    merged = merge(method, pool)
    Path(out).mkdir(parents=True, exist_ok=True)
    state = {name: value.detach().to(torch.bfloat16).contiguous() for name, value in merged.state_dict().items()}
    save_file(state, Path(out) / "model.safetensors")
    print(json.dumps({"seconds": time.perf_counter() - start}))


if __name__ == "__main__":
    main()
