"""Measuring: ACC, ASR, RA and DER, and the replay of a pruning run."""

from gradprune.evaluation.metrics import Metrics, der, evaluate, verdict
from gradprune.evaluation.replay import replay
from gradprune.evaluation.victim import Victim, load_victim

__all__ = ["Metrics", "Victim", "der", "evaluate", "load_victim", "replay", "verdict"]
