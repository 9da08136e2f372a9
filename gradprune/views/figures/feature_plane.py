"""Where a model puts its images: the input of its last layer, projected onto a plane, as filters are removed."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from gradprune.base.errors import require
from gradprune.datasets import ImageSet
from gradprune.defenses.common import logit_layer
from gradprune.views.figures import style
from gradprune.views.figures.picture import Picture
from gradprune.views.figures.style import CLEAN, RIGHT, TRIGGERED, plain


def feature_plane(models: Mapping[str, nn.Module], images: ImageSet, trigger: nn.Module, target: int,
                  home: int) -> Picture:
    """One panel per model: one dot per image, clean ones grey, triggered ones purple; two classes are named.

    home: the class whose triggered images are followed. The plane is that of the first model's two principal
    directions (PCA by an exact decomposition: two lines of torch, where scikit-learn would be one more package to
    install), turned so that the trigger pushes to the right. The shares above are those of the last layer's answers.
    Raises InputError without models, for home = target, or for a class without images.
    """
    require(len(models) > 0, "there is no model to show.")
    counts = images.labels.bincount(minlength=len(images.classes))
    require(home != target and bool(counts[[home, target]].all()), "home and target must be two classes with images.")
    others = images.subset(images.labels != target)
    own, followed = images.labels, others.labels == home
    seen, told = {}, {}
    for name, model in models.items():
        clean = logit_layer(model, images.floats())[1]
        layer, moved = logit_layer(model, others.triggered(trigger))
        with torch.no_grad():
            answers = layer(moved[followed]).argmax(1)
        told[name] = [(answers == label).float().mean().item() for label in (target, home)]
        seen[name] = clean.cpu(), moved.cpu()
    middle, plane = _plane(*next(iter(seen.values())))
    with style.sheet(3.2, 1, len(models), sharex=True, sharey=True) as (figure, panels):
        for ax, (name, both) in zip(panels, seen.items(), strict=True):
            clean, moved = ((part - middle) @ plane for part in both)
            ax.scatter(*clean.T, s=8, color="#C3C9CE", linewidths=0)
            ax.scatter(*moved[~followed].T, s=8, color=TRIGGERED.color, alpha=0.3, linewidths=0)
            for label, color in ((target, CLEAN.color), (home, RIGHT.color)):
                ax.scatter(*clean[own == label].T, s=16, color=color, linewidths=0)
                style.label(ax, plain(images.classes[label], 18), clean[own == label].mean(0).tolist(), (0, 11),
                            zorder=5, ha="center", fontweight="bold", color=color, path_effects=style.HALO)
            ax.scatter(*moved[followed].T, s=26, color=TRIGGERED.color, marker=TRIGGERED.marker,
                       edgecolors=style.PAPER, linewidths=0.6, zorder=4)
            ax.set_title(f"{plain(name, 24)}\nto the target {told[name][0]:.0%}, right {told[name][1]:.0%}",
                         fontsize=style.NORMAL)
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set(visible=True, color=style.EMPTY)
    words = "; ".join(f"{name}, {there:.0%} and {right:.0%}" for name, (there, right) in told.items())
    return Picture(figure, f"Of the images of “{images.classes[home]}” with the trigger on (diamonds), the shares "
                           f"taken for “{images.classes[target]}” and classified correctly: {words}.")


def _plane(clean: Tensor, moved: Tensor) -> tuple[Tensor, Tensor]:
    """The mean of all features, and their two principal directions, (features, 2), the first as the trigger pushes."""
    everything = torch.cat([clean, moved])
    middle = everything.mean(0)
    plane = torch.linalg.svd(everything - middle, full_matrices=False).Vh[:2].T
    push = (moved.mean(0) - clean.mean(0)) @ plane
    return middle, plane * torch.where(push < 0, -1.0, 1.0)
