"""Runs recipes through mergekit, in its own environment: called by `against_mergekit.py` with the path of a list of jobs.

Each job is {"recipe": file, "out": folder}. For each, one line of JSON on stdout: {"out": …, "error": …}. The masks that
mergekit draws are written beside the output, as masks.safetensors: `mask/model{k}/<tensor>`, k among the models without
the base.
"""

from __future__ import annotations

import json
import sys
import traceback
from pathlib import Path
from typing import Any

import torch
import yaml
from mergekit import config, merge, options
from mergekit.architecture import base as architecture
from mergekit.merge_methods import generalized_task_arithmetic as arithmetic
from safetensors.torch import save_file


class Draws:
    """Notes what `torch.bernoulli` draws, by tensor and model."""

    def __init__(self) -> None:
        self.masks: dict[str, torch.Tensor] = {}
        self.tensor, self.model, self.shape = "", -1, ()
        self._bernoulli = torch.bernoulli
        torch.bernoulli = self.bernoulli
        if not hasattr(arithmetic, "GTATask"):
            return  # not in 0.1.5, which is asked only for methods without draws
        task = arithmetic.GTATask
        execute, sparsify = task.execute, arithmetic.sparsify

        def executed(this: Any, *args: Any, **kwargs: Any) -> Any:
            self.tensor, self.model = this.weight_info.name, -1
            return execute(this, *args, **kwargs)

        def sparsified(delta: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            self.model += 1
            self.shape = delta.shape
            return sparsify(delta, *args, **kwargs)

        task.execute, arithmetic.sparsify = executed, sparsified

    def bernoulli(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        mask = self._bernoulli(*args, **kwargs)
        self.masks[f"mask/model{self.model}/{self.tensor}"] = mask.float().reshape(self.shape).clone()
        return mask


def run(job: dict[str, str], draws: Draws) -> str:
    """Run one recipe; returns the error, "" when there is none."""
    draws.masks = {}
    recipe = config.MergeConfiguration.model_validate(yaml.safe_load(Path(job["recipe"]).read_text()))
    chosen = options.MergeOptions(
        copy_tokenizer=False, write_model_card=False, quiet=True, random_seed=0, lora_merge_cache=job["out"] + "-lora"
    )
    merge.run_merge(recipe, job["out"], chosen)
    if draws.masks:
        save_file(draws.masks, str(Path(job["out"]) / "masks.safetensors"))
    return ""


def main() -> None:
    for name in ("ConfiguredModuleArchitecture", "ConfiguredModelArchitecture"):
        # an annotation of transformers 5 names torch, which 0.1.4 does not import
        getattr(architecture, name).model_rebuild(_types_namespace={**vars(architecture), "torch": torch})
    draws = Draws()
    for job in json.loads(Path(sys.argv[1]).read_text()):
        try:
            error = run(job, draws)
        except Exception as failure:
            error = f"{type(failure).__name__}: {str(failure).splitlines()[0] if str(failure) else ''}"
            if "-v" in sys.argv:
                traceback.print_exc()
        print(json.dumps({"out": job["out"], "error": error}), flush=True)


if __name__ == "__main__":
    main()
