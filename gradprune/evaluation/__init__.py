"""Measuring: ACC, ASR, RA and DER, the replay of a pruning run, and whether a backdoor comes back."""

from gradprune.evaluation.metrics import Metrics, der, evaluate, verdict
from gradprune.evaluation.relearn import relearn
from gradprune.evaluation.replay import replay
from gradprune.evaluation.victim import Victim, load_victim

__all__ = ["Metrics", "Victim", "der", "evaluate", "load_victim", "relearn", "replay", "verdict"]
