"""Retokenizing: models whose vocabularies differ become models of one vocabulary, before anything is matched.

The rows of embeddings and heads are gathered anew (checkpoints/gathered.py), so no merge method knows of tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from cuvee.architectures import Architecture, describe
from cuvee.architectures.token_rows import token_rows
from cuvee.checkpoints import fs
from cuvee.checkpoints.folders import is_adapter, list_names, read_config
from cuvee.checkpoints.gathered import CombinedRows, RowMean, RowTable
from cuvee.checkpoints.sidecars import Sidecar, config_json, find_sidecars, sidecars_of
from cuvee.checkpoints.sources import Model, TensorSource
from cuvee.engine.budget import PROMISED_PROCESS_BYTES
from cuvee.errors import CuveeError, IncompatibleModels, RecipeError, ResourceError, nearest, printable, raise_all
from cuvee.tokenizers.filling import Filling, Forced, row_tables
from cuvee.tokenizers.reading import Tokenizer, is_tokenizer_file, read_tokenizer
from cuvee.tokenizers.request import RowOf, TokenizerRequest
from cuvee.tokenizers.special_ids import renumbered
from cuvee.tokenizers.templates import BUILT_IN, check_template, choose_template
from cuvee.tokenizers.vocabulary import Member, Vocabulary, build_vocabulary, unite
from cuvee.tokenizers.writing import tokenizer_files

__all__ = ["Retokenized", "TokenModel", "check_memory", "retokenize", "token_model"]

_GENERATION = "generation_config.json"
_MAX_BYTES = 16 << 20
_BYTES_PER_BYTE = 12  # memory for a byte of a tokenizer's files, measured: 470 MB for two (18 MB), 660 for three (34)


@dataclass(frozen=True, eq=False)
class TokenModel:
    """A model with its tokenizer and the tensors that have a row for each token.

    Attributes:
        model: as opened.
        tokenizer: its own, None where its folder has none.
        rows: of its embedding.
        names: of these tensors.
        architecture: for its ties.
    """

    model: Model
    tokenizer: Tokenizer | None
    rows: int
    names: tuple[str, ...]
    architecture: Architecture

    def source(self, name: str) -> TensorSource | None:
        """Return a tensor, of a tied head the embedding; None where the model has neither."""
        return self.model.tensors.get(name) or self.model.tensors.get(self.architecture.tied.get(name, ""))


@dataclass(frozen=True, eq=False)
class Retokenized:
    """Models of one vocabulary, and what becomes of the files beside the weights.

    Attributes:
        models: by their numbers, embeddings and heads replaced.
        rows: of the output's embedding; None where it stays as it is.
        files: of the output's tokenizer.
        ids: every token's id in the output.
        before: every token's id in the reference's tokenizer.
        owner_config: of the model whose tokenizer the output has, where that is another than the reference.
        owner_files: beside that model.
        report: for the manifest and the reader, as plain values.
        warnings: for the user.
    """

    models: Mapping[int, Model]
    rows: int | None
    files: Sequence[Sidecar]
    ids: Mapping[str, int]
    before: Mapping[str, int]
    owner_config: Mapping[str, Any] | None
    owner_files: Sequence[Sidecar]
    report: Mapping[str, Any]
    warnings: list[str] = field(default_factory=list)

    def config(self, config: Mapping[str, Any] | None) -> dict[str, Any] | None:
        """Return the output's config.json with special ids of the output's vocabulary."""
        if config is None:
            return None
        result, notes = renumbered(config, self.before, self.ids, self.owner_config)
        self.warnings.extend(f"config.json: {note}" for note in notes)
        return result

    def sidecars(self, sidecars: Sequence[Sidecar]) -> list[Sidecar]:
        """Return the output's files beside the weights: the reference's, with this tokenizer in the place of its own."""
        kept = [one for one in sidecars if not is_tokenizer_file(one.name)]
        at = next((n for n, one in enumerate(kept) if one.name == _GENERATION), None)
        if at is not None and self.owner_config is not None:
            theirs = next((one for one in self.owner_files if one.name == _GENERATION), None)
            ids = {key: value for key, value in self.owner_config.items() if key.endswith("_token_id")}
            owner = {**ids, **(theirs.read_object(_MAX_BYTES) if theirs else {})}
            content, notes = renumbered(kept[at].read_object(_MAX_BYTES), self.before, self.ids, owner)
            self.warnings.extend(f"{_GENERATION}: {note}" for note in notes)
            kept[at] = Sidecar(_GENERATION, content=config_json(content))
        return sorted([*kept, *self.files], key=lambda one: one.name)


def token_model(model: Model) -> TokenModel:
    """Read the tokenizer of a model; an adapter that brings one, because it has taught the model new tokens, goes before.

    Raises:
        CheckpointError: its files are damaged.
    """
    architecture = describe({name: source.shape for name, source in model.tensors.items()}, model.config)
    shapes = {name: source.shape for name, source in model.tensors.items()}
    rows, names = token_rows(shapes, architecture)
    tokenizer = _of_adapter(model) or read_tokenizer(sidecars_of(model)[0], model.label)
    return TokenModel(model, tokenizer, rows, names, architecture)


def _of_adapter(model: Model) -> Tokenizer | None:
    """Return the tokenizer beside the adapter that was applied last, None where there is none."""
    folders = dict.fromkeys(file.path.parent for file in reversed(model.files))
    for folder in folders:
        if folder != model.folder and fs.is_folder(folder) and is_adapter(list_names(folder)):
            found = read_tokenizer(folder, model.label)
            if found is not None:
                return found
    return None


def check_memory(models: Iterable[Model], memory: int | None) -> None:
    """Refuse to read tokenizers that take more than was promised.

    Raises:
        ResourceError: with the bytes needed.
    """
    if memory is None:
        return
    unique = {id(model): model for model in models}.values()
    files = [one for model in unique for one in sidecars_of(model)[0] if is_tokenizer_file(one.name)]
    needed = PROMISED_PROCESS_BYTES + _BYTES_PER_BYTE * sum(one.size for one in files)
    if needed > memory:
        raise ResourceError(
            f"--memory {memory / 1e6:.0f} MB is too little: reading the models' tokenizers needs {needed / 1e6:.0f} MB",
            where=", ".join(one.where for one in files if one.name == "tokenizer.json"),
            right=f"--memory {-(-needed // 10**6)}MB",
        )


def retokenize(
    request: TokenizerRequest | None,
    chat_template: str | None,
    models: Mapping[int, Model],
    base: int | None,
    *,
    find: Callable[[Any], int | None],
    open_other: Callable[[Any], Model | Path],
    compat: str | None = None,
) -> Retokenized:
    """Give all models the vocabulary that a recipe asks for.

    Args:
        request: None: the vocabularies stay as they are, and only the chat template changes.
        models: the base first, where there is one; then in the order of the recipe.
        base: its number.
        find: returns the number of the model that a reference in the recipe means.
        open_other: opens a model that is not merged, whose tokenizer is asked for; or returns its folder.

    Raises:
        CuveeError: all that cannot be done, said together.
    """
    of = _first_numbers(models)
    opened = {number: token_model(models[number]) for number in dict.fromkeys(of.values())}

    def number_of(reference: Any) -> int | None:
        found = find(reference)
        return None if found is None else of[found]

    first = next(iter(opened))
    owner, owner_config, owner_files = _owner(request, opened, first, number_of, open_other)
    reference = opened[first].tokenizer
    if owner is None:
        raise IncompatibleModels(
            f"{models[first].label!r} has no tokenizer",
            where=str(models[first].folder or models[first].label),
            right="put its tokenizer's files into its folder, or name another: tokenizer_source: MODEL",
        )
    before = (reference or owner).vocabulary
    is_mergekit = compat == "mergekit"
    if request is None:
        vocabulary = Vocabulary(owner, owner.vocabulary, {}, {}, 0, {}, np.zeros(0, np.bool_))
        replaced: Mapping[int, Model] = models
        report: dict[str, Any] = {"source": "unchanged", "owner": owner.label, "tokens": len(owner.vocabulary)}
    else:
        members, notes = _members(opened, owner, is_mergekit)
        tokens = unite(owner, members, list(request.tokens), union=request.source == "union")
        vocabulary = build_vocabulary(
            tokens,
            owner,
            members,
            pad_to_multiple_of=request.pad_to_multiple_of,
            keep_padding=not is_mergekit,
        )
        vocabulary = replace(vocabulary, notes=(*notes, *vocabulary.notes))
        rules = _rules(request, opened, members, vocabulary, number_of)
        sources, filled = _replaced(opened, vocabulary, base, rules, is_mergekit=is_mergekit)
        replaced = {number: sources[of[number]] for number in models}
        report = _report(request, vocabulary, opened, members, filled)
    template = _template(chat_template, opened)
    others = {number: one.tokenizer or owner for number, one in opened.items()}
    files, notes = tokenizer_files(vocabulary, others, chat_template=template, only_added=is_mergekit)
    warnings = [*vocabulary.notes, *notes]
    warnings += [f"token {token!r} has a row of zeros: no model has it" for token in report.get("zero", ())]
    if template is not None:
        ends = [owner.roles["eos_token"]] if "eos_token" in owner.roles else []
        warnings += check_template(template, vocabulary.ids, ends)
    report["files"] = {
        "copied": sorted(one.name for one in files if one.path is not None),
        "written": sorted(one.name for one in files if one.path is None),
    }
    return Retokenized(
        replaced,
        vocabulary.rows if request is not None else None,
        files,
        vocabulary.ids,
        before,
        owner_config,
        owner_files,
        report,
        warnings,
    )


def _first_numbers(models: Mapping[int, Model]) -> dict[int, int]:
    """Return for each number the first number of the same model."""
    return {number: next(n for n, other in models.items() if other is model) for number, model in models.items()}


def _owner(
    request: TokenizerRequest | None,
    opened: Mapping[int, TokenModel],
    first: int,
    find: Callable[[Any], int | None],
    open_other: Callable[[Any], Model | Path],
) -> tuple[Tokenizer | None, Mapping[str, Any] | None, Sequence[Sidecar]]:
    """Return the tokenizer that the output has or extends; config and files where it is not the reference's."""
    if request is None or request.source in ("union", "base"):
        owner = opened[first].tokenizer
        if owner is not None or (request is not None and request.source == "base"):
            return owner, None, ()
        other = next((one for one in opened.values() if one.tokenizer is not None), None)
        return _of_model(other) if other else (None, None, ())
    number = find(request.source)
    if number is not None:
        one = opened[number]
        return (one.tokenizer, None, ()) if one is opened[first] else _of_model(one)
    other_model = open_other(request.source)
    if not isinstance(other_model, Path):
        return _of_model(token_model(other_model))
    files = find_sidecars(other_model)[0]
    return read_tokenizer(files, str(request.source)), read_config(other_model) or {}, files


