"""A base and experts of one tiny family, as folders."""

from __future__ import annotations

import pytest
import torch
from dense_models import PROMPTS, dense, save, write_tokenizer

from cuvee.moe import ExpertEntry, MoeConfig


@pytest.fixture(scope="session")
def llamas(tmp_path_factory):
    """A folder of `base` and `expert0` … `expert2`, Llamas whose MLPs differ."""
    folder = tmp_path_factory.mktemp("llamas")
    save(dense("llama", seed=0), folder / "base")
    write_tokenizer(folder / "base")
    for number in range(3):
        expert = dense("llama", seed=0)
        torch.manual_seed(100 + number)
        for name, value in expert.named_parameters():
            if ".mlp." in name:
                value.data += 0.02 * torch.randn_like(value)
        save(expert, folder / f"expert{number}")
    return folder


@pytest.fixture
def config(llamas):
    """A config of these."""

    def make(**settings):
        entries = [ExpertEntry(str(llamas / f"expert{n}"), [PROMPTS[n]]) for n in range(3)]
        base = {"base_model": str(llamas / "base"), "experts": entries, "gate_mode": "cheap_embed"}
        return MoeConfig(**{**base, **settings})

    return make
