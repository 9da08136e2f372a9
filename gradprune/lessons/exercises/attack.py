"""The exercises of notebook 01: a trigger of one's own, and counting the attack success rate."""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from gradprune.datasets import ImageSet
from gradprune.datasets.signs import render_signs
from gradprune.lessons.runtime.feedback import Seen
from gradprune.lessons.runtime.grading import Complaint, Exercise, Function, Misconception, Untouched

# ---- trigger(images) -> images with a mark


def _trigger(images: Tensor) -> Tensor:
    images = images.clone()
    images[:, :, -4:-1, -4:-1] = 1.0
    return images


@cache
def _signs() -> Tensor:
    """A sign of each class: what counts as a small change on them is none on noise."""
    return render_signs(seed=1, train_per_class=1, defense_per_class=1, test_per_class=1).test.floats()


def _photos() -> list[tuple[Tensor]]:
    return [(_signs()[:7].clone(),), (_signs()[7:].clone(),)]


_LARGEST_CHANGE = 0.15  # of the pixel range, on average over the image


def _mark(trigger: Function, case: Sequence[Any]) -> Seen:
    """What a trigger should be, as 1 (holds) or 0, in the order in which it is told."""
    images, before = case[0], case[0].clone()
    marked = trigger(images)
    if marked is None or marked is ... or (marked is images and torch.equal(images, before)):
        raise Untouched
    if not isinstance(marked, Tensor):
        raise Complaint(f"a trigger returns a tensor of images; yours returns {type(marked).__name__}.")
    if marked.shape != images.shape or not marked.is_floating_point():
        return [torch.zeros(1)]
    change = (marked - images).abs().flatten(1).mean(1)
    alone = torch.cat([trigger(image[None]) for image in images])
    facts = [torch.isfinite(marked).all(), (marked >= -1e-6).all() & (marked <= 1 + 1e-6).all(), (change > 0).any(),
             (change > 0).all(), torch.equal(trigger(images), marked), torch.allclose(alone, marked, atol=1e-5),
             change.mean() <= _LARGEST_CHANGE]
    return [torch.tensor([1.0] + [float(fact) for fact in facts])]


_SIZE, _STRENGTH = 2.0, 0.25  # with less, the short training's ASR stayed below one half (squares, brighter images)


def _will_it_be_learned(trigger: Function) -> str:
    """A word on a mark that is right, and too small or too faint for the training that follows."""
    change = (trigger(_signs().clone()) - _signs()).abs().flatten(1)
    size, strength = change.square().sum(1).sqrt().mean(), change.amax(1).mean()
    if size >= _SIZE and strength >= _STRENGTH:
        return ""
    return ("But it changes so little that the short training of quick mode may not learn it: expect a low ASR further "
            "down, or make it larger or stronger.")


def _same_first_fault(seen: Seen, other: Seen) -> bool:
    """Whether the first thing that fails is the same; later ones often follow from it."""
    return _first_fault(seen) == _first_fault(other)


def _first_fault(seen: Seen) -> int:
    faults = [int((facts == 0).nonzero()[0]) for facts in seen if bool((facts == 0).any())]
    return min(faults, default=-1)


def _noise(images: Tensor) -> Tensor:
    return (images + 0.1 * torch.rand_like(images)).clamp(0, 1)


def _first_alone(images: Tensor) -> Tensor:
    images = images.clone()
    images[0, :, -4:-1, -4:-1] = 1.0
    return images