def _of_model(one: TokenModel) -> tuple[Tokenizer | None, Mapping[str, Any], Sequence[Sidecar]]:
    return one.tokenizer, one.model.config or {}, sidecars_of(one.model)[0]


def _members(
    opened: Mapping[int, TokenModel], owner: Tokenizer, is_mergekit: bool
) -> tuple[dict[int, Member], list[str]]:
    """Return the models with their tokenizers; one without a tokenizer has the owner's, if its rows say so."""
    members: dict[int, Member] = {}
    notes: list[str] = []
    errors: list[CuveeError] = []
    of_owner = {one.rows for one in opened.values() if one.tokenizer is owner}
    for number, one in opened.items():
        label = one.model.label
        if not one.names:
            errors.append(
                IncompatibleModels(
                    f"{label!r} has no tensor with a row for each token", right="leave the tokenizer out of the recipe"
                )
            )
        elif one.tokenizer is not None:
            members[number] = Member(label, one.tokenizer, one.rows)
        elif is_mergekit or one.rows in of_owner or one.rows == owner.size:
            notes.append(f"{label} has no tokenizer: that of {owner.label} is taken for it")
            members[number] = Member(label, owner, one.rows)
        else:
            errors.append(
                IncompatibleModels(
                    f"{label!r} has no tokenizer, and {one.rows} rows where {owner.label!r} has {owner.size} tokens",
                    where=str(one.model.folder or label),
                    right="put its tokenizer's files into its folder",
                )
            )
    raise_all(errors)
    return members, notes


