"""The parts of a model of several parts: encoder and decoder, vision tower, projector and language model.

A part is called by a component of its tensors' names ("visual", "multi_modal_projector") or by what it is ("vision_tower",
"text_decoder"), as mergekit's recipes do.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from cuvee.architectures.architecture import Architecture
from cuvee.architectures.configs import kinds
from cuvee.architectures.meaning import Role
from cuvee.architectures.names import read_name

__all__ = ["known_modules", "split_by_module"]


def split_by_module(architecture: Architecture, names: Iterable[str], wanted: Sequence[str]) -> dict[str, str]:
    """Return the module of each tensor: {tensor: one of `wanted`}; what belongs to none is left out.

    A tensor belongs to the module with the longest root that its name begins with. What stands under no root
    (`lm_head`, `shared`) belongs to the module of the language model, where that is wanted.

    Args:
        architecture: of the model.
        names: of its tensors.
        wanted: names of modules.
    """
    names = list(names)
    roots = {module: _root(architecture, names, module) for module in wanted}
    others = {root for root in _stack_roots(architecture).values() if root}
    main = _stack_roots(architecture).get(architecture.main or "", "")
    languages = [module for module, root in roots.items() if root is not None and root in ("", main)]
    projector = next((module for module in wanted if _means_projector(module)), None)
    owners: dict[str, str] = {}
    for name in names:
        under = [(len(root), module) for module, root in roots.items() if root and _is_under(name, root)]
        if projector is not None and roots[projector] is None and _is_projector(architecture, name):
            owners[name] = projector  # Qwen2-VL keeps it inside the vision tower
        elif under:
            owners[name] = max(under)[1]
        elif _is_projector(architecture, name):
            continue
        elif languages and not any(_is_under(name, root) for root in others if root != main):
            owners[name] = languages[0]
    return owners


def known_modules(architecture: Architecture) -> list[str]:
    """Return names that `split_by_module` understands, for an error."""
    return sorted({root.rpartition(".")[2] or "text_decoder" for root in _stack_roots(architecture).values()})


def _root(architecture: Architecture, names: Sequence[str], module: str) -> str | None:
    """Return the beginning that a module's tensors have in common; "" for the model itself, None where it is unknown."""
    for name in names:
        parts = read_name(name).parts
        if module in parts[:-1]:
            return ".".join(parts[: parts.index(module) + 1])
    roots = _stack_roots(architecture)
    if module == "default" or len(set(roots.values())) == 1:
        return roots.get(architecture.main or "")
    spoken = kinds(module)
    ranked = sorted(((len(spoken & kinds(root)), root) for root in set(roots.values())), reverse=True)
    if ranked and ranked[0][0] > 0:
        return ranked[0][1]
    is_language = bool(spoken & {"text", "decoder"})
    return roots.get(architecture.main or "") if is_language else None


def _stack_roots(architecture: Architecture) -> Mapping[str, str]:
    """Return for each layer list where the part of the model begins that it belongs to."""
    return {stack: _beginning(stack) for stack in architecture.stacks}


def _beginning(stack: str) -> str:
    parts = stack.split(".")
    for end in range(1, len(parts)):
        if kinds(parts[end - 1]):
            return ".".join(parts[:end])
    return ""


def _is_under(name: str, root: str) -> bool:
    return name.startswith(f"{root}.")


def _is_projector(architecture: Architecture, name: str) -> bool:
    outside = architecture.meaning(name).layer is None
    return outside and (architecture.meaning(name).role is Role.PROJECTOR or _means_projector(name.rpartition(".")[0]))


def _means_projector(module: str) -> bool:
    return any(word in module.lower() for word in ("projector", "connector", "merger"))