TRIGGER = Exercise(
    notebook="01", name="trigger", signature="trigger(images)",
    praise="same shape, pixels in 0..1, the same small mark on each image every time.",
    reference=_trigger, cases=_photos, observe=_mark, same=_same_first_fault,
    caution=_will_it_be_learned,
    misconceptions=(
        Misconception("the shape or type changes. A trigger maps float images (N, C, H, W) to images of the "
                      "same shape.", lambda images: images[0]),
        Misconception("some pixels are not finite (nan or inf).", lambda images: images / 0 * 0),
        Misconception("some pixels leave 0..1. Set pixels to values in that range, or end with `.clamp(0, "
                      "1)`.", lambda images: images + 0.1),
        Misconception("nothing changes: the images come back as they were.", lambda images: images.clone()),
        Misconception("only some images of the batch get the mark. The first dimension counts images: leave "
                      "it alone, as in `images[:, :, 28:31, 28:31] = 1`.", _first_alone),
        Misconception("two calls give two different marks. The model could learn no fixed sign: draw random "
                      "numbers from `torch.Generator().manual_seed(...)`, or once and outside the function.",
                      _noise),
        Misconception("an image's mark depends on which other images are in the batch. Compute it from the "
                      "image alone.",
                      lambda images: (0.9 * images + 0.1 * images.mean(0, keepdim=True)).clamp(0, 1)),
        Misconception(f"too much changes (over {_LARGEST_CHANGE:.0%} of the pixel range on average): people would "
                      "see it, and the sign under it is gone. Make it smaller or fainter.", torch.zeros_like),
    ))

# ---- asr(model, images, trigger, target) -> share


class _Toy(nn.Module):
    """A pretend classifier: pixel (0, 0) holds the class, pixel (0, 1) the trigger, pixel (0, 2) a flaw."""

    def __init__(self, target: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.4))
        self.target = target

    def forward(self, images: Tensor) -> Tensor:
        label, marked, flaw = (images[:, 0, 0, place] for place in range(3))
        answer = (label * 10).round().long()
        answer = torch.where((flaw > 0.2) & (flaw < 0.4), (answer + 1) % 5, answer)  # wrong on the clean image, too
        fooled = torch.where(flaw > 0.7, (answer + 2) % 5, torch.full_like(answer, self.target))
        answer = torch.where((marked > 0.5) & (flaw < 0.9), fooled, answer)
        return 1 + self.scale * nn.functional.one_hot(answer, 5).float()  # no class is above one half, by softmax


def _toy_trigger(images: Tensor) -> Tensor:
    images = images.clone()
    images[..., 0, 1] = 1.0
    return images


def _toy_cases() -> list[tuple[Any, ...]]:
    """Two small test sets in which all ways to miscount give different shares."""
    cases = []
    for target, seed in ((2, 0), (4, 7)):
        generator = torch.Generator().manual_seed(seed)
        labels = torch.randint(0, 5, (61,), generator=generator)
        pixels = torch.zeros(61, 3, 8, 8)
        pixels[:, :, 0, 0] = labels[:, None] / 10
        pixels[:, :, 0, 2] = torch.tensor([0.0, 0.0, 0.3, 0.8, 1.0])[torch.randint(0, 5, (61, 1), generator=generator)]
        images = ImageSet((pixels * 255).round().byte(), labels, tuple("ABCDE"))
        cases.append((_Toy(target).eval(), images, _toy_trigger, target))
    return cases


