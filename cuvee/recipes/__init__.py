"""Recipes: what the user wrote, read, checked, and resolved for each tensor."""

from cuvee.recipes.meaning import explain
from cuvee.recipes.recipe import Recipe, RecipeModel
from cuvee.recipes.resolving import Resolver, resolve
from cuvee.recipes.settings import MISSING, evaluate
from cuvee.recipes.validation import Checked, Prepared, check, prepare, validate
from cuvee.recipes.yaml_form import load_recipe, parse_recipe

__all__ = [
    "MISSING",
    "Checked",
    "Prepared",
    "Recipe",
    "RecipeModel",
    "Resolver",
    "check",
    "evaluate",
    "explain",
    "load_recipe",
    "parse_recipe",
    "prepare",
    "resolve",
    "validate",
]
