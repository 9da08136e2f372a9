"""Measuring: ACC, ASR, RA and DER, the replay of a pruning run, and the summary of a bench."""

from gradprune.evaluation.metrics import Metrics, der, evaluate, verdict
from gradprune.evaluation.reference import published
from gradprune.evaluation.replay import replay
from gradprune.evaluation.summary import gain, ranking, summarise

__all__ = ["Metrics", "der", "evaluate", "gain", "published", "ranking", "replay", "summarise", "verdict"]
