"""What a trial of recipe `verified` is judged by."""

import copy

import torch
from torch import Tensor, nn

from gradprune.models.inference import predict
from gradprune.pruning.unlearning import Pairs


class Objective:
    """Unlearning loss + weight * KL(given model's answers || answers now) on the clean images, as a mean over pairs.

    The second term asks for what the given model said, right or wrong: it changes with every removal that touches the
    clean task, long before ten images show a mistake.
    """

    def __init__(self, given: nn.Module, pairs: Pairs, weight: float) -> None:
        self.labels, self.weight = pairs.labels, weight
        self.images = torch.cat([pairs.clean, pairs.triggered])
        self.answers = predict(given, pairs.clean).log_softmax(1)

    def __call__(self, logits: Tensor) -> Tensor:
        """logits: (..., 2N, classes) of `images`; returns (...)."""
        return self.terms(logits).mean(-1)

    def terms(self, logits: Tensor) -> Tensor:
        """What each pair adds, never below zero: float (..., N); its mean is the objective."""
        now = logits.log_softmax(-1)
        clean, triggered = now.split(len(self.labels), dim=-2)
        unlearning = -triggered[..., torch.arange(len(self.labels), device=now.device), self.labels]
        return unlearning + self.weight * (self.answers.exp() * (self.answers - clean)).sum(-1)

    def right(self, logits: Tensor) -> Tensor:
        """Which clean images are given their true label: bool (..., N); logits as above."""
        return logits[..., : len(self.labels), :].argmax(-1) == self.labels

    def of(self, chosen: Tensor) -> "Objective":
        """The objective on some of the pairs, int64 (M,), in that order."""
        part = copy.copy(self)
        part.labels, part.answers = self.labels[chosen], self.answers[chosen]
        part.images = self.images[torch.cat([chosen, chosen + len(self.labels)])]
        return part
