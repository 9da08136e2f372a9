"""Measuring: ACC, ASR, RA and DER, and the replay of a pruning run."""

from gradprune.evaluation.metrics import Metrics, der, evaluate, verdict
from gradprune.evaluation.replay import replay

__all__ = ["Metrics", "der", "evaluate", "replay", "verdict"]
