"""Golden cases: one folder each, inputs and what a reference implementation made of them (../shared/golden/README.md)."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

import cuvee
from cuvee.methods.registry import edits, methods

HERE = Path(__file__).parent
SELECTION = HERE / "cases"
SHARED = HERE.parents[2] / "shared" / "golden"
PENDING = HERE / "pending.txt"

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class GoldenCase:
    """One case; `name` is METHOD/CASE."""

    folder: Path

    @property
    def name(self) -> str:
        return f"{self.folder.parent.name}/{self.folder.name}"

    @property
    def description(self) -> dict[str, Any]:
        return json.loads((self.folder / "case.json").read_text())

    @property
    def runner(self) -> Callable[[GoldenCase, Path], Tensors] | None:
        """What computes it; None when its method is not built."""
        method = self.description["method"]
        if method in RUNNERS:
            return RUNNERS[method]
        return run_method if method in methods() or method in edits() else None

    def inputs(self) -> tuple[list[Tensors], Tensors | None, Tensors]:
        """Return the models, the base where there is one, and all else that the method is given."""
        models: dict[str, Tensors] = {}
        others: Tensors = {}
        for key, tensor in load_file(self.folder / "inputs.safetensors").items():
            owner, _, name = key.partition("/")
            if owner == "base" or (owner.startswith("model") and owner[5:].isdigit()):
                models.setdefault(owner, {})[name] = tensor
            else:
                others[key] = tensor
        base = models.pop("base", None)
        return [models[f"model{n}"] for n in range(len(models))], base, others

    def expected(self) -> Tensors:
        return load_file(self.folder / "expected.safetensors")


def cases_in(root: Path) -> list[GoldenCase]:
    """Return the cases under a folder, by name."""
    return [GoldenCase(path.parent) for path in sorted(root.glob("*/*/case.json"))]


def run_method(case: GoldenCase, folder: Path) -> Tensors:
    """Merge in memory."""
    models, base, others = case.inputs()
    said = case.description
    return cuvee.merge_tensors(
        said["method"], models, base, statistics=others, compat=said.get("compat"), **said["params"]
    )


def run_yaml(case: GoldenCase, folder: Path) -> Tensors:
    """Write the models as folders and run the recipe end to end."""
    models, base, _ = case.inputs()
    for name, tensors in {**{f"model{n}": t for n, t in enumerate(models)}, "base": base}.items():
        if tensors is not None:
            write_llama(folder / name, tensors)
    recipe = case.description["params"]["yaml"]
    recipe = re.sub(r"\b(model: |base_model: )(base|model\d)\b", rf"\g<1>{folder}/\g<2>", recipe)
    if case.description.get("compat"):
        recipe += f"\ncompat: {case.description['compat']}\n"
    path = folder / "recipe.yml"
    path.write_text(recipe)
    cuvee.merge(path, folder / "out")
    return load_file(folder / "out" / "model.safetensors")


def write_llama(folder: Path, tensors: Mapping[str, torch.Tensor], heads: int = 4, kv_heads: int = 2) -> None:
    """Write tensors as the folder of a Llama model."""
    folder.mkdir()
    save_file(dict(tensors), folder / "model.safetensors", {"format": "pt"})
    layers = {name.split(".")[2] for name in tensors if name.startswith("model.layers.")}
    vocabulary, hidden = tensors["model.embed_tokens.weight"].shape
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "num_hidden_layers": len(layers),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocabulary,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(config))


WORDS = ("<unk>", "<s>", "</s>", *"abcdefg")


def run_moe(case: GoldenCase, folder: Path) -> Tensors:
    """Write the models as folders, the base with its tokenizer, and build the mixture end to end."""
    models, _, _ = case.inputs()
    for number, tensors in enumerate(models):
        write_llama(folder / f"model{number}", tensors, heads=2, kv_heads=1)
    write_word_tokenizer(folder / "model0", {word: n for n, word in enumerate(WORDS)})
    config = case.description["params"]["yaml"]
    for number in range(len(models)):
        config = config.replace(f"model: model{number}\n", f"model: {folder / f'model{number}'}\n")
    config += f"\ncompat: {case.description['compat']}\n" if case.description.get("compat") else ""
    path = folder / "moe.yml"
    path.write_text(config)
    cuvee.build_moe(path, folder / "out")
    said = json.loads((folder / "out" / "config.json").read_text())
    wanted = {key: value for key, value in case.description["params"]["config"].items() if value is not None}
    assert {key: said.get(key) for key in wanted} == wanted
    return load_file(folder / "out" / "model.safetensors")


def run_tokenizers(case: GoldenCase, folder: Path) -> Tensors:
    """Give each model its vocabulary, run the recipe, and return the rows in the order of the expected vocabulary."""
    models, _, _ = case.inputs()
    said = case.description["params"]
    for number, tensors in enumerate(models):
        write_llama(folder / f"model{number}", tensors)
        write_word_tokenizer(folder / f"model{number}", said["input_vocabs"][f"model{number}"])
    recipe = re.sub(r"\b((?:base_)?model: |source: )(model\d)\b", rf"\g<1>{folder}/\g<2>", said["yaml"])
    (folder / "recipe.yml").write_text(f"{recipe}\ncompat: {case.description['compat']}\n")
    cuvee.merge(folder / "recipe.yml", folder / "out")
    merged = load_file(folder / "out" / "model.safetensors")
    written = json.loads((folder / "out" / "tokenizer.json").read_text())
    ids = {**written["model"]["vocab"], **{entry["content"]: entry["id"] for entry in written["added_tokens"]}}
    assert ids.keys() == said["output_vocab"].keys()
    assert json.loads((folder / "out" / "config.json").read_text())["vocab_size"] == said["output_config_vocab_size"]
    order = [ids[token] for token, _ in sorted(said["output_vocab"].items(), key=lambda pair: pair[1])]
    return {n: t[order] if n.startswith(("lm_head", "model.embed")) else t for n, t in merged.items()}


def write_word_tokenizer(folder: Path, vocabulary: Mapping[str, int]) -> None:
    """Write a tokenizer of whole words; what stands in angle brackets is an added token."""
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    content = {
        "version": "1.0",
        "added_tokens": [
            {"id": n, "content": t, **special}
            for t, n in sorted(vocabulary.items(), key=lambda pair: pair[1])
            if t.startswith("<")
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": dict(vocabulary), "unk_token": "<unk>"},
    }
    (folder / "tokenizer.json").write_text(json.dumps(content))
    said = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(said))


def run_tokensurgeon(case: GoldenCase, folder: Path) -> Tensors:
    """Write the targets as combinations of shared rows, for each k."""
    from cuvee.tokenizers.pursuit import orthogonal_pursuit

    ((given,), _, _), found = case.inputs(), {}
    for k in case.description["params"]["k"]:
        indices, coefficients = orthogonal_pursuit(given["targets_donor"], given["shared_donor"], k)
        rows = torch.einsum("tk,tkh->th", coefficients, given["shared_base"][indices])
        found |= {f"k{k}/indices": indices, f"k{k}/coeffs": coefficients, f"k{k}/new_rows": rows}
    return found


def run_tall_masks(case: GoldenCase, folder: Path) -> Tensors:
    """Compute the mask of each task, what it recovers of the model, and all of its bits in one row."""
    from cuvee.methods.pieces.localize import tall_mask

    models, base, _ = case.inputs()
    assert base is not None
    deltas = [{name: model[name] - base[name] for name in base} for model in models]
    merged = {name: 0.3 * sum(delta[name] for delta in deltas) for name in base}
    found: Tensors = {}
    for t, delta in enumerate(deltas):
        masks = {n: tall_mask(delta[n], merged[n], case.description["params"]["lambda_"]) for n in sorted(base)}
        bits = torch.cat([mask.reshape(-1) for mask in masks.values()])
        found |= {f"mask{t}/{name}": mask for name, mask in masks.items()}
        found |= {f"model{t}/{name}": base[name] + mask * merged[name] for name, mask in masks.items()}
        found[f"packed{t}"] = torch.from_numpy(np.packbits(bits.numpy()))
    return found


def run_adapter(case: GoldenCase, folder: Path) -> Tensors:
    """Write base and adapter as folders and read `base+adapter` tensor by tensor."""
    from cuvee.checkpoints.sources import read_all

    (adapter,), base, _ = case.inputs()
    (folder / "base").mkdir()
    (folder / "adapter").mkdir()
    assert base is not None
    save_file(base, folder / "base" / "model.safetensors", {"format": "pt"})
    prefixed = {f"base_model.model.{name}": tensor for name, tensor in adapter.items()}
    save_file(prefixed, folder / "adapter" / "adapter_model.safetensors", {"format": "pt"})
    config = {"peft_type": "LORA", "bias": "none", "target_modules": ["fc1", "fc2"], **case.description["params"]}
    config.pop("scaling", None)  # says what must come out of r and alpha
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    model = cuvee.open_model(f"{folder / 'base'}+{folder / 'adapter'}")
    try:
        return {name: read_all(source, torch.float32) for name, source in model.tensors.items()}
    finally:
        model.close()


def run_copa_merging(case: GoldenCase, folder: Path) -> Tensors:
    """Merge folders of adapters into one, and multiply its factors."""
    models, _, _ = case.inputs()
    rank = next(len(tensor) for name, tensor in models[0].items() if "lora_A" in name)
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": ["fc1"]}
    for number, adapter in enumerate(models):
        (folder / f"model{number}").mkdir()
        save_file(adapter, folder / f"model{number}" / "adapter_model.safetensors", {"format": "pt"})
        (folder / f"model{number}" / "adapter_config.json").write_text(json.dumps(config))
    names = [str(folder / f"model{number}") for number in range(len(models))]
    cuvee.merge(cuvee.Recipe("copa_merging", models=names, parameters=case.description["params"]), folder / "out")
    merged = load_file(folder / "out" / "adapter_model.safetensors")
    found = {f"adapter/{name}": factor for name, factor in merged.items()}
    for module in sorted({name.partition(".lora_")[0] for name in models[0]}):
        down, up = (merged[f"{module}.lora_{factor}.weight"] for factor in "AB")
        found[f"delta/{module}.weight"] = up @ down
    return found


RUNNERS = {
    "copa_merging": run_copa_merging,
    "mergekit_moe": run_moe,
    "mergekit_slices": run_yaml,
    "mergekit_yaml": run_yaml,
    "tokenizer_merge": run_tokenizers,
    "tall_masks": run_tall_masks,
    "tokensurgeon": run_tokensurgeon,
    "peft_load": run_adapter,
}


def deviations(got: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], tolerance: float) -> list[str]:
    """Say which tensors differ by more than tolerance × max(1, their largest magnitude)."""
    said = [f"{name} is missing" for name in expected.keys() - got.keys()]
    said += [f"{name} was not expected" for name in got.keys() - expected.keys()]
    for name in expected.keys() & got.keys():
        right, found = expected[name].double(), got[name].double()
        if right.shape != found.shape:
            said.append(f"{name} is {tuple(found.shape)}, not {tuple(right.shape)}")
        elif right.numel():
            error = (found - right).abs().max().item()
            allowed = tolerance * max(1.0, right.abs().max().item())
            if not error <= allowed:
                said.append(f"{name} is off by {error:.3g}, allowed are {allowed:.3g}")
    return sorted(said)


def pending() -> list[str]:
    """Return the entries of pending.txt: METHOD/CASE, or METHOD/* for a method that is not built."""
    lines = (line.partition("#")[0].strip() for line in PENDING.read_text().splitlines())
    return [line for line in lines if line]
