"""Triggers (one a file), poisoning, and training; `make_trigger("badnets", size=3)` builds one by name."""

from typing import Any

from gradprune.attacks.badnets import BadNets
from gradprune.attacks.blended import Blended
from gradprune.attacks.poisoning import Poisoned, poison
from gradprune.attacks.sig import SIG
from gradprune.attacks.training import TrainingResult, fit
from gradprune.attacks.trigger import Trigger
from gradprune.errors import InputError, unknown

TRIGGERS: dict[str, type[Trigger]] = {"badnets": BadNets, "blended": Blended, "sig": SIG}

__all__ = ["SIG", "TRIGGERS", "BadNets", "Blended", "Poisoned", "TrainingResult", "Trigger", "fit",
           "make_trigger", "poison"]


def make_trigger(name: str, **settings: Any) -> Trigger:
    """Build a trigger by name; settings are the class's own arguments. Raises InputError for unknown ones."""
    if name not in TRIGGERS:
        raise unknown("trigger", name, TRIGGERS)
    try:
        return TRIGGERS[name](**settings)
    except TypeError as error:
        raise InputError(f"Trigger {name!r} cannot be built with {settings}: {error}.") from None