def _rules(
    request: TokenizerRequest,
    opened: Mapping[int, TokenModel],
    members: Mapping[int, Member],
    vocabulary: Vocabulary,
    find: Callable[[Any], int | None],
) -> dict[str, Forced]:
    """Return the recipe's rules with models and rows found."""
    rules: dict[str, Forced] = {}
    errors: list[CuveeError] = []
    for token, rule in request.tokens.items():
        where = f"tokenizer.tokens.{printable(token)}"
        if rule.source is None:
            if rule.force:
                errors.append(
                    RecipeError(f"token {token!r} is forced to no source", where=where, right="source: MODEL")
                )
            continue
        if not isinstance(rule.source, RowOf):
            rules[token] = Forced(None, force=rule.force)
            continue
        number = find(rule.source.model)
        if number is None:
            labels = [one.model.label for one in opened.values()]
            right = nearest(str(rule.source.model), labels)
            errors.append(RecipeError(f"{rule.source.model!r} is not a model of the recipe", where=where, right=right))
            continue
        one = members[number]
        spoken = rule.source.token if rule.source.token is not None else token
        row = one.tokenizer.vocabulary.get(spoken, -1) if rule.source.token_id is None else rule.source.token_id
        if not 0 <= row < one.rows:
            named = f"token {spoken!r}" if rule.source.token_id is None else f"id {row}"
            errors.append(
                RecipeError(
                    f"{one.label!r} has no row for {named}; its embedding has {one.rows} rows",
                    where=where,
                    right="a token of that model, or source: {kind: zero}",
                )
            )
            continue
        rules[token] = Forced(number, row, rule.force)
    raise_all(errors)
    return rules


