"""Every hinted family, and unseen ones that must come out right by inference, as transformers builds them."""

from __future__ import annotations

from typing import Any

import pytest
from families import HINTED, OUT, UNSEEN, Case, K, Q, V

from cuvee.architectures import Architecture, Role, describe

CASES = [pytest.param(case, id=name) for name, case in {**HINTED, **UNSEEN}.items()]


@pytest.fixture
def described(case: Case, build: Any) -> tuple[Architecture, dict[str, tuple[int, ...]]]:
    """The case's model, described from its names and its config as written to disk."""
    model = build(case.config, case.model, dict(case.settings))
    return describe(model.shapes, model.config), model.shapes


Model = tuple[Architecture, dict[str, tuple[int, ...]]]


@pytest.mark.parametrize("case", CASES)
def test_every_stack_is_found_with_its_length(case: Case, described: Model) -> None:
    architecture, _ = described
    assert sorted(architecture.stacks.values()) == sorted(case.stacks.values())
    for end, layers in case.stacks.items():
        assert [n for prefix, n in architecture.stacks.items() if prefix.endswith(end)].count(layers) >= 1


@pytest.mark.parametrize("case", CASES)
def test_every_tensor_of_a_block_has_a_layer_and_no_other_has(case: Case, described: Model) -> None:
    architecture, shapes = described
    for name in shapes:
        meaning = architecture.meaning(name)
        inside = any(name.startswith(f"{prefix}.") for prefix in architecture.stacks)
        assert (meaning.layer is not None) == inside, name
        assert architecture.n_layers(name) == (architecture.stacks[meaning.stack] if inside else 0)
        position = architecture.position(name)
        assert position is None if meaning.layer is None else 0.0 <= position <= 1.0


@pytest.mark.parametrize("case", CASES)
def test_roles_are_those_of_the_field(case: Case, described: Model) -> None:
    architecture, shapes = described
    for end, role in case.roles.items():
        names = [name for name in shapes if name.endswith(end)]
        assert names, f"no tensor ends in {end}"
        assert {architecture.meaning(name).role for name in names} == {role}, names


@pytest.mark.parametrize("case", CASES)
def test_every_tensor_has_a_role(case: Case, described: Model) -> None:
    architecture, shapes = described
    unknown = [name for name in shapes if architecture.meaning(name).role is Role.OTHER]
    assert [name for name in unknown if not name.endswith(case.unknown or "\0")] == []


@pytest.mark.parametrize("case", CASES)
def test_heads_of_the_model_and_of_its_tensors(case: Case, described: Model) -> None:
    architecture, shapes = described
    assert (architecture.heads, architecture.kv_heads) == case.heads or architecture.family == "resnet"
    for name, shape in shapes.items():
        meaning = architecture.meaning(name)
        if meaning.heads is not None:
            assert meaning.role in (Q, K, V, OUT)
            assert shape[-1 if meaning.role is OUT else 0] % meaning.heads == 0
    if case.heads != (None, None) and "swin" not in case.config.lower():
        main = [n for n in shapes if architecture.meaning(n).role is Q and n.endswith(".weight")]
        found = {architecture.meaning(name).heads for name in main if architecture.meaning(name).layer is not None}
        assert not main or case.heads[0] in found


@pytest.mark.parametrize("case", CASES)
def test_family_is_named_only_where_hinted(case: Case, described: Model) -> None:
    assert described[0].family == case.family


@pytest.mark.parametrize("case", CASES)
def test_ties_are_found_from_a_config_that_names_only_what_differs(case: Case, described: Model) -> None:
    assert described[0].tied == case.tied


@pytest.mark.parametrize("case", CASES)
def test_a_file_without_its_tied_head_has_the_same_ties(case: Case, described: Model, build: Any) -> None:
    model = build(case.config, case.model, dict(case.settings))
    stored = {name: shape for name, shape in model.shapes.items() if name not in case.tied}
    tied = describe(stored, model.config).tied
    weights = {alias: source for alias, source in case.tied.items() if alias.endswith("weight")}
    assert {alias: tied.get(alias) for alias in weights} == weights


@pytest.mark.parametrize("case", CASES)
def test_layers_and_roles_do_not_depend_on_the_config(case: Case, build: Any) -> None:
    model = build(case.config, case.model, dict(case.settings))
    bare, full = describe(model.shapes), describe(model.shapes, model.config)
    assert bare.stacks == full.stacks
    for name in model.shapes:
        one, other = bare.meaning(name), full.meaning(name)
        assert (one.layer, one.stack, one.role, one.expert) == (other.layer, other.stack, other.role, other.expert)
