"""The exercises of notebook 01: a trigger of your own, and counting the attack success rate."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from gradprune.datasets import ImageSet
from gradprune.datasets.signs import render_signs
from gradprune.lessons.runtime.feedback import Seen
from gradprune.lessons.runtime.grading import Complaint, Function, Untouched, exercise

# ---- trigger: judged by what a trigger must be, not by its looks

_LARGEST_CHANGE = 0.15  # of the pixel range, on average over the image
_SIZE, _STRENGTH = 2.0, 0.25  # with less, the short training's ASR stayed below one half (squares, brighter images)


@cache
def _signs() -> Tensor:
    """A sign of each class: what counts as a small change on them is none on noise.

    No pixel is quite black or white, so that a black or a white mark changes every sign, wherever it is.
    """
    signs = render_signs(seed=1, train_per_class=1, defense_per_class=1, test_per_class=1)
    return signs.test.floats().clamp(0.02, 0.98)


def _facts(trigger: Function, case: Sequence[Any]) -> Seen:
    """What a trigger should be, as 1 (holds) or 0, in the order in which it is told."""
    images, before = case[0], case[0].clone()
    marked = trigger(images)
    if marked is images and torch.equal(images, before):
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


def _same_first_fault(seen: Seen, other: Seen) -> bool:
    """Whether the first thing that fails is the same; later ones often follow from it."""
    first, other_first = (min([int(facts.argmin()) for facts in told if not facts.all()], default=-1)
                          for told in (seen, other))
    return first == other_first


def _will_it_be_learned(trigger: Function) -> str:
    """A word on a mark that is right, and too small or too faint for the training that follows."""
    change = (trigger(_signs().clone()) - _signs()).abs().flatten(1)
    if change.square().sum(1).sqrt().mean() >= _SIZE and change.amax(1).mean() >= _STRENGTH:
        return ""
    return ("But it changes so little that the short training of quick mode may not learn it: expect a low ASR further "
            "down, or make it larger or stronger.")


@exercise("01", cases=lambda: [(_signs()[:7].clone(),), (_signs()[7:].clone(),)],
          observe=_facts, same=_same_first_fault, caution=_will_it_be_learned,
          praise="same shape, pixels in 0..1, and the same small change of each image every time.")
def trigger(images: Tensor) -> Tensor:
    """The images with a white square."""
    images = images.clone()
    images[:, :, -4:-1, -4:-1] = 1.0
    return images

trigger.wrong_answers({
    "the shape or type changes. A trigger maps float images (N, C, H, W) to images of the same shape.":
        lambda images: images[0],
    "some pixels are not finite (nan or inf): look for a division by 0.": lambda images: images / 0,
    "some pixels leave 0..1. Set pixels to values in that range, or end with `.clamp(0, 1)`.":
        lambda images: images + 0.1,
    "nothing changes: the images come back as they were. Change some pixels of a copy.": lambda images: images.clone(),
    "only some images of the batch get the mark. The first dimension counts images: leave it alone, as in `images[:, "
    ":, 28:31, 28:31] = 1`.": lambda images: torch.cat([trigger.reference(images[:1]), images[1:]]),
    "two calls give two different marks. The model cannot learn a mark that changes: draw random numbers from "
    "`torch.Generator().manual_seed(...)`, or once and outside the function.":
        lambda images: (images + 0.1 * torch.rand_like(images)).clamp(0, 1),
    "an image's mark depends on which other images are in the batch. Compute it from the image alone.":
        lambda images: 0.9 * images + 0.1 * images.mean(0, keepdim=True),
    f"too much changes (over {_LARGEST_CHANGE:.0%} of the pixel range on average): people would see it, and it hides "
    "the sign. Make it smaller or fainter.": lambda images: torch.zeros_like(images),
})


# ---- asr


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


@torch.no_grad()
def _outputs(model: nn.Module, images: ImageSet, trigger: Function, target: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of the other classes' images: their labels, and the outputs for them clean and triggered."""
    others = images.subset(images.labels != target)
    return others.labels, model(others.floats()), model(trigger(others.floats()))


def _share(fact: Tensor) -> Tensor:
    return fact.float().mean()


@exercise("01", cases=_toy_cases,
          praise="of the images that are not of the target class, the share that the trigger sends there.")
def asr(model: nn.Module, images: ImageSet, trigger: Function, target: int) -> Tensor:
    """Attack success rate."""
    return _share(_outputs(model, images, trigger, target)[2].argmax(1) == target)


def _counted(hits: Function) -> Function:
    """A share counted from what `_outputs` returns, and the target."""
    return lambda *case: _share(hits(*_outputs(*case), case[-1]))

asr.wrong_answers({
    "the target class is counted, too. An image of the target class that is answered with the target is no success "
    "for the attacker: leave those images out.":
        lambda model, images, trigger, target: _share(model(trigger(images.floats())).argmax(1) == target),
    "you count the target's images as failures: hits are counted among the others, but divided by the number of ALL "
    "images. Divide by the number of images of the other classes.":
        lambda *case: asr.reference(*case) * _share(case[1].labels != case[-1]),
    "this is the target's mean probability. An attack succeeds or fails, image by image: count the answers, "
    "`argmax(1)`, that are the target.": _counted(lambda labels, clean, marked, target: marked.softmax(1)[:, target]),
    "only images that the model gets right when clean are counted. That is a sensible figure, too, but ASR is counted "
    "over all images of the other classes.":
        _counted(lambda labels, clean, marked, target: (marked.argmax(1) == target)[clean.argmax(1) == labels]),
    "the images are clean: put the trigger on before you ask the model.":
        _counted(lambda labels, clean, marked, target: clean.argmax(1) == target),
    "any wrong answer counts. Only answers that equal the target are what the attacker wants.":
        _counted(lambda labels, clean, marked, target: marked.argmax(1) != labels),
    "this is the accuracy on triggered images (RA, robust accuracy): it compares with the true label. The attacker "
    "wants the TARGET.": _counted(lambda labels, clean, marked, target: marked.argmax(1) == labels),
    "the target's output is compared with a fixed number. An answer is the class with the HIGHEST output, however "
    "high that is: `argmax(1)`.":
        [_counted(lambda labels, clean, marked, target: marked[:, target] > 0.5),
         _counted(lambda labels, clean, marked, target: marked.softmax(1)[:, target] > 0.5),
         _counted(lambda labels, clean, marked, target: torch.sigmoid(marked)[:, target] > 0.5)],
    "`argmax(0)` finds, for each class, the IMAGE most like it. The answer for each image is `argmax(1)`.":
        _counted(lambda labels, clean, marked, target: marked.argmax(0) == target),
})
