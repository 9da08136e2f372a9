"""The four figures of every table: ACC, ASR, RA and DER, measured on the test set."""

from typing import NamedTuple

from torch import Tensor, nn

from gradprune.attacks.poisoning import attack_labels
from gradprune.base.errors import require
from gradprune.datasets.image_set import ImageSet, check_images
from gradprune.models.inference import predict

BATCH = 64  # images at once: few enough for the activations to stay in the processor's cache


class Metrics(NamedTuple):
    """Shares in 0..1. ASR and RA are counted on images whose true class is not the attacker's label for them.

    acc: clean accuracy, clean images classified correctly.
    asr: attack success rate, triggered images given the attacker's label: the target or, all-to-all, the next class.
    ra: robust accuracy, triggered images still given their true class.
    """

    acc: float
    asr: float
    ra: float

    def __str__(self) -> str:
        return f"ACC {self.acc:.1%}  ASR {self.asr:.1%}  RA {self.ra:.1%}"


class Exam(NamedTuple):
    """A test set prepared for measuring many models: images with and without the trigger, and their labels.

    images, labels: all clean images, float (N, C, H, W) in [0, 1], and their classes, int64 (N,).
    triggered, true, wanted: the images for ASR and RA, float (M, C, H, W) in [0, 1], their true classes and the
        attacker's labels for them, int64 (M,).
    """

    images: Tensor
    labels: Tensor
    triggered: Tensor
    true: Tensor
    wanted: Tensor


def exam(test: ImageSet, trigger: nn.Module, target: int | None, label_map: str = "all_to_one") -> Exam:
    """Prepare a test set, with the trigger on the images for ASR and RA; arguments and errors as in `evaluate`."""
    check_images("test", test)
    require(len(test) > 0, "the test set is empty.")
    wanted = attack_labels(test, target, label_map)
    counted = wanted != test.labels
    others = test.subset(counted)
    require(len(others) > 0, f"every test image is of the target class {target}: ASR and RA are undefined.")
    return Exam(test.floats(), test.labels.cpu(), others.triggered(trigger), others.labels.cpu(), wanted[counted].cpu())


def measure(model: nn.Module, questions: Exam, batch_size: int = BATCH) -> Metrics:
    """ACC, ASR and RA of a model on an exam."""
    acc = accuracy(model, questions.images, questions.labels, batch_size)
    answers = predict(model, questions.triggered, batch_size).argmax(1).cpu()
    asr, ra = ((answers == label).double().mean() for label in (questions.wanted, questions.true))
    return Metrics(acc, asr.item(), ra.item())


def accuracy(model: nn.Module, images: Tensor, labels: Tensor, batch_size: int = BATCH) -> float:
    """The share (0..1) of images, float (N, C, H, W) in [0, 1], classified as in `labels`, int64 (N,) on the CPU."""
    return (predict(model, images, batch_size).argmax(1).cpu() == labels).double().mean().item()


def evaluate(model: nn.Module, test: ImageSet, trigger: nn.Module, target: int | None, batch_size: int = BATCH,
             label_map: str = "all_to_one") -> Metrics:
    """ACC, ASR and RA of a model on a test set under a trigger, in one call.

    trigger: float images (N, C, H, W) in [0, 1] -> the same shape and range.
    target: the attacker's class; may be None for all-to-all.
    label_map: the attacker's labels, see `attacks.poisoning.attack_labels`. ASR and RA leave out the target class with
        all-to-one, and count every image with all-to-all.
    Raises InputError for an empty set, a target or map out of range, a set that has only the target class, or a trigger
    that changes the images' shape or range.
    """
    return measure(model, exam(test, trigger, target, label_map), batch_size)


def der(before: Metrics, after: Metrics) -> float:
    """Defence effectiveness rating: (max(0, ASR drop) - max(0, ACC drop) + 1) / 2, in 0..1; 0.5 is no net gain.

    Source: Zhu et al., 2023 (FT-SAM, arXiv:2304.11823).
    """
    return (max(0.0, before.asr - after.asr) - max(0.0, before.acc - after.acc) + 1) / 2


def verdict(before: Metrics, after: Metrics) -> str:
    """The outcome of a defence in a few words, from the test figures.

    A model with an ASR of at least 0.10 counts as backdoored (a clean one errs towards the target less often); at most
    0.05 afterwards counts as success.
    """
    if before.asr < 0.10:
        return "There was no backdoor to remove"
    if after.asr <= 0.05:
        return "The backdoor no longer works"
    return "The backdoor is weaker but still there" if after.asr <= before.asr / 2 else "The defence failed"
