"""Defences: each takes (model, clean images, trigger) and returns a DefenseResult; `defense("clp")` finds one by name.

All are called in the same way: `ft(model, clean, trigger, *, spc=10, seed=0, progress=True, ...)`. Only those in
`KNOWS_TRIGGER` use the trigger, which makes their task a different one. None sees the test set or changes the given
model. If the trigger is unknown, `scan` looks for one and `prune_scanned` runs `grad_prune` with it.
"""

from collections.abc import Callable

from gradprune.base.errors import require_known
from gradprune.defenses.anp import anp
from gradprune.defenses.clp import clp
from gradprune.defenses.driven import driven
from gradprune.defenses.exposure import Reach, exposure
from gradprune.defenses.fine_pruning import fine_pruning
from gradprune.defenses.fst import fst
from gradprune.defenses.ft import ft, ft_distilled, ft_unlearn
from gradprune.defenses.ft_sam import ft_sam
from gradprune.defenses.grad_prune import grad_prune, grad_prune_paper, grad_prune_verified, prune_scanned
from gradprune.defenses.i_bau import i_bau
from gradprune.defenses.ims import ims
from gradprune.defenses.nad import nad
from gradprune.defenses.neural_cleanse import neural_cleanse
from gradprune.defenses.repair import repair, unsteadiness
from gradprune.defenses.result import DefenseResult
from gradprune.defenses.rnp import rnp
from gradprune.defenses.sau import sau
from gradprune.defenses.scan import Scan, scan

DEFENSES: dict[str, Callable[..., DefenseResult]] = {
    "grad_prune": grad_prune_paper, "grad_prune_verified": grad_prune_verified, "ft": ft, "ft_unlearn": ft_unlearn,
    "ft_distilled": ft_distilled, "fine_pruning": fine_pruning, "clp": clp, "anp": anp, "nad": nad, "i_bau": i_bau,
    "rnp": rnp, "ft_sam": ft_sam, "neural_cleanse": neural_cleanse, "sau": sau, "fst": fst, "ims": ims,
    "repair": repair}

# Defences that are given the attacker's trigger: tables of results rank them separately.
KNOWS_TRIGGER = {"grad_prune", "grad_prune_verified", "ft_unlearn", "ft_distilled"}

__all__ = ["DEFENSES", "KNOWS_TRIGGER", "DefenseResult", "Reach", "Scan", "anp", "clp", "defense", "driven", "exposure",
           "fine_pruning", "fst", "ft", "ft_distilled", "ft_sam", "ft_unlearn", "grad_prune", "grad_prune_verified",
           "i_bau", "ims", "nad", "neural_cleanse", "prune_scanned", "repair", "rnp", "sau", "scan", "unsteadiness"]


def defense(name: str) -> Callable[..., DefenseResult]:
    """A defence by name; raises InputError, with the nearest names, for an unknown one."""
    require_known("defence", name, DEFENSES)
    return DEFENSES[name]