def _replaced(
    opened: Mapping[int, TokenModel],
    vocabulary: Vocabulary,
    base: int | None,
    rules: Mapping[str, Forced],
    *,
    is_mergekit: bool,
) -> tuple[dict[int, Model], dict[int, dict[str, Mapping[str, int]]]]:
    """Return the models with embeddings and heads gathered, and how many rows of each tensor were given, by how."""
    tensors: dict[int, dict[str, TensorSource]] = {n: dict(one.model.tensors) for n, one in opened.items()}
    filled: dict[int, dict[str, Mapping[str, int]]] = {n: {} for n in opened}
    labels = {n: one.model.label for n, one in opened.items()}
    done: dict[tuple[tuple[int, int], ...], Filling] = {}
    for name in dict.fromkeys(name for one in opened.values() for name in one.names):
        sources = {n: source for n, one in opened.items() if (source := one.source(name)) is not None}
        _check_width(name, sources, labels)
        maps = {n: np.where(vocabulary.maps[n] < s.shape[0], vocabulary.maps[n], -1) for n, s in sources.items()}
        key = tuple((n, source.shape[0]) for n, source in sources.items())
        if key not in done:
            held = {t: r for t, r in rules.items() if r.model is None or r.row < dict(key).get(r.model, 0)}
            done[key] = row_tables(vocabulary, maps, base, held, labels)
        filling = done[key]
        means = [RowMean(source, of=_rows_with_tokens(vocabulary, maps[n])) for n, source in sources.items()]
        if is_mergekit:  # whose padding is the mean of all rows, those that the model was given too
            every = np.flatnonzero(~vocabulary.padded)
            full = [CombinedRows(s, (*sources.values(), *means), filling.tables[n]) for n, s in sources.items()]
            means = [RowMean(one, of=every) for one in full]
        # Beside an untied head a tied model's head has rows of heads too, where it lacks a token.
        is_untied = any(name in one.model.tensors and name not in one.architecture.tied for one in opened.values())
        for number, source in sources.items():
            if name not in opened[number].model.tensors and not is_untied:
                continue
            table = filling.tables[number]
            if not _is_identity(table, list(sources).index(number), source.shape[0]):
                tensors[number][name] = CombinedRows(source, (*sources.values(), *means), table)
            filled[number][name] = filling.said[number]
    return {n: replace(one.model, tensors=tensors[n]) for n, one in opened.items()}, filled


