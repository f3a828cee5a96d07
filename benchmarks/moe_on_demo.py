"""Mixtures of the demo's experts, gated by passages of their training text, scored as `make demo` scores merges.

    python benchmarks/moe_on_demo.py [GATE_MODE …]

Trains the demo's models first where `CUVEE_HOME` does not hold them. Prints bits per byte on held-out text of each domain, the
normalised score of the demo, and the share of each expert's prompts' tokens that reach it, beside chance.
"""

from __future__ import annotations

import math
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers

import cuvee
from cuvee.evaluation.domains import Corpus
from cuvee.evaluation.scoring import recovered
from cuvee.evaluation.suites import BASE, Built, suite
from cuvee.evaluation.suites.lm import form, read_corpora
from cuvee.moe import ExpertEntry, MoeConfig, plan_moe
from cuvee.moe.forward import Pass
from cuvee.moe.routing import measure_routing

MODES = ("cheap_embed", "hidden", "hidden_avg", "router_input")
WINDOW, SCORED_BYTES = 64, 40_000
PROMPTS, PROMPT_BYTES = 24, 48


def main() -> None:
    """Build and score a mixture for each gate mode, with two experts a token and with one."""
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    built = suite("lm").build(quick=True)
    texts = {
        name: corpus for name, corpus in read_corpora(form(quick=True)).items() if built.tasks[name].kind != "unseen"
    }
    print(f"{'':22}", *(f"{name[:8]:>8}" for name in texts))
    own = {name: scores(texts, built.folder / name) for name in (BASE, *built.experts)}
    for name, found in own.items():
        print(f"{name:22}", *(f"{score:8.3f}" for score in found.values()))
    for mode in sys.argv[1:] or MODES:
        for per_token in (2, 1):
            with tempfile.TemporaryDirectory() as folder:
                try_mode(built, texts, Path(folder) / "mixture", own, mode, per_token)


def try_mode(
    built: Built, texts: Mapping[str, Corpus], out: Path, own: dict[str, dict[str, float]], mode: str, per_token: int
) -> None:
    """Build one mixture and print its scores."""
    entries = [ExpertEntry(reference, passages(texts[name].train)) for name, reference in built.experts.items()]
    mixture = plan_moe(MoeConfig(built.base, entries, gate_mode=mode, experts_per_token=per_token))
    cuvee.run(mixture.plan, out)
    found = scores(texts, out)
    kept = [recovered(own[BASE][name], own[name][name], found[name]) for name in built.experts]
    print(f"{f'{mode}, {per_token} a token':22}", *(f"{score:8.3f}" for score in found.values()))
    said = f"    normalised {100 * sum(kept) / len(kept):.0f} %"
    if mixture.prompts:
        routing = measure_routing(mixture, out, Pass())
        said += f"; own prompts {' '.join(f'{share:.2f}' for share in routing.own)}, chance {routing.chance:.2f}"
    print(said, flush=True)


def passages(text: bytes) -> list[str]:
    """Return passages of a text at equal distances."""
    starts = range(0, len(text), max(1, len(text) // PROMPTS))
    return [text[start : start + PROMPT_BYTES].decode("utf-8", "ignore") for start in starts][:PROMPTS]


def scores(texts: Mapping[str, Corpus], folder: Path) -> dict[str, float]:
    """Return bits per byte on the beginning of each domain's test text."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return {name: bits_per_byte(model, corpus.test[:SCORED_BYTES]) for name, corpus in texts.items()}


def bits_per_byte(model: Any, text: bytes) -> float:
    """Return the mean of −log2 p(byte | the bytes before it in its window)."""
    tokens = torch.frombuffer(bytearray(text), dtype=torch.uint8).long().unfold(0, WINDOW + 1, WINDOW)
    with torch.inference_mode():
        nats = [
            torch.nn.functional.cross_entropy(
                model(part[:, :-1]).logits.flatten(0, 1), part[:, 1:].flatten(), reduction="sum"
            ).item()
            for part in tokens.split(64)
        ]
    return math.fsum(nats) / (len(tokens) * WINDOW * math.log(2))


if __name__ == "__main__":
    main()
