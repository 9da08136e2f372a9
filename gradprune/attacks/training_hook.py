"""Attacks that take part in training: a hook for `fit` that stamps triggers and decoys in every batch."""

import torch
from torch import Tensor

from gradprune.attacks.triggers.trigger import Trigger

LR = 0.01  # of Adam for a trigger's moving parameters (Nguyen & Tran, 2020)


class TrainingHook:
    """A hook for `fit(model, clean_images, hook=...)`; poisoned images are stamped anew in every batch.

    trigger: its moving parameters, if any, learn from the classifier's own backward pass: the stamped images keep their
        graph, and the step is made when the next batch comes.
    touched: int64 positions of the poisoned images.
    wanted: int64 (N,), the attacker's label for every image.
    seed: which other images become decoys (see `Trigger.decoy`): `trigger.decoys` per poisoned one, or all there are.
    If `fit` starts again with half the batch, recognised by a new random generator, the moving parameters are reset.
    Call `finish` after training to make the trigger a constant again.
    """

    def __init__(self, trigger: Trigger, touched: Tensor, wanted: Tensor, seed: int = 0) -> None:
        self.trigger, self.wanted = trigger, wanted.cpu()
        self.poisoned = torch.zeros(len(wanted), dtype=torch.bool)
        self.poisoned[touched.cpu()] = True
        free = torch.nonzero(~self.poisoned).flatten()
        order = torch.randperm(len(free), generator=torch.Generator().manual_seed(seed))
        self.decoys = torch.zeros_like(self.poisoned)
        self.decoys[free[order[:round(trigger.decoys * len(touched))]]] = True
        self.moving = trigger.moving()
        self.start = [parameter.clone() for parameter in self.moving]
        for parameter in self.moving:
            parameter.requires_grad_(True)
        self.optimizer: torch.optim.Optimizer | None = None
        self.run: torch.Generator | None = None

    def __call__(self, images: Tensor, labels: Tensor, indices: Tensor, generator: torch.Generator
                 ) -> tuple[Tensor, Tensor]:
        """Return new images and labels; images: float (n, C, H, W) after augmentation; labels, indices: int64 (n,)."""
        if generator is not self.run:
            self._begin(generator)
        self._step()
        chosen = indices.cpu()
        poisoned, decoys = self.poisoned[chosen].to(images.device), self.decoys[chosen].to(images.device)
        mixed, labels = images.clone(), labels.clone()
        if self.optimizer and len(images) > 1:
            self.trigger.own_loss(images).backward()
        if poisoned.any():
            mixed[poisoned] = self.trigger(images[poisoned])
            labels[poisoned] = self.wanted[chosen].to(labels.device)[poisoned]
        if decoys.any() and len(images) > 1:  # a decoy needs another image
            mixed[decoys] = self.trigger.decoy(images[decoys], images.roll(1, 0)[decoys], generator)
        return mixed, labels

    def finish(self) -> None:
        """Make the last step and turn the trigger's parameters into constants again."""
        self._step()
        for parameter in self.moving:
            parameter.requires_grad_(False)
            parameter.grad = None

    def _begin(self, generator: torch.Generator) -> None:
        """Reset the trigger's parameters to their initial values, for a run with this generator."""
        self.run = generator
        with torch.no_grad():
            for parameter, start in zip(self.moving, self.start, strict=True):
                parameter.copy_(start)
                parameter.grad = None
        self.optimizer = torch.optim.Adam(self.moving, lr=LR) if self.moving else None

    def _step(self) -> None:
        """Apply the gradients left by the previous batch, if there was one."""
        if self.optimizer:
            self.optimizer.step()
            self.optimizer.zero_grad()
