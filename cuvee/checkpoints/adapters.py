"""PEFT adapters, applied to a model tensor by tensor: no tensor of the base is ever held whole."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from cuvee.checkpoints.adapted import Adapted, Factors, Recent, ReplacedRows, Shifted
from cuvee.checkpoints.adapter_files import Adapter, open_adapter
from cuvee.checkpoints.adapter_names import Names
from cuvee.checkpoints.folders import listing
from cuvee.checkpoints.sources import Model, TensorSource
from cuvee.checkpoints.ties import has_vocabulary_rows, tie_of, untied_config
from cuvee.errors import CheckpointError, CuveeError, IncompatibleModels, printable, raise_all

__all__ = ["apply_adapter"]


def apply_adapter(base: Model, folder: Path, label: str, values: Mapping[str, TensorSource] | None = None) -> Model:
    """Return `base` with the PEFT adapter in `folder` applied.

    Args:
        base: what it is applied to.
        folder: of the adapter.
        label: of the result.
        values: the adapter's tensors by their names in the file; None: those in the file.

    Raises:
        CheckpointError: the adapter's files are damaged, or of a kind that is not read.
        IncompatibleModels: it changes tensors that the base does not have, or of other shapes.
    """
    adapter = open_adapter(folder, values)
    application = _Application(base, adapter)
    try:
        application.run()
    except CuveeError:
        adapter.file.close()
        raise
    notes = (*base.notes, *adapter.notes, *application.notes)
    files = (*base.files, adapter.file)
    return replace(base, label=label, tensors=application.tensors, config=application.config, files=files, notes=notes)


class _Unmatched(Exception):
    """The base has no tensor for a name in the adapter."""


class _Application:
    """One adapter on its way onto one base.

    Attributes:
        tensors: those of the result so far.
        config: config.json of the result.
        notes: what the reader should know.
    """

    def __init__(self, base: Model, adapter: Adapter) -> None:
        self.tensors: dict[str, TensorSource] = dict(base.tensors)
        self.config = base.config
        self.notes: list[str] = []
        self._base = base
        self._adapter = adapter
        self._where = str(adapter.file.path)
        self._names = Names(base.tensors)
        self._recent = Recent()
        self._tie = tie_of(base)
        self._below: dict[str, TensorSource] = {}
        self._updated: set[str] = set()

    def run(self) -> None:
        """Apply everything, and raise once for all that does not suit."""
        adapter = self._adapter
        steps: list[tuple[str, Callable[[], None]]] = []
        steps += [(name, partial(self._replace_below, name, tensor)) for name, tensor in adapter.bases.items()]
        steps += [(name, partial(self._replace_whole, name, tensor)) for name, tensor in adapter.tensors.items()]
        steps += [(module, partial(self._update, module, parts)) for module, parts in adapter.updates.items()]
        steps += [(module, partial(self._replace_rows, module, rows)) for module, rows in adapter.tokens.items()]
        self._take(steps)
        self.notes.extend(self._names.notes())
        self._untie()

    def _take(self, steps: list[tuple[str, Callable[[], None]]]) -> None:
        problems: list[CuveeError] = []
        unmatched: list[str] = []
        for name, step in steps:
            try:
                step()
            except _Unmatched:
                unmatched.append(name)
            except (CheckpointError, IncompatibleModels) as error:
                problems.append(error)
        if unmatched:
            base = self._adapter.config.base
            trained = f", which was trained on {printable(base)[:100]!r}," if base else ""
            problems.insert(0, IncompatibleModels(
                f"{len(unmatched)} of {len(steps)} modules of the adapter{trained} are not in {self._base.label!r}: "
                f"{listing(unmatched)}",
                where=self._where,
                right=f"name the base that the adapter was trained on: {base or 'BASE'}+{Path(self._where).parent}",
            ))  # fmt: skip
        # the first ten say it; a wrong base makes hundreds
        raise_all(problems[:10])

    # ---- whole tensors

    def _is_saved(self, name: str) -> bool:
        """True for tensors of modules that the config says are saved whole."""
        module = name.rpartition(".")[0]
        return any(module == saved or module.endswith(f".{saved}") for saved in self._adapter.config.modules_to_save)

    def _replace_below(self, name: str, tensor: TensorSource) -> None:
        """Replace what lies below an update: an embedding that was resized, a bias that was trained."""
        self._replace(name, tensor, may_resize=True)
        self._below[self._names.find(name) or name] = tensor

    def _replace_whole(self, name: str, tensor: TensorSource) -> None:
        tie = self._tie
        if tie and name == tie.head and not self._is_saved(name) and not self._is_saved(tie.embedding):
            # saved because the vocabulary grew: still the one tensor that embedding and head share
            name = tie.embedding
        self._replace(name, tensor, may_resize=self._is_saved(name) or has_vocabulary_rows(name))

    def _replace(self, name: str, tensor: TensorSource, *, may_resize: bool) -> None:
        found = self._names.find(name)
        if found is None:
            if not self._is_saved(name) and not (self._tie and name == self._tie.head):
                raise _Unmatched
            self.notes.append(f"the adapter adds tensor {printable(name)}")
            self.tensors[name] = tensor
            return
        if tensor.shape != self.tensors[found].shape:
            if not may_resize or tensor.shape[1:] != self.tensors[found].shape[1:]:
                raise self._other_shape(name, str(tensor.shape), self.tensors[found].shape)
            sizes = f"{self.tensors[found].shape} by {tensor.shape}"
            self.notes.append(f"the adapter replaces {printable(found)} with one of another size: {sizes}")
        self.tensors[found] = tensor

    def _other_shape(self, name: str, ours: str, theirs: tuple[int, ...]) -> IncompatibleModels:
        return IncompatibleModels(
            f"{printable(name)[:200]!r} is for a tensor of {ours} in the adapter, and {theirs} in {self._base.label!r}",
            where=self._where,
            right=f"name the base that the adapter was trained on: {self._adapter.config.base or 'BASE'}",
        )

    # ---- low-rank updates

    def _update(self, module: str, parts: dict[str, TensorSource]) -> None:
        is_embedding = "lora_embedding_A" in parts or "lora_embedding_B" in parts
        down, up = (parts.get(f"lora_embedding_{x}" if is_embedding else f"lora_{x}") for x in "AB")
        if down is None or up is None or len(down.shape) < 2 or len(up.shape) < 2 or "lora_A.bias" in parts:
            raise CheckpointError(
                f"the adapter's factors of {printable(module)[:200]!r} are not a pair of matrices",
                where=self._where,
                right="fetch the file again",
            )
        magnitude = self._magnitude(module, parts)
        target = self._target(module)
        scaling = self._adapter.config.scaling(module, down.shape[0])
        factors = self._fitted(module, self.tensors[target], Factors(down, up, scaling, is_embedding, magnitude))
        if target in self._updated:
            raise IncompatibleModels(
                f"two modules of the adapter change {target!r}, one of them {printable(module)[:200]!r}",
                where=self._where,
                right=f"name the base that the adapter was trained on: {self._adapter.config.base or 'BASE'}",
            )
        self._updated.add(target)
        if down.shape[0] or magnitude:
            self.tensors[target] = Adapted(self.tensors[target], factors, self._recent)
        if "lora_B.bias" in parts:
            self._shift(f"{module}.bias", parts["lora_B.bias"], scaling)

    def _magnitude(self, module: str, parts: dict[str, TensorSource]) -> TensorSource | None:
        magnitude = parts.get("lora_magnitude_vector")
        if (magnitude is not None) != self._adapter.config.has_magnitudes:
            has = "has" if magnitude is not None else "has no"
            raise CheckpointError(
                f"{printable(module)[:200]!r} {has} lora_magnitude_vector, but use_dora is "
                f"{self._adapter.config.has_magnitudes} in adapter_config.json",
                where=self._where,
                right="fetch both files of the adapter again, from one revision",
            )
        return magnitude

    def _target(self, module: str) -> str:
        """Return the tensor that a module's update is for; a tied head gets one of its own."""
        found = self._names.find(f"{module}.weight")
        if found is not None:
            return found
        name = f"{module}.weight"
        if name not in self.tensors:
            if not self._tie or name != self._tie.head:
                raise _Unmatched
            self.tensors[name] = self._base.tensors[self._tie.embedding]
        return name

    def _fitted(self, module: str, base: TensorSource, factors: Factors) -> Factors:
        """Return the factors, transposed where the weight is stored so.

        Raises:
            IncompatibleModels: their product has another shape than the weight.
        """
        down, up, shape = factors.down.shape, factors.up.shape, base.shape
        rank, outputs, inputs = down[0], up[0], down[1:]
        is_pair = up[1] == rank and all(size == 1 for size in up[2:]) and (len(up) == 2 or len(up) == len(down))
        as_is, transposed = shape == (outputs, *inputs), shape == (*inputs, outputs)
        if not is_pair or not (transposed if factors.is_transposed else as_is or transposed) or len(shape) < 2:
            raise self._other_shape(module, f"{up} x {down}", shape)
        if not base.dtype.is_float:
            raise IncompatibleModels(
                f"{printable(module)[:200]!r} is {base.dtype.name} in {self._base.label!r}: an update cannot be added",
                where=self._where,
                right="name the unquantized base",
            )
        if factors.magnitude is not None and math.prod(factors.magnitude.shape) != outputs:
            raise self._other_shape(f"{module}.lora_magnitude_vector", str(factors.magnitude.shape), (outputs,))
        flag = self._adapter.config.is_transposed
        return replace(factors, is_transposed=factors.is_transposed or (transposed and (flag or not as_is)))

    def _shift(self, name: str, shift: TensorSource, scaling: float) -> None:
        found = self._names.find(name)
        if found is None:
            raise _Unmatched
        if self.tensors[found].shape != shift.shape:
            raise self._other_shape(name, str(shift.shape), self.tensors[found].shape)
        self.tensors[found] = Shifted(self.tensors[found], shift, scaling)

    # ---- rows of an embedding

    def _replace_rows(self, module: str, values: TensorSource) -> None:
        found = self._names.find(f"{module}.weight")
        if found is None:
            raise _Unmatched
        said = self._adapter.config.token_rows
        rows = next((r for name, r in said.items() if not name or f".{module}".endswith(f".{name}")), ())
        shape = self.tensors[found].shape
        fits = len(shape) == 2 and rows and values.shape == (len(rows), shape[1])
        if not fits or len(set(rows)) != len(rows) or max(rows) >= shape[0]:
            raise self._other_shape(module, f"rows {values.shape} for {len(rows)} tokens", shape)
        self.tensors[found] = ReplacedRows(self.tensors[found], rows, values)

    # ---- tied heads

    def _untie(self) -> None:
        """Give the head a tensor of its own where the adapter changes the embedding alone, or the head alone."""
        if not self._tie:
            return
        embedding, head = self._tie
        if head not in self.tensors:
            is_changed = self.tensors[embedding] is not self._base.tensors[embedding]
            is_trained = embedding in self._updated or (is_changed and self._is_saved(embedding))
            if not is_trained or self._adapter.config.keeps_ties:
                return
            original = self._below.get(embedding, self._base.tensors[embedding])
            if original.shape != self.tensors[embedding].shape:
                self.notes.append(f"the adapter resizes {embedding}, which the head shares: both are replaced")
                return
            self.tensors[head] = original
        self.notes.append(f"the adapter tells embedding and head apart: {head} is a tensor of its own now")
        self.config = untied_config(self.config)
