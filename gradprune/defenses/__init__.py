"""Defences: each takes (model, clean images, trigger) and returns a DefenseResult."""

from gradprune.defenses.grad_prune import grad_prune
from gradprune.defenses.result import DefenseResult

__all__ = ["DefenseResult", "grad_prune"]
