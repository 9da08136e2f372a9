"""Triggers (one per file), poisoning, and training; `make_trigger("badnets", size=3)` builds a trigger by name."""

from typing import Any

from gradprune.attacks.plant_backdoor import Planted, plant
from gradprune.attacks.poisoning import Poisoned, poison
from gradprune.attacks.training import TrainingResult, fit
from gradprune.attacks.triggers.badnets import BadNets
from gradprune.attacks.triggers.blended import Blended
from gradprune.attacks.triggers.bpp import Bpp
from gradprune.attacks.triggers.foreign import Added, read_trigger
from gradprune.attacks.triggers.input_aware import InputAware
from gradprune.attacks.triggers.label_consistent import LabelConsistent
from gradprune.attacks.triggers.low_frequency import LowFrequency
from gradprune.attacks.triggers.picture import Picture
from gradprune.attacks.triggers.sig import SIG
from gradprune.attacks.triggers.trigger import Trigger
from gradprune.attacks.triggers.trojannn import TrojanNN
from gradprune.attacks.triggers.wanet import WaNet
from gradprune.base.errors import told_as, unknown

TRIGGERS: dict[str, type[Trigger]] = {kind.name: kind for kind in (
    BadNets, Blended, SIG, LowFrequency, Bpp, WaNet, InputAware, LabelConsistent, TrojanNN)}

__all__ = ["SIG", "TRIGGERS", "Added", "BadNets", "Blended", "Bpp", "InputAware", "LabelConsistent", "LowFrequency",
           "Picture", "Planted", "Poisoned", "TrainingResult", "Trigger", "TrojanNN", "WaNet", "fit", "make_trigger",
           "plant", "poison", "read_trigger"]


def make_trigger(name: str, **settings: Any) -> Trigger:
    """Build a trigger by name; settings are the class's own arguments.

    "picture" and "added", which cards may name, make a `Picture` and an `Added` without pixels; these are loaded from
    the checkpoint. Raises InputError for an unknown name or setting, or a value out of range.
    """
    known = TRIGGERS | ({"picture": Picture, "added": Added} if settings else {})
    if name not in known:
        raise unknown("trigger", name, TRIGGERS)
    with told_as(lambda error: f"Trigger {name!r} cannot be built with {settings}: {error}.", (TypeError,)):
        return known[name](**settings)