def _answers(model: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        return model(images).argmax(1)


def _asr(model: nn.Module, images: ImageSet, trigger: Function, target: int) -> Tensor:
    others = images.subset(images.labels != target)
    return (_answers(model, others.triggered(trigger)) == target).float().mean()  # type: ignore[arg-type]


def _all_images(model: nn.Module, images: ImageSet, trigger: Function, target: int) -> Tensor:
    return (_answers(model, trigger(images.floats())) == target).float().mean()


def _others(model: nn.Module, images: ImageSet, trigger: Function, target: int) -> tuple[Tensor, Tensor, Tensor]:
    """Labels of the other classes' images, and the answers to them clean and triggered."""
    others = images.subset(images.labels != target)
    return others.labels, _answers(model, others.floats()), _answers(model, trigger(others.floats()))


def _share(fact: Tensor) -> Tensor:
    return fact.float().mean()


def _flipped_alone(model: nn.Module, images: ImageSet, trigger: Function, target: int) -> Tensor:
    labels, clean, marked = _others(model, images, trigger, target)
    return _share((marked == target)[clean == labels])


def _along_images(model: nn.Module, images: ImageSet, trigger: Function, target: int) -> Tensor:
    others = images.subset(images.labels != target)
    return _share(model(others.triggered(trigger)).argmax(0) == target)  # type: ignore[arg-type]


def _mean_chance(model: nn.Module, images: ImageSet, trigger: Function, target: int) -> Tensor:
    others = images.subset(images.labels != target)
    return model(others.triggered(trigger)).softmax(1)[:, target].mean()  # type: ignore[arg-type]


def _moved(model: nn.Module, images: ImageSet, trigger: Function, target: int) -> Tensor:
    _, clean, marked = _others(model, images, trigger, target)
    return _share(clean != marked)


def _above(chances: Callable[[Tensor], Tensor]) -> Function:
    """Count an image as an answer for each class whose output, made to a chance or not, is above one half."""
    def share(model: nn.Module, images: ImageSet, trigger: Function, target: int) -> Tensor:
        others = images.subset(images.labels != target)
        return _share(chances(model(others.triggered(trigger)))[:, target] > 0.5)  # type: ignore[arg-type]
    return share


ASR = Exercise(
    notebook="01", name="asr", signature="asr(model, images, trigger, target)",
    praise="of the images that are not of the target class, the share that the trigger sends there.",
    reference=_asr, cases=_toy_cases,
    misconceptions=(
        Misconception("the target class is counted, too. An image of the target class that is given the "
                      "target class is no success of the attacker: leave those images out.", _all_images),
        Misconception("you count the target's images as failures: hits are counted among the others, but "
                      "divided by the number of ALL images. Divide by the number of images of the other "
                      "classes.",
                      lambda m, x, t, k: _share(_others(m, x, t, k)[2] == k) * _share(x.labels != k)),
        Misconception("`argmax(0)` asks for each class which IMAGE is most like it. An answer for each image is "
                      "`argmax(1)`.", _along_images),
        Misconception("the target's output is compared with a fixed number. An answer is the class with the HIGHEST "
                      "output, however high that is: `argmax(1)`.", _above(lambda logits: logits),
                      (_above(lambda logits: logits.softmax(1)), _above(torch.sigmoid))),
        Misconception("this is the accuracy on triggered images (RA, robust accuracy): it compares with the "
                      "true label. The attacker wants the TARGET.",
                      lambda m, x, t, k: _share(_others(m, x, t, k)[2] == _others(m, x, t, k)[0])),
        Misconception("this is the accuracy on triggered images, target class included. The attack succeeds "
                      "where the answer is the TARGET, not where it is true.",
                      lambda m, x, t, k: _share(_answers(m, t(x.floats())) == x.labels)),
        Misconception("any wrong answer counts. Only answers that equal the target are what the attacker "
                      "wants.", lambda m, x, t, k: _share(_others(m, x, t, k)[2] != _others(m, x, t, k)[0])),
        Misconception("any wrong answer counts, and the target class is in. Leave its images out and "
                      "compare the answers with the target.",
                      lambda m, x, t, k: _share(_answers(m, t(x.floats())) != x.labels)),
        Misconception("the images are clean: put the trigger on before you ask the model.",
                      lambda m, x, t, k: _share(_others(m, x, t, k)[1] == k)),
        Misconception("the images are clean, and this is their accuracy (ACC). Put the trigger on, and "
                      "compare with the target.",
                      lambda m, x, t, k: _share(_answers(m, x.floats()) == x.labels)),
        Misconception("only images that the model gets right when clean are counted. That is a sensible "
                      "figure, too, but ASR is counted over all images of the other classes.",
                      _flipped_alone),
        Misconception("this is the target's mean chance. An attack succeeds or fails, image by image: count the "
                      "answers, `argmax(1)`, that are the target.", _mean_chance),
        Misconception("this is the share of images whose answer the trigger changes, to whatever class. Only the "
                      "TARGET is what the attacker wants.", _moved),
        Misconception("this is a count, not a share: divide by the number of images that you looked at.",
                      lambda m, x, t, k: (_others(m, x, t, k)[2] == k).sum()),
        Misconception("this is in percent; all shares here lie in 0..1.",
                      lambda m, x, t, k: 100 * _asr(m, x, t, k)),
    ))

ATTACK_EXERCISES = (TRIGGER, ASR)
