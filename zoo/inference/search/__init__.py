"""Writing, token by token: settings, rules, choices, writers, and the one loop."""

from zoo.inference.search.penalties import PENALTIES, Penalty
from zoo.inference.search.settings import Search

__all__ = ["PENALTIES", "Penalty", "Search"]
