"""Weights and inputs that are learned by gradient, layer by layer."""

from cuvee.learning.anchors import Anchors, adapt, construct_anchors, mismatch, start_of_anchors
from cuvee.learning.dual_anchors import AnchorSettings, plan_anchors

__all__ = [
    "AnchorSettings",
    "Anchors",
    "adapt",
    "construct_anchors",
    "mismatch",
    "plan_anchors",
    "start_of_anchors",
]
