"""`cuvee methods`."""

from __future__ import annotations

import pytest

from cuvee.cli.method_pages import example_recipe
from cuvee.methods.registry import edits, methods
from cuvee.recipes import parse_recipe, prepare

METHODS = methods()
EDITS = edits()


@pytest.mark.parametrize("columns", [80, 120])
def test_the_list_fits_the_window_and_names_every_method(run, columns):
    outcome = run("methods", columns=columns)
    assert outcome.code == 0
    lines = outcome.out.split("\n")
    assert all(len(line) <= columns for line in lines)
    first_words = {line.split()[0] for line in lines if line.strip()}
    assert set(METHODS) <= first_words
    assert set(EDITS) <= first_words


def test_the_list_says_what_a_method_does_and_what_it_is_for(run):
    (narrow,) = (line for line in run("methods", columns=80).out.split("\n") if line.startswith("  task_arithmetic "))
    assert narrow.split(maxsplit=1)[1] == "Add up task vectors.                    2212.04089"
    (wide,) = (line for line in run("methods", columns=120).out.split("\n") if line.startswith("  task_arithmetic "))
    for fact in ("deltas", "required", "1+", "Add up task vectors.", "2212.04089"):
        assert fact in wide


@pytest.mark.parametrize("columns", [80, pytest.param(120, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", [*METHODS, *EDITS])
def test_every_page_fits_the_window_and_shows_its_parameters_and_a_recipe(run, name, columns):
    outcome = run("methods", name, columns=columns)
    assert outcome.code == 0
    known = METHODS[name] if name in METHODS else EDITS[name]
    for parameter in known.parameters:
        assert f"\n  {parameter}  " in outcome.out
    assert "A recipe to start from" in outcome.out
    assert str(known.paper).split(" (")[0][:30] in outcome.out
    long = [line for line in outcome.out.split("\n") if len(line) > columns + 2]  # combining accents take no room
    assert not long


def test_a_page_shows_the_formula_and_where_it_differs(run):
    out = run("methods", "ties", columns=80).out
    assert "\n  s = sgn Σ weight_i τ̂_i\n" in out
    assert "share of each task vector kept, the largest magnitudes; 1" in out
    assert "a number in [0, 1], one for each model; default 1" in out
    assert "Beside the paper and mergekit" in out


def test_a_page_of_an_edit_shows_the_same(run):
    out = run("methods", "star", columns=80).out
    assert "\n  r = the fewest with s_1 + … + s_r ≥ eta / 100 · S\n" in out
    assert "\n  cost          K decompositions\n" in out
    assert "Beside the paper and mergekit" in out


@pytest.mark.parametrize("columns", [80, 120])
def test_the_list_says_what_is_a_reconstruction_and_what_has_no_paper(run, columns):
    out = run("methods", columns=columns).out
    kept = [one for one in (*METHODS.values(), *EDITS.values()) if one.status != "published"]
    for status in ("reconstruction", "community"):
        assert out.count(status) == sum(one.status == status for one in kept)


@pytest.mark.parametrize(
    ("name", "found", "right"),
    [
        ("seme", "there is no method seme", "latent_map"),
        ("fda", "fda learns inputs", "cuvee fda BASE"),
        ("lwtpv", "unknown merge method 'lwtpv'", "did you mean 'lwptv'?"),
    ],
)
def test_a_name_that_is_no_method_gets_the_reason_and_what_there_is_instead(run, name, found, right):
    outcome = run("methods", name)
    assert outcome.code != 0 and found in outcome.err and right in outcome.err and not outcome.out


@pytest.mark.parametrize("name", METHODS)
def test_every_example_is_a_valid_recipe(name):
    recipe = parse_recipe(example_recipe(METHODS[name]))
    assert prepare(recipe).method.name == name


def test_json_has_all_methods_and_edits(run):
    found = run("methods", "--json").json
    assert [one["name"] for one in found["methods"]] == list(METHODS)
    assert [one["name"] for one in found["edits"]] == list(EDITS)


def test_json_of_one_method_has_its_parameters(run):
    found = run("methods", "slerp", "--json").json
    t = next(parameter for parameter in found["parameters"] if parameter["name"] == "t")
    assert t == {
        "name": "t",
        "accepts": "a number in [0, 1]",
        "per_model": False,
        "required": True,
        "default": None,
        "meaning": "where on the arc; may be a gradient over the layers.",
    }
    assert found["models"] == [2, 2]


@pytest.mark.parametrize("name", EDITS)
def test_the_example_of_an_edit_is_a_valid_recipe(run, name):
    recipe = parse_recipe(run("methods", name, "--json").json["example"])
    prepared = prepare(recipe)
    assert [edit.name for edit, _ in (*prepared.before, *prepared.after)] == [name]
