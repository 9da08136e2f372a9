"""Voices of a scan: how easily each class is reached, by changes of several families, and without any image.

The target class of a backdoor is easy to reach in many ways at once; other classes are easy in one way or another. So
each search ranks every class against the others, and these standings are averaged. Sources: the families of
`search/changes.py`; the largest margin, MM-BD: Wang et al., 2024, IEEE S&P, arXiv:2205.06900; the rest is ours.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gradprune.models.inference import evaluating, predict
from gradprune.search.changes import Change, Part, Shape, draw, every_wave, inflow, search_changes

LED = ("bounded", "smooth", "waves", "warp", "patches")  # families of changes, one voice each
FEW = 16          # images for the searches
TRIES = 3         # random changes of a family, each a start for every class
STEPS = 8         # of a search
AT_ONCE = 12      # classes that share a forward pass
MOST = 4.0        # limit of a voice, so that one failed search accuses no class
MARGIN_STARTS, MARGIN_STEPS, MARGIN_RATE = 8, 100, 0.05  # of the search for the largest margin


def standings(values: Sequence[float | None]) -> list[float]:
    """How far each class is above the median, in robust standard deviations, clamped to -MOST..MOST.

    values: higher is easier to reach; None, not reached at all, is the lowest.
    With fewer than three values all standings are 0.
    """
    told = torch.tensor([value for value in values if value is not None], dtype=torch.double)
    if len(told) < 3:
        return [0.0] * len(values)
    middle = told.quantile(0.5)
    spread = 1.4826 * float((told - middle).abs().quantile(0.5))
    far = [-MOST if value is None else (value - float(middle)) / spread if spread > 0 else 0.0 for value in values]
    return [max(-MOST, min(MOST, one)) for one in far]


def led(model: nn.Module, images: Tensor, classes: int, family: str, seed: int = 0) -> list[float]:
    """How far searched changes of a family lead to each class: the mean log-probability on other images.

    images: float (N, C, H, W) in [0, 1], clean, two or more; one half is for the search, the other for measuring.
    The searches of all classes start from the same random changes; those of "waves" from the single wave that leads
    furthest to the class.
    """
    generator = torch.Generator().manual_seed(seed)
    few, others = images[::2][:FEW], images[1::2]
    usual, part = predict(model, others).argmax(1), Part(few, predict(model, few).log_softmax(1))
    parts = [part._replace(target=label) for label in range(classes)]
    reached = []
    for _ in range(1 if family == "waves" else TRIES):
        if family == "waves":
            waves = every_wave(images.shape[1:], generator)
            begun = [waves[place] for place in inflow(model, [part] * len(waves), waves).argmax(0).cpu().tolist()]
        else:
            begun = [draw(images.shape[1:], generator, [family])] * classes
        found: list[Change] = []
        for start in range(0, classes, AT_ONCE):
            some = slice(start, start + AT_ONCE)
            found += search_changes(model, parts[some], begun[some], STEPS)
        reached.append([_log_share(model, change, others[usual != label], label) for label, change in enumerate(found)])
    return torch.tensor(reached).mean(0).tolist()


def _log_share(model: nn.Module, change: Change, images: Tensor, label: int) -> float:
    """Mean log-probability of a class on the images with the change; 0 if there are none."""
    with torch.no_grad():
        said = predict(model, change(images)).log_softmax(1)[:, label] if len(images) else images.new_zeros(1)
    return float(said.clamp_min(-14).mean())  # so that one sure image does not outweigh the others


def margins(model: nn.Module, shape: Shape, classes: int, seed: int = 0) -> list[float]:
    """The largest lead of each class's logit over all others for any image, searched for from noise.

    shape: channels, height, width. Gradient ascent with momentum on images in [0, 1]; no given image is needed.
    """
    weight = next(model.parameters())
    noise = torch.rand(MARGIN_STARTS, *shape, generator=torch.Generator().manual_seed(seed)).to(weight.device)
    largest: list[float] = []
    for start in range(0, classes, AT_ONCE):
        labels = torch.arange(start, min(start + AT_ONCE, classes), device=weight.device).repeat_interleave(len(noise))
        images = noise.repeat(len(labels) // len(noise), 1, 1, 1)
        speed = torch.zeros_like(images)
        with evaluating(model):
            for _ in range(MARGIN_STEPS):
                slope, = torch.autograd.grad(_margin(model, images.requires_grad_(), labels).sum(), images)
                length = slope.flatten(1).norm(dim=1).clamp_min(1e-12)
                speed = 0.9 * speed + slope / length[:, None, None, None]
                images = (images.detach() + MARGIN_RATE * speed).clamp(0, 1)
            with torch.no_grad():
                largest += _margin(model, images, labels).view(-1, len(noise)).amax(1).cpu().tolist()
    return largest


def _margin(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Each image's logit of its label minus the largest other one."""
    logits = model(images)
    rest = logits.scatter(1, labels[:, None], -torch.inf).amax(1)
    return logits.gather(1, labels[:, None])[:, 0] - rest
