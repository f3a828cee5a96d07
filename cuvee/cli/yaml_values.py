"""Settings as YAML writes them."""

from __future__ import annotations

__all__ = ["in_yaml"]


def in_yaml(value: object) -> str:
    """Return a setting as a recipe has it; what is not given is `none`."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(in_yaml, value))}]"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
