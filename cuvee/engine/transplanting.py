"""Transplanting: a model with another model's tokenizer, published like any merge."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from blake3 import blake3

from cuvee.architectures import Role
from cuvee.checkpoints.gathered import CombinedRows, RowTable
from cuvee.checkpoints.publishing import check_target
from cuvee.checkpoints.sidecars import merged_config, sidecars_of
from cuvee.checkpoints.sources import Model, TensorSource, natural_dtype
from cuvee.engine.copying import plan_copies
from cuvee.engine.matching import BASE
from cuvee.engine.models import open_models
from cuvee.engine.plan import DEFAULT_SHARD_SIZE, Asked, Plan
from cuvee.engine.retokenizing import Retokenized, TokenModel, check_memory, token_model
from cuvee.engine.run import Report, run
from cuvee.engine.tasks import Input, Task
from cuvee.errors import CuveeError, IncompatibleModels, MethodError, ResourceError, nearest, raise_all
from cuvee.tensors.layout import Layout
from cuvee.tokenizers.reading import Tokenizer
from cuvee.tokenizers.shared_tokens import match_tokens, prefix_tokens
from cuvee.tokenizers.transplant import (
    METHODS,
    Approximation,
    Patient,
    Where,
    following_rows,
    junk_rows,
    transplanted_rows,
)

__all__ = ["plan_transplant", "transplant"]

DONOR = 0
COMPUTED = -2
"""The number of what no model holds: rows in another vocabulary."""


def transplant(base: Any, donor: Any, out: str | PathLike[str], *, overwrite: bool = False, **options: Any) -> Report:
    """Give a model another model's tokenizer and publish it.

    Args:
        base: the model, as in a recipe.
        donor: the model whose tokenizer it gets.
        out: the folder to publish.
        overwrite: replace a folder that is there.
        options: those of `plan_transplant` and of `run`.
    """
    of_run = {name: options.pop(name) for name in ("allow_nan", "progress") if name in options}
    check_target(Path(os.path.abspath(out)), overwrite=overwrite)
    return run(plan_transplant(base, donor, **options), out, overwrite=overwrite, **of_run)


def plan_transplant(
    base: Any,
    donor: Any,
    how: Approximation = Approximation(),
    *,
    memory: int | None = None,
    threads: int | None = None,
    shard_size: int = DEFAULT_SHARD_SIZE,
    device: str = "cpu",
    offline: bool = False,
    token: str | None = None,
    watch: Callable[[str, int, int], None] = lambda name, done, total: None,
) -> Plan:
    """Plan a transplant: match the tokens, choose what new rows are made of, lay out the output.

    The donor's rows of shared tokens are held in float32 while coefficients are chosen (omp, common_interpolation); the
    rows themselves are computed block by block when the plan is run.

    Args:
        how: how the rows of tokens that the base lacks are made.
        memory, threads, shard_size, offline, token: as for `cuvee.plan`.
        device: where coefficients are chosen, "cpu" or "cuda".
        watch: told the tensor, the new tokens whose coefficients are chosen, and how many there are.

    Raises:
        MethodError: an option is out of range.
        IncompatibleModels: a model has no tokenizer or no embedding, or they share no token.
        ResourceError: `memory` is too little.
    """
    _check(how)
    models = open_models({BASE: base, DONOR: donor}, offline=offline, token=token)
    check_memory(models.values(), memory)
    ours, theirs = (_with_tokenizer(models[number]) for number in (BASE, DONOR))
    own, other = ours.tokenizer, theirs.tokenizer
    assert own is not None and other is not None
    rows = max(other.size, theirs.rows)
    _check_memory(memory, how, own, other, ours, theirs)
    tensors: dict[str, TensorSource] = dict(ours.model.tensors)
    tables: dict[bool, RowTable] = {}
    filled: dict[str, dict[str, int]] = {}
    counts: dict[str, int] = {}
    matrices_first = sorted(ours.names, key=lambda name: len(ours.model.tensors[name].shape), reverse=True)
    for name in matrices_first:
        if name in ours.architecture.tied:
            continue
        patient, counts, filled[name] = _patient(name, ours, theirs, how, rows)
        if len(patient.base.shape) == 1:
            table, sources = following_rows(patient, tables.get(True, tables[False]))
        else:
            patient = dataclasses.replace(patient, device=device)
            table, sources = transplanted_rows(patient, how, (own, other), partial(watch, name))
            tables[patient.is_head] = table
        tensors[name] = CombinedRows(patient.base, sources, table)
    report = {
        "source": "transplant",
        "owner": other.label,
        "tokens": len(other.vocabulary),
        "rows": rows,
        "matched": counts,
        "models": [{"model": ours.model.label, "tokens": len(own.vocabulary), "rows": ours.rows, "filled": filled}],
        "files": {"copied": sorted(other.files), "written": []},
    }
    return _plan(
        ours, theirs, how, tensors, tables, rows, report, memory=memory, threads=threads, shard_size=shard_size
    )


def _plan(
    ours: TokenModel,
    theirs: TokenModel,
    how: Approximation,
    tensors: Mapping[str, TensorSource],
    tables: Mapping[bool, RowTable],
    rows: int,
    report: Mapping[str, Any],
    **options: Any,
) -> Plan:
    model = ours.model
    own, other = ours.tokenizer, theirs.tokenizer
    assert own is not None and other is not None
    tasks = []
    for name, source in tensors.items():
        if name in ours.architecture.tied:
            continue
        meaning = ours.architecture.meaning(name)
        layers = ours.architecture.n_layers(name) if meaning.layer is not None else 0
        one = Input(BASE if source is model.tensors[name] else COMPUTED, source)
        dtype = natural_dtype(source, model.config)
        layout, role = Layout(source.shape), str(meaning.role)
        tasks.append(Task(name, layout, dtype, (one,), layer=meaning.layer, layers=layers, role=role))
    sidecars, refused = sidecars_of(model)
    moved = Retokenized(
        {},
        rows,
        list(other.files.values()),
        other.vocabulary,
        own.vocabulary,
        theirs.model.config or {},
        sidecars_of(theirs.model)[0],
        report,
    )
    config = None
    if model.config is not None:
        config = moved.config(merged_config(model.config, dtype=None, tied=None, vocab_size=rows))
    beside = moved.sidecars(sidecars)
    warnings = [f"{name} was not carried over: it is a link that leads out of its folder" for name in refused]
    warnings += [f"{one.label}: {note}" for one in (model, theirs.model) for note in one.notes]
    method = {"omp": "orthogonal matching pursuit"}.get(how.method, how.method)
    asked = {
        "transplant": {"base": model.label, "donor": theirs.model.label},
        **{key: value for key, value in dataclasses.asdict(how).items() if value != _DEFAULTS[key] or key == "method"},
    }
    return plan_copies(
        Asked(asked, "", f"**a transplanted tokenizer** ({method})"),
        {BASE: model, DONOR: theirs.model},
        tasks,
        config=config,
        sidecars=beside,
        roles={DONOR: "donor of the tokenizer"},
        dropped={alias: f"tied to {target}" for alias, target in ours.architecture.tied.items() if alias in tensors},
        tokens=report,
        warnings=[*warnings, *moved.warnings],
        digest=_digest(list(tables.values())),
        **options,
    )


_DEFAULTS = dataclasses.asdict(Approximation())


def _check(how: Approximation) -> None:
    errors: list[CuveeError] = []
    if how.method not in METHODS:
        right = nearest(str(how.method), METHODS)
        errors.append(MethodError(f"there is no way {how.method!r} to make rows", right=right))
    for name, value in (("k", how.k), ("batch_size", how.batch_size)):
        if value < 1:
            errors.append(MethodError(f"{name} is {value}", right=f"{name}: 1 or more"))
    for name, number in (("noise", how.noise), ("scale", how.scale)):
        if not np.isfinite(number):
            errors.append(MethodError(f"{name} is {number}", right=f"{name}: a number"))
    raise_all(errors)


def _with_tokenizer(model: Model) -> TokenModel:
    found = token_model(model)
    where = str(model.folder or model.label)
    if found.tokenizer is None:
        raise IncompatibleModels(
            f"{model.label!r} has no tokenizer", where=where, right="put its tokenizer's files into its folder"
        )
    if not found.names:
        raise IncompatibleModels(
            f"{model.label!r} has no tensor with a row for each token", where=where, right="a language model"
        )
    return found


def _patient(
    name: str, ours: TokenModel, theirs: TokenModel, how: Approximation, rows: int
) -> tuple[Patient, dict[str, int], dict[str, int]]:
    """Return one tensor with what is known of its rows, how tokens were matched, and how many rows are made how."""
    own, other = ours.tokenizer, theirs.tokenizer
    assert own is not None and other is not None
    source = ours.model.tensors[name]
    is_head = ours.architecture.meaning(name).role is Role.HEAD
    matched, counts = match_tokens(other, own, rows=source.shape[0], byte_match=_applies(how.byte_match, is_head))
    copied = np.full(rows, -1, np.int64)
    copied[: len(matched)] = matched
    tokens = np.zeros(rows, np.bool_)
    tokens[list(other.vocabulary.values())] = True
    real = np.array(sorted({n for n in own.vocabulary.values() if n < source.shape[0]}), np.int64)
    said = {"the base's own rows": int((copied >= 0).sum())}
    if _applies(how.prefix_match, is_head):
        prefixes = prefix_tokens(other, own, copied[: other.size], rows=source.shape[0])
        at = np.flatnonzero(prefixes >= 0)
        copied[at] = prefixes[at]
        said["rows of a beginning"] = len(at)
    donor = _donor_source(theirs, is_head)
    unused = np.setdiff1d(np.arange(source.shape[0]), real)
    kept = np.flatnonzero(~tokens[: source.shape[0]] & np.isin(np.arange(min(rows, source.shape[0])), unused))
    new = np.flatnonzero((copied < 0) & tokens)
    zero = np.zeros(0, np.int64)
    if how.magikarp:
        of_donor = np.array(sorted({n for n in other.vocabulary.values() if n < donor.shape[0]}), np.int64)
        theirs_junk = junk_rows(donor, of_donor, np.setdiff1d(np.arange(donor.shape[0]), of_donor))
        is_junk = np.isin(copied, junk_rows(source, real, unused)) | np.isin(np.arange(rows), theirs_junk)
        zero = np.flatnonzero(is_junk & tokens)
        copied[zero] = -1
        new = np.setdiff1d(new, zero)
    beyond = new[new >= donor.shape[0]]
    if len(beyond) and how.method in ("omp", "common_interpolation", "landmark_pca"):
        raise IncompatibleModels(
            f"{theirs.model.label!r} has {donor.shape[0]} rows, and tokens with ids up to {int(beyond.max())}",
            where=donor.place[0],
            right="--approximation-method mean, or a donor with a row for each of its tokens",
        )
    atoms = int((copied >= 0).sum())
    copied[kept] = kept  # padding of both is padding still
    said |= {f"made by {how.method}": len(new), "zero": len(zero), "padding": rows - atoms - len(new) - len(zero)}
    patient = Patient(name, source, donor, copied, real, new, zero, is_head)
    return patient, counts, {what: count for what, count in said.items() if count}


def _applies(where: Where, is_head: bool) -> bool:
    return where == "yes" or where == ("lm_head_only" if is_head else "embed_only")


def _donor_source(theirs: TokenModel, is_head: bool) -> TensorSource:
    """Return the donor's rows of the same kind: of its head, where it has one of its own, for a head."""
    heads = [n for n in theirs.names if theirs.architecture.meaning(n).role is Role.HEAD and n.endswith(".weight")]
    embeddings = [n for n in theirs.names if theirs.architecture.meaning(n).role is Role.EMBEDDING]
    untied = [n for n in heads if n not in theirs.architecture.tied]
    return theirs.model.tensors[(untied if is_head and untied else embeddings)[0]]


def _check_memory(
    memory: int | None, how: Approximation, own: Tokenizer, other: Tokenizer, ours: TokenModel, theirs: TokenModel
) -> None:
    """Refuse what would hold more than was promised: the donor's rows of shared tokens, and a batch's scores.

    Raises:
        ResourceError: with the bytes needed.
    """
    if memory is None or how.method not in ("omp", "common_interpolation"):
        return
    shared = int((match_tokens(other, own, rows=ours.rows)[0] >= 0).sum())
    width = _donor_source(theirs, False).shape[1]
    atoms = 4 * shared * width
    batch = how.batch_size * (8 * shared + 8 * width * (how.k + 4) + 8 * how.k * how.k)
    if atoms + batch > memory:
        raise ResourceError(
            f"--memory {memory / 1e6:.0f} MB is too little: the rows of {shared} shared tokens need {atoms / 1e6:.0f} MB, "
            f"a batch of {how.batch_size} tokens {batch / 1e6:.0f} MB",
            right=f"--memory {-(-(atoms + batch) // 10**6)}MB, or a smaller --batch-size",
        )


def _digest(tables: list[RowTable]) -> str:
    digest = blake3()
    for table in tables:
        for values in (table.starts, table.sources, table.rows, table.coefficients):
            digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()
