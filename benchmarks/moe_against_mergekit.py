"""Mixtures of experts against mergekit-moe itself: the same configs through both, every tensor and config.json compared.

    python benchmarks/moe_against_mergekit.py --peer FOLDER

Tiny random models of each family; every layout, gates from embeddings and hidden states, shared experts, scales and negative
prompts. mergekit runs in an environment of its own, which is made where FOLDER does not hold it. Random gates cannot be
compared: the draws are others.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from peers import Peer, install_peer

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from dense_models import PROMPTS, dense, save, write_tokenizer
from models import read_folder

import cuvee

CASES = [
    ("llama", "mixtral", None),
    ("mistral", "mixtral", None),
    ("llama", "deepseek", None),
    ("llama", "deepseek", []),
    ("mistral", "deepseek", []),
    ("qwen2", "qwen", ["v w"]),
    ("llama", "qwen", ["v w"]),
    ("mistral", "qwen", ["v w"]),
    ("qwen3", "qwen3", None),
]
"""Family, layout, prompts of the shared expert (None: there is none)."""
MODES = {"cheap_embed": 1e-6, "hidden": 0.03, "hidden_avg": 0.03}
"""How far a gate may be off: mergekit's forward pass is in bfloat16. All other tensors must be equal."""
WITHOUT_MEANING = {
    *(
        "transformers_version",
        "torch_dtype",
        "_name_or_path",
        "chunk_size_feed_forward",
        "is_encoder_decoder",
        "label2id",
    ),
    *(
        "id2label",
        "problem_type",
        "return_dict",
        "output_hidden_states",
        "output_attentions",
        "pretraining_tp",
        "mlp_bias",
    ),
    *("output_router_logits", "router_aux_loss_coef", "router_jitter_noise", "max_window_layers", "layer_types"),
}
"""Keys of config.json that mergekit writes and that say what the family takes for granted, or nothing."""
SPELT_OUT = {"rope_theta", "rope_scaling", "head_dim", "sliding_window"}
"""Keys that one of the two leaves to the family's default."""
ALIASES = {"num_local_experts": "num_experts"}


def main() -> None:
    """Compare all cases; the exit code is 1 where something differs."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--peer", type=Path, required=True, help="folder of mergekit's environment")
    arguments = parser.parse_args()
    peer = install_peer(arguments.peer.resolve())
    differences, ran = 0, 0
    with tempfile.TemporaryDirectory() as folder:
        for family, layout, shared in CASES:
            for mode in MODES:
                name = f"{family} to {layout}{'' if shared is None else ' with a shared expert'}, {mode}"
                found, off = compare(Path(folder) / f"{ran}", peer, family, layout, shared, mode)
                ran += 1
                differences += bool(found)
                print(f"{name}: {'; '.join(found) or f'equal, gates within {off:.1g}'}")
    print(f"{ran} configs, {differences} with differences")
    sys.exit(1 if differences else 0)


def compare(
    folder: Path, peer: Peer, family: str, layout: str, shared: list[str] | None, mode: str
) -> tuple[list[str], float]:
    """Build one mixture both ways; returns what differs, and how far gates are off."""
    config = write_models(folder, family) + write_config(folder, layout, shared, mode)
    (folder / "moe.yml").write_text(config)
    program = peer.folder / "bin" / "mergekit-moe"
    command = [str(program), str(folder / "moe.yml"), str(folder / "theirs"), "--device", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return [f"mergekit fails: {done.stderr.strip().splitlines()[-1][:200]}"], 0.0
    (folder / "ours.yml").write_text(config + "compat: mergekit\n")
    cuvee.build_moe(folder / "ours.yml", folder / "ours")
    theirs, ours = read_folder(folder / "theirs"), read_folder(folder / "ours")
    found = [f"only one has {name}" for name in sorted(theirs.keys() ^ ours.keys())]
    worst = 0.0
    for name in sorted(theirs.keys() & ours.keys()):
        off = float((theirs[name].float() - ours[name].float()).abs().max())
        is_gate = name.endswith(("mlp.gate.weight", "shared_expert_gate.weight"))
        worst = max(worst, off) if is_gate else worst
        if off > (MODES[mode] if is_gate else 0.0) or theirs[name].shape != ours[name].shape:
            found.append(f"{name} is off by {off:.3g}")
    return found + config_differences(folder), worst


def write_models(folder: Path, family: str) -> str:
    """Write a base and three experts; returns the config's first lines."""
    for number in range(4):
        model = dense(family, seed=0)
        torch.manual_seed(50 + number)
        for name, value in model.named_parameters():
            if ".mlp." in name and number:
                value.data += 0.02 * torch.randn_like(value)
        save(model, folder / f"model{number}")
    write_tokenizer(folder / "model0")
    return f"base_model: {folder / 'model0'}\n"


def write_config(folder: Path, layout: str, shared: list[str] | None, mode: str) -> str:
    """Return the rest of the config."""
    lines = [f"gate_mode: {mode}", f"architecture: {layout}", "dtype: float32", "experts:"]
    for number in range(3):
        lines += [f"  - source_model: {folder / f'model{number + 1}'}"]
        lines += [f"    positive_prompts: [{PROMPTS[number]}, a b]"]
        lines += ["    negative_prompts: [g g a]", "    residual_scale: 0.5"] if number == 1 else []
    if shared is not None:
        lines += ["shared_experts:", f"  - source_model: {folder / 'model1'}", "    residual_scale: 0.1"]
        lines += [f"    positive_prompts: [{', '.join(shared)}]"] if shared else []
    return "\n".join(lines) + "\n"


def config_differences(folder: Path) -> list[str]:
    """Return the keys of config.json that mean something else."""
    theirs, ours = (meaning(json.loads((folder / who / "config.json").read_text())) for who in ("theirs", "ours"))
    return [
        f"config.json: {key} is {theirs.get(key, 'absent')} there, {ours.get(key, 'absent')} here"
        for key in sorted(theirs.keys() | ours.keys())
        if theirs.get(key) != ours.get(key) and not (key in SPELT_OUT and (key not in theirs or key not in ours))
    ]


def meaning(config: dict[str, Any]) -> dict[str, Any]:
    """Return a config without what means nothing, under one name for each key."""
    return {ALIASES.get(key, key): value for key, value in config.items() if key not in WITHOUT_MEANING}


if __name__ == "__main__":
    main()
