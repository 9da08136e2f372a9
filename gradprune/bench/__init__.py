"""The bench: every defence on every attack, rows that survive a crash, their summary and ranking."""

from gradprune.bench.grid import Cell, Grid
from gradprune.bench.reference import published
from gradprune.bench.runner import run
from gradprune.bench.store import read_results
from gradprune.bench.summary import attack_kind, gain, ranking, significance, summarise

__all__ = ["Cell", "Grid", "attack_kind", "gain", "published", "ranking", "read_results", "run", "significance",
           "summarise"]
