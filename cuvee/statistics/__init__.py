"""Passes over texts that collect what methods need to know of data."""

from cuvee.statistics.collecting import collect_gram, collect_hidden
from cuvee.statistics.found import Statistics
from cuvee.statistics.gradients import collect_fisher, collect_outgram
from cuvee.statistics.texts import read_texts
from cuvee.statistics.typical import typical_texts

__all__ = [
    "Statistics",
    "collect_fisher",
    "collect_gram",
    "collect_hidden",
    "collect_outgram",
    "read_texts",
    "typical_texts",
]
