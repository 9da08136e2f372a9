"""Measuring: ACC, ASR, RA and DER, replays, the bench that compares defences and its summary, relearning."""

from gradprune.evaluation.backdoorbench import AttackResult, read_attack_result
from gradprune.evaluation.grid import Cell, Grid
from gradprune.evaluation.metrics import Exam, Metrics, der, evaluate, exam, measure, verdict
from gradprune.evaluation.own import Own
from gradprune.evaluation.reference import published
from gradprune.evaluation.relearn import relearn
from gradprune.evaluation.replay import replay
from gradprune.evaluation.runner import run
from gradprune.evaluation.store import read_results
from gradprune.evaluation.summary import attack_kind, gain, ranking, significance, summarise
from gradprune.evaluation.victim import Victim, load_victim

__all__ = ["AttackResult", "Cell", "Exam", "Grid", "Metrics", "Own", "Victim", "attack_kind", "der", "evaluate", "exam",
           "gain", "load_victim", "measure", "published", "ranking", "read_attack_result", "read_results", "relearn",
           "replay", "run", "significance", "summarise", "verdict"]
