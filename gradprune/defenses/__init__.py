"""Defences: each takes (model, clean images, trigger) and returns a DefenseResult; `defense("clp")` finds one by name.

All are called alike: `ft(model, clean, trigger, *, spc=10, seed=0, progress=True, ...)`. Only `grad_prune`
(both recipes) and `ft_unlearn` use the trigger. None sees the test set, and none changes the model it is given. Where
the trigger is unknown, `scan` looks for one and `prune_scanned` runs `grad_prune` with it.

Not here: IMS (Dunnett et al., 2025, "Backdoor Mitigation via Invertible Pruning Masks", arXiv:2509.15497). Its idea is
public (a mask and its inverse are learned together: the inverse keeps the backdoor and is used to synthesise
perturbations, which the mask must resist), but the exact losses, their weights and the schedule of its two problems
could not be established from the sources at hand, and a guess under its name would be unfair to it.
"""

from collections.abc import Callable

from gradprune.defenses.anp import anp
from gradprune.defenses.clp import clp
from gradprune.defenses.fine_pruning import fine_pruning
from gradprune.defenses.ft import ft
from gradprune.defenses.ft_distilled import ft_distilled
from gradprune.defenses.ft_sam import ft_sam
from gradprune.defenses.ft_unlearn import ft_unlearn
from gradprune.defenses.grad_prune import grad_prune, grad_prune_verified, prune_scanned
from gradprune.defenses.i_bau import i_bau
from gradprune.defenses.nad import nad
from gradprune.defenses.neural_cleanse import neural_cleanse
from gradprune.defenses.result import DefenseResult
from gradprune.defenses.rnp import rnp
from gradprune.defenses.scan import Scan, scan
from gradprune.errors import unknown

DEFENSES: dict[str, Callable[..., DefenseResult]] = {
    "grad_prune": grad_prune, "grad_prune_verified": grad_prune_verified, "ft": ft, "ft_unlearn": ft_unlearn,
    "ft_distilled": ft_distilled,
    "fine_pruning": fine_pruning, "clp": clp, "anp": anp, "nad": nad, "i_bau": i_bau, "rnp": rnp, "ft_sam": ft_sam,
    "neural_cleanse": neural_cleanse}

__all__ = ["DEFENSES", "DefenseResult", "Scan", "anp", "clp", "defense", "fine_pruning", "ft", "ft_distilled", "ft_sam",
           "ft_unlearn", "grad_prune", "grad_prune_verified", "i_bau", "nad", "neural_cleanse", "prune_scanned", "rnp",
           "scan"]


def defense(name: str) -> Callable[..., DefenseResult]:
    """A defence by name; raises InputError, with the nearest names, for one that nobody knows."""
    if name not in DEFENSES:
        raise unknown("defense", name, DEFENSES)
    return DEFENSES[name]
