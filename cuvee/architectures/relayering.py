"""Layers taken out of models and numbered anew: which lists are cut, the new names, and what config.json then says."""

from __future__ import annotations

import copy
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any

from cuvee.architectures.architecture import Architecture
from cuvee.architectures.configs import LAYER_KEYS, kinds
from cuvee.architectures.meaning import Role
from cuvee.errors import IncompatibleModels, printable

__all__ = ["cut_stacks", "is_after_layers", "moves_with_its_layer", "relayered_config", "renumbered"]

_AFTER = frozenset({Role.HEAD, Role.TASK_HEAD, Role.POOLER})
_NUMBERS_OF_LAYERS = (
    *("mlp_only_layers", "cross_attention_layers", "moe_layers", "attn_layer_indices", "moe_layers_enum"),
    *("fusion_layers", "global_attn_layers", "dense_layers", "out_indices"),
)
"""Keys whose lists name layers by number."""
_PERIODS = (
    *("sliding_window_pattern", "full_attention_interval", "decoder_sparse_step", "interleave_moe_layer_step"),
    *("no_rope_layer_interval", "attn_layer_period", "expert_layer_period", "global_attn_every_n_layers"),
    *("moe_layer_freq", "_sliding_window_pattern", "moe_every_n_layers"),
)
"""Keys whose number is the length of a pattern that repeats over the layers."""
_LEADING = ("first_k_dense_replace", "max_window_layers", "num_dense_layers")
"""Keys that count the layers of another kind with which a model begins."""


def cut_stacks(architecture: Architecture, module: Container[str] | None = None) -> tuple[str, ...]:
    """Return the layer lists that slices cut: the language model's, and those beside it that hold parts of its layers.

    None where the model has no list of numbered layers, or an encoder and a decoder, of which neither is *the* list.

    Args:
        architecture: of the model.
        module: the layer lists of the part of the model that is cut; None: the whole model.
    """
    main = architecture.main
    if module is not None:
        main = next((stack for stack in architecture.stacks if stack in module), None)
    if main is None:
        return ()
    sides = {kind for stack in architecture.stacks for kind in kinds(stack) if kind in ("encoder", "decoder")}
    is_vision = bool(kinds(main) & {"vision", "audio"})
    if module is None and len(sides) == 2 and not is_vision and len(_languages(architecture)) > 1:
        return ()
    parent, length = main.rpartition(".")[0], architecture.stacks[main]
    beside = [s for s, n in architecture.stacks.items() if s.rpartition(".")[0] == parent and n == length]
    return tuple(beside)


def _languages(architecture: Architecture) -> list[str]:
    """Return the layer lists that are of no other sense than language."""
    return [stack for stack in architecture.stacks if not kinds(stack) & {"vision", "audio", "qformer", "talker"}]


def renumbered(name: str, stack: str, layer: int) -> str:
    """Return the name of a layer's tensor with another layer's number.

    Raises:
        IncompatibleModels: the number is part of a word ("layer1").
    """
    number, _, rest = name[len(stack) + 1 :].partition(".")
    if not (name.startswith(f"{stack}.") and number.isdigit() and rest):
        raise IncompatibleModels(
            f"the layer of tensor {printable(name)!r} has no number of its own, so that it cannot be moved",
            right="whole models under models:",
        )
    return f"{stack}.{layer}.{rest}"


def moves_with_its_layer(architecture: Architecture, name: str, names: Container[str]) -> bool:
    """False for what only the first layer has, for all of them: the relative positions of T5.

    Args:
        name: of a tensor in a layer.
        names: of all tensors of the model.
    """
    meaning = architecture.meaning(name)
    if meaning.layer != 0 or meaning.role is not Role.POSITION or not architecture.n_layers(name) > 1:
        return True
    return renumbered(name, meaning.stack, 1) in names


def is_after_layers(architecture: Architecture, name: str) -> bool:
    """True for what a model does after its layers, of the tensors outside of them: the last norm, pooler and head."""
    role = architecture.meaning(name).role
    if role is Role.NORM:
        return not any(word in name.lower() for word in ("embed", "pre_", "ln_pre", "input"))
    return role in _AFTER or name.endswith("final_logits_bias")


def relayered_config(
    config: Mapping[str, Any], path: Sequence[str], layers: Sequence[tuple[Mapping[str, Any], int]]
) -> tuple[dict[str, Any], list[str]]:
    """Return config.json for other layers, and what it cannot say.

    Args:
        config: of the model that the output takes it from.
        path: keys to the part that speaks of the layers.
        layers: for each layer of the output the config of the model that it comes from, and its number there.
    """
    result = copy.deepcopy(dict(config))
    part = _part(result, path)
    key, keys = next(
        ((key, keys) for keys in _layer_keys(path) for key in keys if _is_count(part.get(key))), (None, ())
    )
    if key is None:
        return result, ["config.json does not say how many layers the model has, and was left as it is"]
    count = part[key]
    for other in keys:
        if part.get(other) == count:
            part[other] = len(layers)
    warnings = []
    for name, value in list(part.items()):
        new = _value(name, value, count, [(_part(of, path), layer) for of, layer in layers])
        if new is _UNSAYABLE:
            warnings.append(
                f"{name}: {value} in config.json is a pattern over the layers, which the slices break up: "
                "some layers are now taken for another kind"
            )
        elif new is not None:
            part[name] = new
    return result, warnings


def _layer_keys(path: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """Return the keys that may count the layers, those of one side of a flat config first."""
    side = path[-1] if path and path[-1] in ("encoder", "decoder") else ""
    sided = (f"{side}_layers", f"num_{side}_layers", f"{side}_num_hidden_layers") if side else ()
    return sided, LAYER_KEYS


_UNSAYABLE = object()


def _value(name: str, value: Any, count: int, layers: Sequence[tuple[Mapping[str, Any], int]]) -> Any:
    """Return what becomes of one entry, None where it has nothing to do with layers."""
    if name in _NUMBERS_OF_LAYERS:
        listed = [place for place, (of, layer) in enumerate(layers) if layer in _listed(of.get(name))]
        return listed if isinstance(value, list) else None
    if isinstance(value, list) and len(value) == count > 0:
        return [_item(of.get(name), layer, value) for of, layer in layers]
    if not _is_count(value):
        return None
    if name in _PERIODS and value > 1:
        return _UNSAYABLE if any((place - layer) % value for place, (_, layer) in enumerate(layers)) else None
    if name in _LEADING:
        return _counted([layer < value for _, layer in layers])
    return None


def _counted(is_leading: Sequence[bool]) -> Any:
    leading = sum(is_leading)
    return leading if all(is_leading[:leading]) else _UNSAYABLE


def _item(held: Any, layer: int, otherwise: list[Any]) -> Any:
    values = held if isinstance(held, list) and layer < len(held) else otherwise
    return values[min(layer, len(values) - 1)]


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _part(config: Any, path: Iterable[str]) -> Any:
    """Return the part of a config that a path leads to; as far as it leads, a flat config has the rest in its keys."""
    for key in path:
        inner = config.get(key)
        if not isinstance(inner, dict):
            return config
        config = inner
    return config
