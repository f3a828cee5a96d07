"""Filling: where each model's row of each token comes from, and what there is to report of it.

The rule, for a token that a model lacks: the row of the only model that has it; else the base's, if it has it; else the
mean of the rows of all that have it; else zero. A recipe may name the source of single tokens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from cuvee.checkpoints.gathered import RowTable
from cuvee.tokenizers.vocabulary import Vocabulary

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Integers: TypeAlias = NDArray[np.int64]

__all__ = ["Entries", "Filling", "Forced", "default_entries", "row_tables"]


@dataclass(frozen=True)
class Forced:
    """A rule of the recipe with its models found.

    Attributes:
        model: whose row; None: zero.
        row: of that model.
        force: the models that have the token take it too.
    """

    model: int | None
    row: int = 0
    force: bool = False


@dataclass(frozen=True, eq=False)
class Entries:
    """Rows as sums: entry e adds `coefficients[e]` × row `rows[e]` of model `models[e]` to row `targets[e]`."""

    targets: Integers
    models: Integers
    rows: Integers
    coefficients: NDArray[np.float64]

    def __getitem__(self, chosen: NDArray[np.bool_]) -> Entries:
        return Entries(self.targets[chosen], self.models[chosen], self.rows[chosen], self.coefficients[chosen])


@dataclass(frozen=True, eq=False)
class Filling:
    """How the rows of one tensor are made.

    Attributes:
        tables: for each model; the sources of its entries are the models, and beyond them the means of their own rows.
        said: how many rows each model was given, by how: {model: {"from 'math', which alone has them": 12}}.
    """

    tables: Mapping[int, RowTable]
    said: Mapping[int, Mapping[str, int]] = field(default_factory=dict)


def default_entries(
    vocabulary: Vocabulary,
    maps: Mapping[int, Integers],
    base: int | None,
    rules: Mapping[str, Forced],
    labels: Mapping[int, str],
) -> tuple[Entries, list[str]]:
    """Return what a model takes for each id that it lacks, and for each id in words how.

    Args:
        maps: of the models that have the tensor: model -> its row for each id, −1 where it has none.
        base: the model whose rows go before a mean.
        rules: by token.
    """
    numbers = np.array(list(maps), np.int64)
    rows_KV = np.stack([maps[number] for number in maps])
    has_KV = rows_KV >= 0
    count = has_KV.sum(0)
    # For padding the first model that has a row stands in: a mean over models would mix trained and untrained rows.
    single = (count == 1) | (vocabulary.padded & (count > 0))
    first = np.argmax(has_KV, axis=0)
    if base is not None and base in maps:
        k = list(maps).index(base)
        of_base = has_KV[k] & (~single | vocabulary.padded)
        first = np.where(of_base, k, first)
        single |= of_base
    ids = np.arange(vocabulary.rows)
    one = ids[single]
    at, k_of = np.nonzero((has_KV & ~single).T)
    said = _said(vocabulary, numbers, has_KV, count, first, single, labels)
    entries = Entries(
        np.concatenate((one, at)),
        np.concatenate((numbers[first[one]], numbers[k_of])),
        np.concatenate((rows_KV[first[one], one], rows_KV[k_of, at])),
        np.concatenate((np.ones(len(one)), 1.0 / count[at])),
    )
    if not rules:
        return entries, said
    ruled = {vocabulary.ids[token]: rule for token, rule in rules.items()}
    entries = entries[~np.isin(entries.targets, list(ruled))]
    given = [(t, rule.model, rule.row) for t, rule in ruled.items() if rule.model is not None]
    for t, rule in ruled.items():
        said[t] = "zero, as asked" if rule.model is None else f"from {labels[rule.model]}, as asked"
    targets, models, rows = (
        np.array(column, np.int64) for column in (zip(*given, strict=True) if given else ((),) * 3)
    )
    return Entries(
        np.concatenate((entries.targets, targets)),
        np.concatenate((entries.models, models)),
        np.concatenate((entries.rows, rows)),
        np.concatenate((entries.coefficients, np.ones(len(targets)))),
    ), said


def _said(
    vocabulary: Vocabulary,
    numbers: Integers,
    has_KV: NDArray[np.bool_],
    count: Integers,
    first: Integers,
    single: NDArray[np.bool_],
    labels: Mapping[int, str],
) -> list[str]:
    words = [""] * vocabulary.rows
    for t in np.flatnonzero(~has_KV.all(0)):
        label = labels[int(numbers[first[t]])]
        if vocabulary.padded[t]:
            words[t] = f"padding, from {label}" if count[t] else "padding, the mean of the model's own rows"
        elif count[t] == 0:
            words[t] = "zero: no model has it"
        elif count[t] == 1:
            words[t] = f"from {label}, which alone has it"
        elif single[t]:
            words[t] = f"from {label}, the base"
        else:
            names = ", ".join(labels[int(numbers[k])] for k in np.flatnonzero(has_KV[:, t]))
            words[t] = f"the mean of {names}"
    return words


def row_tables(
    vocabulary: Vocabulary,
    maps: Mapping[int, Integers],
    base: int | None,
    rules: Mapping[str, Forced],
    labels: Mapping[int, str],
) -> Filling:
    """Return for each model the table of its rows.

    The sources of the tables are the models in the order of `maps`, then for each of them the mean of its own rows.
    """
    defaults, words = default_entries(vocabulary, maps, base, rules, labels)
    place = {number: k for k, number in enumerate(maps)}
    forced = np.zeros(vocabulary.rows, np.bool_)
    forced[[vocabulary.ids[token] for token, rule in rules.items() if rule.force]] = True
    held = np.zeros(vocabulary.rows, np.bool_)
    held[defaults.targets] = True
    orphans = np.flatnonzero(vocabulary.padded & ~held)
    sources = np.array([place[int(number)] for number in defaults.models], np.int64)
    tables: dict[int, RowTable] = {}
    said: dict[int, dict[str, int]] = {}
    for number, rows in maps.items():
        own = np.flatnonzero((rows >= 0) & ~forced)
        lacking = np.ones(vocabulary.rows, np.bool_)
        lacking[own] = False
        mean = np.full(len(orphans), len(maps) + place[number])
        taken = lacking[defaults.targets]
        tables[number] = RowTable.of(
            vocabulary.rows,
            np.concatenate((own, defaults.targets[taken], orphans)),
            np.concatenate((np.full(len(own), place[number]), sources[taken], mean)),
            np.concatenate((rows[own], defaults.rows[taken], np.zeros(len(orphans), np.int64))),
            np.concatenate((np.ones(len(own)), defaults.coefficients[taken], np.ones(len(orphans)))),
        )
        said[number] = dict(Counter(words[t] for t in np.flatnonzero(lacking)))
    return Filling(tables, said)
