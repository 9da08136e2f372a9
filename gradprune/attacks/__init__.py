"""Triggers (one a file), poisoning, and training; `make_trigger("badnets", size=3)` builds one by name."""

from typing import Any

from gradprune.attacks.badnets import BadNets
from gradprune.attacks.blended import Blended
from gradprune.attacks.bpp import Bpp
from gradprune.attacks.foreign import Added, read_trigger
from gradprune.attacks.input_aware import InputAware
from gradprune.attacks.label_consistent import LabelConsistent
from gradprune.attacks.low_frequency import LowFrequency
from gradprune.attacks.picture import Picture
from gradprune.attacks.planting import Planted, plant
from gradprune.attacks.poisoning import Poisoned, poison
from gradprune.attacks.sig import SIG
from gradprune.attacks.training import TrainingResult, fit
from gradprune.attacks.trigger import Trigger
from gradprune.attacks.trojannn import TrojanNN
from gradprune.attacks.wanet import WaNet
from gradprune.errors import InputError, unknown

TRIGGERS: dict[str, type[Trigger]] = {kind.name: kind for kind in (
    BadNets, Blended, SIG, LowFrequency, Bpp, WaNet, InputAware, LabelConsistent, TrojanNN)}

__all__ = ["SIG", "TRIGGERS", "Added", "BadNets", "Blended", "Bpp", "InputAware", "LabelConsistent", "LowFrequency",
           "Picture", "Planted", "Poisoned", "TrainingResult", "Trigger", "TrojanNN", "WaNet", "fit", "make_trigger",
           "plant", "poison", "read_trigger"]


def make_trigger(name: str, **settings: Any) -> Trigger:
    """Build a trigger by name; settings are the class's own arguments. Raises InputError for unknown ones.

    "picture" and "added", which stand on cards, make a `Picture` and an `Added` whose pixels are still to come from the
    checkpoint.
    """
    known = TRIGGERS | ({"picture": Picture, "added": Added} if settings else {})
    if name not in known:
        raise unknown("trigger", name, TRIGGERS)
    try:
        return known[name](**settings)
    except TypeError as error:
        raise InputError(f"Trigger {name!r} cannot be built with {settings}: {error}.") from None
