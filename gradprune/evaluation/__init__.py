"""Measurements: ACC, ASR, RA and DER, replays of a pruning run, relearning."""

from gradprune.evaluation.metrics import Exam, Metrics, der, evaluate, exam, measure, verdict
from gradprune.evaluation.relearn import relearn
from gradprune.evaluation.replay import replay

__all__ = ["Exam", "Metrics", "der", "evaluate", "exam", "measure", "relearn", "replay", "verdict"]
