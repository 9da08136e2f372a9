"""What one filter sees: its kernel, and its response to a few images, clean and triggered."""

import math

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from torch import Tensor, nn

from gradprune.base.errors import require
from gradprune.models import evaluating
from gradprune.pruning import Filters, Pairs
from gradprune.views.figures import style
from gradprune.views.figures.drawing import blank, heading, place, show_image
from gradprune.views.figures.picture import Picture, count
from gradprune.views.figures.style import plain


def filter_view(model: nn.Module, found: Filters, position: int, pairs: Pairs, columns: int = 4) -> Picture:
    """What one filter sees: its kernel, and its response to some images clean, triggered, and the difference.

    position: its place in the flat list. pairs: float images (N, C, H, W) in 0..1; `columns` of them, evenly spread,
    are shown. Raises InputError for a position that does not exist, or no images.
    """
    require(0 <= position < len(found), f"position must be in 0..{len(found) - 1}, got {position}.")
    require(len(pairs.labels) > 0, "there is no image to show.")
    layer, name = found.layer_of(position), found[position]
    chosen = torch.linspace(0, len(pairs.labels) - 1, min(columns, len(pairs.labels))).round().long()
    clean, triggered = pairs.clean[chosen], pairs.triggered[chosen]
    maps = responses(model, layer.name, name.index, torch.cat([clean, triggered])).split(len(chosen))
    change = maps[1] - maps[0]
    peak = float(torch.cat([*maps]).abs().max()) or 1.0
    box, (height, width) = _changed(clean, triggered), clean.shape[-2:]
    rows = [("image,\ntriggered", triggered, None), ("response,\nclean", maps[0], peak),
            ("response,\ntriggered", maps[1], peak),
            ("difference" + ",\nnear the sticker\n(framed)" * bool(box), change, float(change.abs().max()) or 1.0)]
    with blank(5.75) as figure:
        weight: Tensor = model.get_submodule(layer.name).weight  # type: ignore[assignment]
        _kernel(place(figure, 0.15, 0.5, 1.7, 1.7), weight[name.index], f"kernel {'×'.join(map(str, layer.shape))}")
        for line, (title, values, limit) in enumerate(rows):
            for column, picture in enumerate(values):
                ax = place(figure, 3.2 + 1.3 * column, 0.45 + 1.3 * line, 1.24, 1.24)
                ax.set(xticks=[], yticks=[])
                ax.spines[:].set(visible=True, color=style.EMPTY)
                if column == 0:
                    style.write(ax, title, (0, 0.5), (-8, 0), ha="right", va="center", fontweight="bold")
                if limit is None:
                    show_image(ax, picture)
                    ax.set_axis_on()  # framed, as the responses are
                    continue
                ax.imshow(picture.numpy(), cmap="vlag", vmin=-limit, vmax=limit, extent=(0, width, height, 0))
                if box and line == 3:
                    _zoom(ax, box, height, width)
        heading(figure, f"What {plain(name, 40, tail=True)} sees")
    return Picture(figure, f"{name}: the trigger changes its response by {change.abs().max():.2f} at most and "
                           f"{change.abs().mean():.3f} on average; {_where(change, box, width)}.")


def responses(model: nn.Module, layer: str, index: int, images: Tensor) -> Tensor:
    """One filter's output for float images (N, C, h, w): float (N, H, W)."""
    kept: list[Tensor] = []
    hook = model.get_submodule(layer).register_forward_hook(lambda _, __, output: kept.append(output[:, index]))
    with hook, evaluating(model), torch.inference_mode():
        model(images)
    return kept[0].cpu()


def _kernel(ax: Axes, kernel: Tensor, title: str) -> None:
    """A kernel (inputs, h, w): in colour if its inputs are red, green and blue, else its slices side by side."""
    kernel = kernel.detach().cpu()
    limit = float(kernel.abs().max()) or 1.0
    if len(kernel) == 3:
        ax.imshow((0.5 + 0.5 * kernel.permute(1, 2, 0) / limit).numpy())
        title += ",\nits colours"
    else:
        ax.imshow(montage(kernel.numpy()), cmap="vlag", vmin=-limit, vmax=limit)
        title += f",\none tile per input ({len(kernel)})"
    ax.set_axis_off()
    style.write(ax, title, (0, 0), (0, -8), va="top", fontweight="bold")


def _changed(clean: Tensor, triggered: Tensor) -> tuple[int, int, int, int] | None:
    """Left, upper, right and lower edge of the pixels that the trigger changes; None if that is most of the image."""
    rows, columns = ((triggered - clean).abs().amax(dim=(0, 1)) > 1e-6).nonzero(as_tuple=True)
    if not len(rows) or len(rows) > 0.5 * clean.shape[-1] * clean.shape[-2]:
        return None
    return int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1


def _zoom(ax: Axes, box: tuple[int, int, int, int], height: int, width: int) -> None:
    """Frame the trigger, and show only a square part of the image with some room around it."""
    left, upper, right, lower = box
    side = min(3 * max(right - left, lower - upper) + 3, height, width)
    x = min(max((left + right - side) // 2, 0), width - side)
    y = min(max((upper + lower - side) // 2, 0), height - side)
    ax.add_patch(Rectangle((left, upper), right - left, lower - upper, fill=False, linewidth=1.6))
    ax.set(xlim=(x, x + side), ylim=(y + side, y))


def _where(change: Tensor, box: tuple[int, int, int, int] | None, width: int) -> str:
    """In how many images the largest change is where the trigger is."""
    if box is None:
        return "the trigger covers the whole image"
    scale, hits = width / change.shape[-1], 0
    for values in change.abs():
        row, column = divmod(int(values.argmax()), values.shape[-1])
        x, y = (column + 0.5) * scale, (row + 0.5) * scale
        hits += box[0] - 2 <= x <= box[2] + 2 and box[1] - 2 <= y <= box[3] + 2
    return f"in {hits} of {count(len(change), 'image')} the largest change is on the sticker (framed)"


def montage(kernel: np.ndarray) -> np.ndarray:
    """The slices (inputs, h, w) of a kernel side by side in a square, with gaps between them."""
    count, height, width = kernel.shape
    side = math.ceil(math.sqrt(count))
    tiles = np.pad(kernel, ((0, side**2 - count), (0, 1), (0, 1)), constant_values=np.nan)
    rows = tiles.reshape(side, side, height + 1, width + 1).swapaxes(1, 2)
    return rows.reshape(side * (height + 1), -1)[:-1, :-1]
