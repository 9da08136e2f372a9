"""Backdoored models with their data and trigger: shipped, trained here, the user's own, or from BackdoorBench."""

from gradprune.victims.backdoorbench import AttackResult, read_attack_result
from gradprune.victims.own import Own
from gradprune.victims.victim import Victim, load_victim

__all__ = ["AttackResult", "Own", "Victim", "load_victim", "read_attack_result"]
