"""Mixtures of experts made of dense models: layouts, gates, and the plan that `cuvee.run` carries out."""

from cuvee.moe.building import build_moe, plan_moe
from cuvee.moe.config import ExpertEntry, MoeConfig
from cuvee.moe.config_form import load_moe_config, parse_moe_config

__all__ = ["ExpertEntry", "MoeConfig", "build_moe", "load_moe_config", "parse_moe_config", "plan_moe"]
