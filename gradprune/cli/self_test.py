"""A self-test of the whole method in a second: train, score, remove."""

import torch

from gradprune import FilterMask, ImageSet, build, filter_scores, filters, fit, make_trigger, poison
from gradprune.models import predict
from gradprune.pruning import pair_up


def run() -> tuple[bool, str]:
    """Train a tiny network, score its filters, remove the worst; returns whether all went well, and the figures."""
    labels = torch.arange(3).repeat(40)
    images = torch.randint(0, 100, (len(labels), 3, 12, 12), generator=torch.Generator().manual_seed(0))
    images += 150 * torch.eye(3, dtype=torch.int64)[labels][:, :, None, None]  # each class has a colour
    clean = ImageSet(images.byte(), labels, ("red", "green", "blue"))
    trigger = make_trigger("badnets")
    model = build("preact_resnet", 3, width=4, blocks=[1])
    fit(model, poison(clean, trigger, target=0, rate=0.2).images, epochs=4, batch_size=20, progress=False)
    acc = (predict(model, clean.floats()).argmax(1) == labels).float().mean().item()
    found, pairs = filters(model, clean.floats()[:1]), pair_up(clean, trigger)
    scores, loss = filter_scores(model, found, pairs.triggered, pairs.labels)
    mask = FilterMask(found)
    mask.remove(model, int(scores.argmax()))
    layer, index = mask.removed[0]
    silent = not model.get_submodule(layer).weight[index].any()  # type: ignore[index]
    finite = bool(predict(model, pairs.triggered).isfinite().all() and scores.isfinite().all())
    good = silent and finite and acc > 0.9
    found_words = f"trained to {acc:.0%}, unlearning loss {loss:.2f}, {mask.removed[0]} removed"
    found_words += ("" if silent else ", but not silent") + ("" if finite else ", outputs not finite")
    return good, found_words
