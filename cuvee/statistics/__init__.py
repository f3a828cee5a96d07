"""Forward passes that collect what methods need to know of data."""

from cuvee.statistics.collecting import Statistics, collect_gram, collect_hidden
from cuvee.statistics.texts import read_texts
from cuvee.statistics.typical import typical_texts

__all__ = ["Statistics", "collect_gram", "collect_hidden", "read_texts", "typical_texts"]
