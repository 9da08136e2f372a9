"""What a trial of recipe `verified` is judged by."""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradprune.models.inference import predict
from gradprune.pruning.unlearning import Pairs


class Objective:
    """Unlearning loss + weight * KL(given model's answers || answers now) on the clean images, as a mean over pairs.

    The second term asks for what the given model said, right or wrong: it changes with every removal that touches the
    clean task, long before ten images show a mistake.
    """

    def __init__(self, given: nn.Module, pairs: Pairs, weight: float) -> None:
        self.pairs = len(pairs.labels)
        self.images = torch.cat([pairs.clean, pairs.triggered])
        self.labels = pairs.labels.repeat(2)
        self.is_clean = torch.arange(len(self.labels), device=self.labels.device) < self.pairs
        answers = predict(given, pairs.clean).softmax(1)
        true = F.one_hot(pairs.labels, answers.shape[1]).to(answers)  # KL(true || answers) is the cross-entropy
        self.wanted = torch.cat([answers, true])
        self.weights = torch.where(self.is_clean, weight, 1.0)

    def __call__(self, logits: Tensor) -> Tensor:
        """logits: (..., 2N, classes) of `images`, clean ones first; returns (...)."""
        return self.terms(logits).sum(-1) / self.pairs

    def terms(self, logits: Tensor) -> Tensor:
        """What each image adds to N times the objective, never below zero: float (..., 2N)."""
        apart = F.kl_div(logits.log_softmax(-1), self.wanted.expand_as(logits), reduction="none").sum(-1)
        return self.weights * apart

    def wrong(self, logits: Tensor) -> Tensor:
        """Which images are clean and given another label than the true one: bool (..., 2N)."""
        return self.is_clean & (logits.argmax(-1) != self.labels)

    def of(self, chosen: Tensor) -> "Objective":
        """The terms of some of the images, int64 (M,), in that order; the number of pairs stays N."""
        part = copy.copy(self)
        for name in ("images", "labels", "is_clean", "wanted", "weights"):
            setattr(part, name, getattr(self, name)[chosen])
        return part
