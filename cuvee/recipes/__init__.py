"""Recipes: what the user wrote, read, checked, and resolved for each tensor."""

from cuvee.recipes.meaning import explain
from cuvee.recipes.parts import Part, Region
from cuvee.recipes.recipe import Module, Recipe, RecipeModel, Slice
from cuvee.recipes.resolving import Resolver
from cuvee.recipes.settings import MISSING, evaluate
from cuvee.recipes.staging import everywhere
from cuvee.recipes.validation import Checked, Prepared, PreparedPart, check, prepare, validate
from cuvee.recipes.yaml_form import load_recipe, parse_recipe

__all__ = [
    "MISSING",
    "Checked",
    "Module",
    "Part",
    "Prepared",
    "PreparedPart",
    "Recipe",
    "RecipeModel",
    "Region",
    "Resolver",
    "Slice",
    "check",
    "evaluate",
    "everywhere",
    "explain",
    "load_recipe",
    "parse_recipe",
    "prepare",
    "validate",
]
