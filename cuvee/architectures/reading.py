"""Reading a model: the stacks first, then what each stack is, then each tensor when it is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from cuvee.architectures.configs import layer_counts, read_settings, vocabulary_sizes
from cuvee.architectures.fusing import fused_gate_up, fused_kv, fused_qkv
from cuvee.architectures.heads import head_sizes, heads_in
from cuvee.architectures.hints import TRANSPOSED_EXPERTS
from cuvee.architectures.layers import Place, find_stacks, locate
from cuvee.architectures.meaning import Fused, Role, TensorMeaning
from cuvee.architectures.names import module_of, read_name, tokens
from cuvee.architectures.roles import plain_word, role_of
from cuvee.architectures.stacks import StackFacts, family_name, gather_facts, main_stack
from cuvee.architectures.surroundings import Surroundings, expert_of, is_expert_word
from cuvee.architectures.tied import find_tied

__all__ = ["Reading"]

_SEPARATE = frozenset({Role.ATTENTION_Q, Role.ATTENTION_K, Role.ATTENTION_V, Role.ATTENTION_O})
_READS_STREAM = frozenset(
    {Role.ATTENTION_Q, Role.ATTENTION_QKV, Role.ATTENTION_LATENT, Role.MLP_GATE, Role.MLP_UP, Role.MLP_GATE_UP}
)
_MATRICES = frozenset(role for role in Role if role.startswith(("attention", "mlp")))


@dataclass(frozen=True)
class _Stored:
    """How a tensor is stored: the meaning of its axes."""

    shape: tuple[int, ...]
    transposed: bool
    is_packed: bool

    @property
    def rows(self) -> int:
        """Outputs: the length of a bias, too."""
        if len(self.shape) == 1 or (self.is_packed and len(self.shape) == 2):
            return self.shape[-1]
        return self.shape[-1] if self.transposed else self.shape[1 if self.is_packed else 0]

    @property
    def columns(self) -> int | None:
        """Inputs; a bias has none."""
        if len(self.shape) < 2:
            return None
        return self.shape[-2] if self.transposed else self.shape[1]


@dataclass
class _LayerSizes:
    """Sizes that the tensors of one layer show."""

    hidden: int | None = None
    heads: int | None = None
    kv_heads: int | None = None
    head_dim: int | None = None

    def add(self, meaning: TensorMeaning, shape: tuple[int, ...]) -> None:
        """Take what one tensor shows."""
        if len(shape) == 2 and meaning.role in _READS_STREAM:
            self.hidden = self.hidden or shape[0 if meaning.transposed else 1]
        if meaning.fused and meaning.role is Role.ATTENTION_QKV:
            by_role = {part.role: part for part in meaning.fused.parts}
            query, key = by_role[Role.ATTENTION_Q], by_role[Role.ATTENTION_K]
            if query.heads and key.heads:
                self.heads, self.kv_heads = meaning.fused.groups * query.heads, meaning.fused.groups * key.heads
                self.head_dim = query.rows // query.heads
        elif meaning.heads and meaning.role is Role.ATTENTION_Q:
            self.heads = meaning.heads
            self.head_dim = shape[-1 if meaning.transposed else 0] // meaning.heads
        elif meaning.heads and meaning.role is Role.ATTENTION_K:
            self.kv_heads = meaning.heads


class Reading:
    """All that is known of a model, and the reader of its tensors.

    Attributes:
        stacks: {prefix: stack}.
        main, family, hidden_size, heads, kv_heads, head_dim, tied: as in `Architecture`.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], config: Any) -> None:
        self._shapes = {name: tuple(shape) for name, shape in shapes.items()}
        settings = read_settings(config)
        self._names = names = {name: read_name(name) for name in self._shapes}
        self.stacks = find_stacks(names, self._shapes, layer_counts(settings))
        located = ((text, locate(name, self.stacks)) for text, name in names.items())
        self._places = {text: place for text, place in located if place is not None}
        self._around = Surroundings(self._shapes, names, vocabulary_sizes(settings))
        self._facts = gather_facts(self._shapes, names, self._places, self.stacks, settings)
        self._meanings: dict[str, TensorMeaning] = {}
        self._alike: dict[tuple[object, ...], TensorMeaning] = {}
        self.tied = find_tied(self._shapes, self._outer_roles(), config, list(self.stacks))
        self.main = main = main_stack(self._facts)
        self.family = family_name(settings[0].model_type if settings else None, main, self._facts)
        shown = self._first_layer(main) if main else _LayerSizes()
        said = self._facts[main].settings if main else None
        self.hidden_size = (said.hidden_size if said else None) or shown.hidden
        self.heads = (said.heads if said else None) or shown.heads
        self.kv_heads = (said.kv_heads if said else None) or shown.kv_heads
        self.head_dim = (said.size if said else None) or shown.head_dim

    def meaning(self, name: str) -> TensorMeaning:
        """Read one tensor, once."""
        known = self._meanings.get(name)
        if known is None:
            known = self._read(name)
            if name in self._shapes:
                self._meanings[name] = known
        return known

    def config_path(self, stack: str) -> tuple[str, ...]:
        """Return the keys that lead to the part of the config which speaks of a stack."""
        settings = self._facts[stack].settings if stack in self._facts else None
        return tuple(settings.path.split(".")) if settings and settings.path else ()

    def _read(self, name: str) -> TensorMeaning:
        read = self._names.get(name) or read_name(name)
        shape = self._shapes.get(name, ())
        place = locate(read, self.stacks)
        if place is None:
            return TensorMeaning(role=role_of(read.parts, 0, shape, self._around))
        expert = expert_of(read.parts[place.rest :])
        if expert is None:
            return self._read_in_layer(read.parts, place, shape, is_packed_possible=True)
        # The experts of a layer mean the same: read one of them.
        tail = read.parts[place.rest :]
        key = (place.stack, place.layer, tail[: expert.place], tail[expert.place + 1 :], shape)
        alike = self._alike.get(key)
        if alike is None:
            alike = self._alike[key] = self._read_in_layer(read.parts, place, shape, is_packed_possible=False)
        return replace(alike, expert=expert.number)

    def _read_in_layer(
        self, parts: tuple[str, ...], place: Place, shape: tuple[int, ...], is_packed_possible: bool
    ) -> TensorMeaning:
        role = role_of(parts, place.rest, shape, self._around)
        facts = self._facts[place.stack]
        packed = self._packed_experts(parts, place.rest, shape, role) if is_packed_possible else None
        transposed = _is_transposed(parts, role, shape, packed, facts)
        heads, fused = self._split(parts, place, role, facts, _Stored(shape, transposed, packed is not None))
        return TensorMeaning(place.layer, place.stack, role, None, packed, heads, fused, transposed)

    def _packed_experts(self, parts: tuple[str, ...], rest: int, shape: tuple[int, ...], role: Role) -> int | None:
        """Count the experts that one tensor holds: (E, out, in), or (E, out) for their biases."""
        if role not in _MATRICES or len(shape) != (2 if parts[-1].endswith("bias") else 3):
            return None
        is_routed = any(is_expert_word(part) or "exps" in tokens(part) for part in parts[rest:])
        has_router = self._around.has(module_of(parts), "router", "router.layer")
        return shape[0] if is_routed or has_router else None

    def _split(
        self, parts: tuple[str, ...], place: Place, role: Role, facts: StackFacts, stored: _Stored
    ) -> tuple[int | None, Fused | None]:
        """Find the heads of an attention tensor and the split of a fused one."""
        module = module_of(parts)
        is_stack = len(stored.shape) == 3 and not stored.is_packed
        if parts[len(module) :] not in ((), ("weight",), ("bias",)) or not stored.shape or is_stack:
            return None, None
        word = plain_word(module[-1])
        if role is Role.MLP_GATE_UP:
            return None, fused_gate_up(word, stored.rows, facts.kinds, stored.is_packed)
        if role is Role.ATTENTION_KV:
            return None, fused_kv(word, stored.rows, facts.settings)
        if role not in _SEPARATE and role is not Role.ATTENTION_QKV:
            return None, None
        if ".".join(module[:-1]) in self._around.mixers:
            return None, None  # linear attention: its heads are not those of the config
        first = (*parts[: place.rest - 1], "0", *module[place.rest :])
        sizes = head_sizes(module, first, facts.settings, self._around)
        if role is Role.ATTENTION_QKV:
            return None, fused_qkv(word, stored.rows, facts.kinds, sizes)
        rows = stored.columns if role is Role.ATTENTION_O else stored.rows
        return (heads_in(role, rows, sizes) if rows is not None else None), None

    def _outer_roles(self) -> dict[str, Role]:
        """Roles of embeddings and heads outside the blocks."""
        outside = (name for name in self._shapes if name not in self._places)
        roles = ((name, self.meaning(name).role) for name in outside)
        return {name: role for name, role in roles if role in (Role.EMBEDDING, Role.HEAD)}

    def _first_layer(self, stack: str) -> _LayerSizes:
        """Read sizes off the first layer of a stack."""
        sizes = _LayerSizes()
        for name, place in self._places.items():
            if place.stack == stack and place.layer == 0:
                sizes.add(self.meaning(name), self._shapes[name])
        return sizes


def _is_transposed(
    parts: tuple[str, ...], role: Role, shape: tuple[int, ...], packed: int | None, facts: StackFacts
) -> bool:
    """Tell (…, in, out) from (…, out, in)."""
    if role not in _MATRICES:
        return False
    if packed is None:
        is_weight = parts[len(module_of(parts)) :] == ("weight",)
        return is_weight and len(shape) == 2 and facts.transposed
    if len(shape) != 3:
        return False
    width = facts.settings.hidden_size if facts.settings else None
    if width is None or (shape[1] == width) == (shape[2] == width):
        return not TRANSPOSED_EXPERTS.isdisjoint(facts.kinds)
    return shape[1 if role is not Role.MLP_DOWN else 2] == width