def _rows_with_tokens(vocabulary: Vocabulary, rows: Any) -> Any:
    return np.unique(rows[(rows >= 0) & ~vocabulary.padded])


def _is_identity(table: RowTable, number: int, rows: int) -> bool:
    """True when a tensor comes out as it went in."""
    same = len(table) == rows == len(table.rows) and bool(table.is_plain.all())
    return same and bool((table.sources == number).all()) and bool((table.rows == np.arange(rows)).all())


def _check_width(name: str, sources: Mapping[int, TensorSource], labels: Mapping[int, str]) -> None:
    widths = {source.shape[1:] for source in sources.values()}
    if len(widths) > 1:
        said = " and ".join(dict.fromkeys(f"{source.shape} in {labels[n]!r}" for n, source in sources.items()))
        raise IncompatibleModels(
            f"tensor {printable(name)!r} is {said}: a row of one model does not fit into another",
            where=", ".join(dict.fromkeys(source.place[0] for source in sources.values() if source.place[0])),
            right="models of one hidden size",
        )


def _template(spoken: str | None, opened: Mapping[int, TokenModel]) -> str | None:
    if spoken is None:
        return None
    held = [one.tokenizer.chat_template if one.tokenizer else None for one in opened.values()]
    try:
        return choose_template(spoken, held)
    except ValueError as error:
        raise RecipeError(
            str(error), where="chat_template", right=f"auto, one of {', '.join(BUILT_IN)}, or the template itself"
        ) from None


def _report(
    request: TokenizerRequest,
    vocabulary: Vocabulary,
    opened: Mapping[int, TokenModel],
    members: Mapping[int, Member],
    filled: Mapping[int, Mapping[str, Mapping[str, int]]],
) -> dict[str, Any]:
    """Say what was done, in plain values."""
    zero = [
        token
        for token, number in vocabulary.ids.items()
        if token not in request.tokens and all(rows[number] < 0 for rows in vocabulary.maps.values())
    ]
    return {
        "source": str(request.source),
        "owner": vocabulary.owner.label,
        "tokens": len(vocabulary.ids),
        "rows": vocabulary.rows,
        "appended": {token: vocabulary.ids[token] for token in vocabulary.appended},
        "zero": zero,
        "models": [
            {
                "model": opened[number].model.label,
                "tokens": len(one.tokenizer.vocabulary),
                "rows": one.rows,
                "filled": {name: dict(said) for name, said in filled[number].items()},
                "ids": _runs(vocabulary.maps[number]),
            }
            for number, one in members.items()
        ],
    }


def _runs(rows: Any) -> list[list[int]]:
    """Return a map as runs: [first id of the output, first row of the model, length]."""
    at = np.flatnonzero(rows >= 0)
    if not len(at):
        return []
    breaks = np.flatnonzero((np.diff(at) != 1) | (np.diff(rows[at]) != 1)) + 1
    begins = np.concatenate(([0], breaks))
    ends = np.concatenate((breaks, [len(at)]))
    return [[int(at[b]), int(rows[at[b]]), int(e - b)] for b, e in zip(begins, ends, strict=True)]
