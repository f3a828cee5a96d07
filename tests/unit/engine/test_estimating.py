"""Estimating: a guess that is there, grows with the work, and fails nothing."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import cuvee
from cuvee.engine.estimating import estimate
from cuvee.methods.registry import ADAPTERS, methods
from cuvee.recipes import RecipeModel
from cuvee.testing.specimens import statistics_of

FACTORS = ["base_model.model.q_proj.lora_A.weight", "base_model.model.q_proj.lora_B.weight"]
NAMES = [f"model.layers.{i}.mlp.up_proj.weight" for i in range(2)] + ["model.norm.weight"]


def recipe(method: str, **settings: object) -> cuvee.Recipe:
    generator = torch.Generator().manual_seed(0)
    known = methods()[method]
    names = FACTORS if known.on is ADAPTERS else NAMES
    models = [{n: torch.randn(8, 8, generator=generator) for n in names} for _ in range(6)]
    base, *experts = models
    has_base = known.base.name in ("REQUIRED", "ENDPOINT")
    high = known.models[1] or (2 if known.models[0] <= 2 else 5)
    if known.base.name == "ENDPOINT":
        high -= 1
    told = statistics_of(known.needs, high)
    given = [RecipeModel(one, statistics=own or None) for one, own in zip(experts[:high], told, strict=True)]
    return cuvee.Recipe(method, models=given, base_model=base if has_base else None, parameters=settings)


QUICK = {"linear", "slerp", "ties", "tsv_m", "opcm"}  # one of each kind


@pytest.mark.parametrize("method", [pytest.param(m, marks=[] if m in QUICK else [pytest.mark.slow]) for m in methods()])
def test_every_method_has_an_estimate(method):
    required = {p.name: 0.5 for p in methods()[method].parameters.values() if p.required}
    found = estimate(cuvee.plan(recipe(method, **required), threads=2))
    assert found.compute_s > 0
    assert found.seconds == found.read_s + found.compute_s + found.write_s


def test_more_to_write_takes_longer():
    plan = cuvee.plan(recipe("linear"))
    assert estimate(dataclasses.replace(plan, bytes_written=10**12)).write_s > estimate(plan).write_s


def test_a_merge_of_nothing_but_copies_is_estimated():
    plan = cuvee.plan(dataclasses.replace(recipe("linear"), exclude=("*",)))
    assert estimate(plan).compute_s == 0
