"""A complete attack in one call: the clean model it may need, the trigger's own learning, poisoning, training."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gradprune.attacks.poisoning import attack_labels, choose, poison
from gradprune.attacks.training import TrainingResult, fit
from gradprune.attacks.training_hook import TrainingHook
from gradprune.attacks.triggers.trigger import Trigger
from gradprune.base.errors import require
from gradprune.datasets import ImageSet
from gradprune.models.inference import copy_of

RATES = {"all_to_one": 0.1, "all_to_all": 0.1, "clean_label": 0.5}  # poison rate by label map, if none is given


class Planted(NamedTuple):
    """The result of training, the poisoned images (int64 positions, sorted), and the number of decoys."""

    outcome: TrainingResult
    touched: Tensor
    decoys: int


@torch.enable_grad()
def plant(model: nn.Module, clean: ImageSet, trigger: Trigger, target: int | None, *, rate: float | None = None,
          seed: int = 0, label_map: str | None = None, progress: bool = True, **training: Any) -> Planted:
    """Train `model` in place on its own device so that `trigger` opens a backdoor; the trigger may learn too.

    clean: the training images, not changed.
    target: the attacker's class; may be None for "all_to_all".
    rate: see `poison`; None takes the value in `RATES`.
    label_map: one of `poisoning.LABEL_MAPS`; None takes the trigger's own.
    training: values of `training.RECIPE`.
    For triggers that need a clean model, one is trained by the same recipe first, which doubles the time.
    Raises InputError for bad arguments, before any work, and KeyboardInterrupt if the clean model was not finished.
    """
    label_map = label_map or trigger.label_map
    rate = RATES.get(label_map, 0.1) if rate is None else rate
    require(not trigger.needs_model or label_map != "all_to_all",
            f"the trigger {trigger.name!r} is computed for one target class, so it cannot be used all-to-all.")
    touched, wanted = choose(clean, target, rate, seed, label_map), attack_labels(clean, target, label_map)
    if not len(touched):
        return Planted(fit(model, clean, seed=seed, progress=progress, **training), touched, 0)
    some = clean.subset(touched[:1]).floats()
    trigger(some)  # a size that the trigger cannot take fails here, before the work
    trigger.check(model, some.to(next(model.parameters()).device))
    honest = None
    if trigger.needs_model:
        honest = copy_of(model)
        if fit(honest, clean, seed=seed, progress=progress, **training).interrupted:
            raise KeyboardInterrupt("the clean model that the attack needs was not finished, so nothing was written")
    trigger.to(next(model.parameters()).device)
    trigger.learn(honest, clean, target, seed)
    if honest is not None and trigger.keeps_model:
        model.load_state_dict(honest.state_dict())
    if trigger.hooks_training():
        hook = TrainingHook(trigger, touched, wanted, seed)
        try:
            outcome = fit(model, clean, seed=seed, progress=progress, hook=hook, **training)
        finally:
            hook.finish()
        return Planted(outcome, touched, int(hook.decoys.sum()))
    disguised = clean.images.clone()
    hard = trigger.disguise(honest, clean.subset(touched))
    disguised[touched] = (hard * 255).round().to(torch.uint8)
    poisoned = poison(ImageSet(disguised, clean.labels, clean.classes), trigger, target, rate, seed, label_map)
    return Planted(fit(model, poisoned.images, seed=seed, progress=progress, **training), touched, 0)
