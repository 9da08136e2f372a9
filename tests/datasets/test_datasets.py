"""Image sets, the rendered signs, their cache, files of arrays, and the defender's draw."""

import functools
import logging
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import refuses, same_data

from gradprune.datasets import Dataset, ImageSet, draw_defense_images, load, render_signs, signs, sources, split_off

small = functools.partial(render_signs, train_per_class=4, defense_per_class=2, test_per_class=3)
small_once = functools.cache(small)  # for the tests of the cache, which need not draw anew


@pytest.fixture(scope="module")
def full() -> Dataset:
    return render_signs()


def class_means(part: ImageSet) -> torch.Tensor:
    return torch.stack([part.images[part.labels == label].float().mean(0) for label in range(len(part.classes))])


# ---- rendered signs


def test_signs_have_the_promised_sizes_types_and_balance(full):
    for part, per_class in zip(full, (500, 100, 200), strict=True):
        assert part.images.shape == (12 * per_class, 3, 32, 32)
        assert part.images.dtype == torch.uint8
        assert part.labels.bincount().tolist() == [per_class] * 12
        assert part.classes == signs.CLASSES
        assert part.labels[:24].unique().numel() > 6, "the order must be shuffled"
    assert len(set(signs.CLASSES)) == 12


def test_no_image_appears_twice(full):
    seen = [image.numpy().tobytes() for part in full for image in part.images]
    assert len(set(seen)) == len(seen)


def test_same_seed_same_signs_and_other_seed_other_signs():
    torch.manual_seed(5)
    first = small(seed=3)
    state = torch.get_rng_state()
    torch.manual_seed(6)
    assert same_data(first, small(seed=3))
    torch.manual_seed(5)
    assert torch.equal(state, torch.get_rng_state()), "drawing must leave the global generator alone"
    for a in small(seed=3):
        for b in small(seed=4):
            assert a.images.shape != b.images.shape or not torch.equal(a.images, b.images)


@pytest.mark.parametrize("changed", ["train", "defense", "test"])
def test_the_size_of_one_part_does_not_touch_the_others(changed):
    default, other = small(), small(**{f"{changed}_per_class": 5})
    for name in Dataset._fields:
        a, b = getattr(default, name), getattr(other, name)
        assert (len(a) == len(b) and torch.equal(a.images, b.images)) == (name != changed)


def test_labels_belong_to_the_pictures(full):
    train, test = class_means(full.train), class_means(full.test)
    assert torch.cdist(test.flatten(1), train.flatten(1)).argmin(1).tolist() == list(range(12))
    for kind in ("turn", "bend"):
        left, right = (train[signs.CLASSES.index(f"{kind} {side}"), :, 9:22] for side in ("left", "right"))
        mirrored = left.flip(-1)[..., 10:23]  # signs stand half a pixel left of the middle
        assert (mirrored - right[..., 9:22]).abs().mean() < 0.3 * (left - right)[..., 9:22].abs().mean()
    blue, red = (train[signs.CLASSES.index(name), :, 8:24, 8:24].mean((1, 2)) for name in ("turn left", "no entry"))
    assert blue[2] > blue[0] + 20
    assert red[0] > red[2] + 20


def test_images_are_bright_and_varied(full):
    pixels = full.train.floats()
    assert 0.3 < pixels.mean() < 0.6
    assert pixels.std() > 0.15
    assert pixels.std(0).min() > 0.1, "no pixel may look alike in all images"


def test_signs_stay_out_of_the_bottom_right_corner():
    labels = torch.arange(12).repeat(100)
    place = signs._placement(torch.Generator().manual_seed(0), len(labels))
    cover = F.grid_sample(signs._templates()[labels][:, 3:], place, align_corners=False)[:, 0]
    assert cover[:, 12:20, 12:20].mean() > 0.95
    assert cover[:, -3:, -3:].mean() < 0.005


def test_new_pixels_come_with_a_new_render_version(full):
    """Fails when the drawing changes: raise RENDER_VERSION (old caches must not be read), then pin the new mean."""
    means = [part.images.double().mean().item() for part in full]
    assert (signs.RENDER_VERSION, means) == (2, pytest.approx([119.228, 120.714, 120.035], abs=0.02))


def test_a_part_without_images_is_refused():
    refuses(r"at least 1 image per class, got \(4, 0, 3\)", small, defense_per_class=0)


# ---- the cache


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache folder; `cache.drawn` lists the seeds that were drawn and not read."""
    cache = SimpleNamespace(folder=tmp_path / "cache", drawn=[])
    monkeypatch.setenv("GRADPRUNE_CACHE", str(cache.folder))
    monkeypatch.setattr(sources, "render_signs", lambda seed: cache.drawn.append(seed) or small_once(seed))
    return cache


def test_signs_are_drawn_once_and_then_read(cache):
    first = load("signs")
    assert same_data(first, small_once(0))
    assert same_data(first, load("signs"))
    assert cache.drawn == [0]
    assert not same_data(first, load("signs", seed=1))
    assert cache.drawn == [0, 1]


def test_a_new_render_version_draws_anew(cache, monkeypatch):
    load("signs")
    monkeypatch.setattr(sources, "RENDER_VERSION", signs.RENDER_VERSION + 1)
    load("signs")
    assert cache.drawn == [0, 0]


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_byte(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes(content)


def rewritten(change):
    """A damage that changes the arrays."""
    def damage(path):
        with np.load(path) as file:
            arrays = dict(file)
        change(arrays)
        np.savez(path, **arrays)
    return damage


def take_another_seed(path):
    load("signs", seed=9)
    path.with_name(path.name.replace("seed0", "seed9")).replace(path)


@pytest.mark.parametrize("damage", [
    truncate, flip_a_byte, take_another_seed,
    rewritten(lambda arrays: arrays.update(y_train=arrays["y_train"][::-1].copy())),
    rewritten(lambda arrays: arrays.pop("digest")),
    lambda path: np.savez(path, digest=np.array([{"a": 1}], dtype=object)), lambda path: path.write_bytes(b""), lambda path: path.write_text("not an archive")])
def test_a_damaged_cache_is_drawn_again_and_mended(cache, damage, caplog, recwarn):
    good = load("signs")
    [path] = cache.folder.iterdir()
    damage(path)
    cache.drawn.clear()
    with caplog.at_level(logging.INFO, "gradprune"):
        assert same_data(load("signs"), good)
    assert cache.drawn == [0]
    assert len(caplog.messages) == 1
    assert not [warning for warning in recwarn if warning.category is not DeprecationWarning]
    assert same_data(load("signs"), good)
    assert cache.drawn == [0], "the mended copy must be read"


def test_every_flipped_byte_is_noticed_or_harmless(cache):
    good = load("signs")
    [path] = cache.folder.iterdir()
    content = path.read_bytes()
    for position in torch.randint(len(content), (40,), generator=torch.Generator().manual_seed(0)).tolist():
        path.write_bytes(content[:position] + bytes([content[position] ^ 0x41]) + content[position + 1:])
        assert same_data(load("signs"), good)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_an_interrupted_write_leaves_no_file(cache, monkeypatch, error):
    def half(path, **arrays):
        path.write_bytes(b"PK half an archive")
        raise error

    monkeypatch.setattr(np, "savez", half)
    if isinstance(error, OSError):
        assert same_data(load("signs"), small_once(0))
    else:
        with pytest.raises(KeyboardInterrupt):
            load("signs")
    assert list(cache.folder.iterdir()) == []


def test_signs_come_without_a_cache(cache):
    cache.folder.write_text("a file where the folder should be")
    assert same_data(load("signs"), small_once(0))
    assert same_data(load("signs"), small_once(0))
    assert cache.drawn == [0, 0]


def test_the_full_set_is_what_a_name_loads(full):
    assert same_data(load("signs"), full)


# ---- files of arrays


def arrays(size=6, channels=3, per_class=10, classes=3, first=False):
    """A well-formed file's content, its random pixels the same whichever way the channels lie."""
    random, content = np.random.default_rng(0), {}
    for part in ("train", "test"):
        images = random.integers(0, 256, (per_class * classes, size, size, channels)).astype(np.uint8)
        content[f"x_{part}"] = images.transpose(0, 3, 1, 2) if first else images
        content[f"y_{part}"] = np.arange(per_class * classes) % classes
    return content


def saved(path, **content):
    np.savez(path, **content)
    return path


@pytest.mark.parametrize("channels", [1, 3])
def test_both_layouts_give_the_same_images(tmp_path, channels):
    last = load(saved(tmp_path / "last.npz", **arrays(channels=channels)))
    assert same_data(last, load(str(saved(tmp_path / "first.npz", **arrays(channels=channels, first=True)))))
    assert last.test.images.shape == (30, channels, 6, 6)
    assert last.test.images[4, 0, 2, 5] == arrays(channels=channels)["x_test"][4, 2, 5, 0]
    assert last.test.classes == ("0", "1", "2")


@pytest.mark.parametrize("change", [lambda name, array: array[..., 0] if name[0] == "x" else array,
                                    lambda name, array: array[:, None] if name[0] == "y" else array])
def test_grey_images_need_no_channel_axis_and_labels_may_stand_in_a_column(tmp_path, change):
    """... as Keras has them."""
    content = arrays(channels=1)
    other = {name: change(name, array) for name, array in content.items()}
    assert same_data(load(saved(tmp_path / "a.npz", **content)), load(saved(tmp_path / "b.npz", **other)))


def test_a_tenth_of_each_class_becomes_the_defense_part(tmp_path):
    path = saved(tmp_path / "a.npz", **arrays(per_class=20))
    train, defense, test = load(path)
    assert train.labels.bincount().tolist() == [18] * 3
    assert defense.labels.bincount().tolist() == [2] * 3
    assert len(test) == 60
    rejoined = sorted(image.numpy().tobytes() for part in (train, defense) for image in part.images)
    assert rejoined == sorted(image.tobytes() for image in arrays(per_class=20, first=True)["x_train"])
    assert same_data(load(path), load(path))
    assert not same_data(load(path), load(path, seed=1))


def test_own_defense_images_and_names_are_kept(tmp_path):
    content = arrays()
    names = ["cat", "dog", "cow", "a class without images"]
    data = load(saved(tmp_path / "a.npz", **content, x_defense=content["x_test"][:6], y_defense=content["y_test"][:6].astype(np.uint8),
                      classes=np.array(names), something_else=np.array([{"never": "read"}], dtype=object)))
    assert data.train.classes == tuple(names)
    assert len(data.train) == 30
    assert data.defense.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert torch.equal(data.defense.images, data.test.images[:6])


@pytest.mark.parametrize(("change", "sentence"), [
    ({"x_train": None}, r"has no array x_train, only x_test, y_test, y_train\."),
    ({"y_test": None}, r"has no array y_test"),
    ({"x_defense": np.zeros((3, 6, 6, 3), np.uint8)}, r"has no array y_defense"),
    ({"y_defense": np.zeros(3, int)}, r"has no array x_defense"),
    ({"x_train": np.full((30, 6, 6, 3), 0.5)}, r"x_train in .* float64 0\.5\.\.0\.5; multiply by 255 and cast to uint8\."),
    ({"x_test": np.full((30, 6, 6, 3), -1.5, np.float32)}, r"x_test in .* float32 -1\.5\.\.-1\.5; undo the normalisation"),
    ({"x_train": np.full((30, 6, 6, 3), np.nan)}, r"x_train in .* nan\.\.nan; undo"),
    ({"x_train": np.zeros((30, 6, 6, 3), np.int64)}, r"x_train in .* must be uint8 0\.\.255, got int64"),
    ({"x_train": np.zeros((30, 108), np.uint8)}, r"x_train in .* got \(30, 108\)"),
    ({"x_train": np.zeros((30, 6, 6, 4), np.uint8)}, r"x_train in .* 1 or 3 channels, got \(30, 6, 6, 4\)"),
    ({"x_test": np.zeros((0, 6, 6, 3), np.uint8), "y_test": np.zeros(0, int)}, r"x_test in .* got \(0, 6, 6, 3\)"),
    ({"x_test": np.zeros((30, 8, 8, 3), np.uint8)}, r"share one shape .*'x_train': \(3, 6, 6\), 'x_test': \(3, 8, 8\)"),
    ({"y_train": np.zeros(29, int)}, r"y_train in .* integers \(30,\), one for each image, got int64 \(29,\)"),
    ({"y_train": np.zeros((30, 2), int)}, r"y_train in .* got int64 \(30, 2\)"),
    ({"y_test": np.zeros(30)}, r"y_test in .* got float64 \(30,\)"),
    ({"y_test": np.full(30, 3)}, r"y_test in .* must lie in 0\.\.2, got 3\.\.3\."),
    ({"y_test": np.full(30, -1)}, r"y_test in .* must lie in 0\.\.2, got -1\.\.-1\."),
    ({"y_train": np.arange(30) % 3 * 2}, r"y_train in .* 3 different ones in 0\.\.4; renumber them, or add .*'classes'"),
    ({"y_train": np.zeros(30, int)}, r"y_train in .* K > 1, got 1 different ones"),
    ({"classes": np.array(["cat", "dog"])}, r"y_train in .* must lie in 0\.\.1, got 0\.\.2"),
    ({"classes": np.arange(3)}, r"classes in .* 2 or more strings, got int64 \(3,\)"),
    ({"classes": np.array(["a", None, 3], dtype=object)}, r"classes in .* cannot be read: Object arrays"),
    ({"y_train": np.array([0, 1] * 14 + [0, 2])}, r"x_train in .* has one image of class '2': splitting off"),
])
def test_every_bad_array_gets_its_own_sentence(tmp_path, change, sentence):
    content = {name: array for name, array in (arrays() | change).items() if array is not None}
    path = saved(tmp_path / "mine.npz", **content)
    message = refuses(sentence, load, path)
    assert str(path) in message and message.endswith(".")


def test_files_that_are_no_archive(tmp_path):
    refuses(r"No file at .*none\.npz", load, tmp_path / "none.npz")
    (tmp_path / "text.npz").write_text("hello")
    (tmp_path / "empty.npz").touch()
    np.save(tmp_path / "one.npy", np.zeros(3))
    np.save(tmp_path / "pickle.npy", np.array([{}], dtype=object))
    truncate(saved(tmp_path / "cut.npz", **arrays()))
    torch.save({"a": torch.zeros(3)}, tmp_path / "weights.npz")
    for name in ("text.npz", "empty.npz", "one.npy", "pickle.npy", "cut.npz", "weights.npz"):
        refuses(rf"{name} is not a readable \.npz file", load, tmp_path / name)


def test_damaged_bytes_in_an_archive_name_the_array(tmp_path):
    path = saved(tmp_path / "bad.npz", **arrays())
    flip_a_byte(path)
    refuses(r"x_train in .*bad\.npz cannot be read", load, path)


@pytest.mark.parametrize(("source", "sentence"), [
    ("sings", r"Unknown data set 'sings'; did you mean signs\?"),
    ("imagenet", r"Unknown data set 'imagenet'; known: .*signs"),
    ("no/such/file.npz", r"No file at no/such/file\.npz\."),
    ("no/such/folder", r"No folder or file at no/such/folder\."),
    (7, r"source must be a name or a path, got int\."),
    (None, r"source must be a name or a path, got NoneType\."),
])
def test_unknown_sources(source, sentence):
    refuses(sentence, load, source)


@pytest.mark.parametrize("seed", [-1, 1.5, "0", None, 2**70])
def test_seeds_are_whole_numbers(seed):
    refuses("seed must be a whole number from 0 to", load, "signs", seed=seed)


# ---- the defender's images


def numbered(per_class: int, classes: int = 3) -> ImageSet:
    """Every image carries its own number, so that draws can be told apart."""
    number = torch.arange(per_class * classes)
    images = torch.stack([number // 256, number % 256, number * 0], 1).byte()[:, :, None, None]
    return ImageSet(images.expand(-1, -1, 2, 2).contiguous(), number % classes, ("a", "b", "c")[:classes])


def numbers(part: ImageSet) -> list[int]:
    return (part.images[:, 0, 0, 0].int() * 256 + part.images[:, 1, 0, 0].int()).tolist()


@pytest.mark.parametrize(("spc", "training", "validation"), [(1, 1, 1), (2, 2, 1), (9, 9, 1), (10, 9, 1), (100, 90, 10)])
def test_draw_has_the_papers_sizes(spc, training, validation):
    train, held = draw_defense_images(numbered(100), spc)
    assert train.labels.bincount().tolist() == [training] * 3
    assert held.labels.bincount().tolist() == [validation] * 3
    drawn = numbers(train) + numbers(held)
    assert len(set(drawn)) == len(drawn), "training and validation must not share an image"
    for part in (train, held):
        assert all(number % 3 == label for number, label in zip(numbers(part), part.labels.tolist(), strict=True))


def test_draw_depends_on_the_seed_alone():
    pool = numbered(50)
    a, b, c = (draw_defense_images(pool, 5, seed=seed) for seed in (0, 0, 1))
    assert numbers(a.train) == numbers(b.train)
    assert numbers(a.validation) == numbers(b.validation)
    assert numbers(a.train) != numbers(c.train)


def test_draw_names_the_class_with_too_few_images():
    """Fault 5 of the released code: classes with at most spc images vanished."""
    pool = numbered(10)
    pool = pool.subset(torch.tensor([i for i in range(30) if i % 3 != 1 or i < 6]))
    draw_defense_images(pool, 1)
    refuses(r"spc=2 needs 3 images .* class 'b' has 2 in the defender's part: lower spc", draw_defense_images, pool, 2)
    refuses("at least 1, got 0", draw_defense_images, pool, 0)


@pytest.mark.parametrize(("share", "off"), [(0.1, 1), (0.25, 2), (0.5, 5), (0.01, 1), (0.99, 10)])
def test_split_off_takes_its_share_of_every_class(share, off):
    pool = numbered(10)
    rest, part = split_off(pool, share, seed=1)
    assert part.labels.bincount(minlength=3).tolist() == [off] * 3
    assert sorted(numbers(rest) + numbers(part)) == list(range(30))
    assert numbers(part) == numbers(split_off(pool, share, seed=1)[1])


@pytest.mark.parametrize("share", [0, 1, -0.1, 2])
def test_split_off_refuses_other_shares(share):
    refuses("share must lie between 0 and 1", split_off, numbered(3), share)


@pytest.mark.parametrize(("images", "labels", "sentence"), [
    (torch.zeros(2, 3, 4, 4), torch.zeros(2).long(), "must be uint8"),
    (torch.zeros(2, 4, 4).byte(), torch.zeros(2).long(), "must be uint8"),
    (torch.zeros(2, 4, 4, 3).byte(), torch.zeros(2).long(), "1 or 3 channels, got 4"),
    (torch.zeros(2, 3, 4, 4).byte(), torch.zeros(3).long(), r"labels must be int64 \(2,\)"),
    (torch.zeros(2, 3, 4, 4).byte(), torch.zeros(2).int(), "labels must be int64"),
    (torch.zeros(2, 3, 4, 4).byte(), torch.tensor([0, 2]), r"0\.\.1, got 0\.\.2"),
])
def test_image_set_refuses_other_tensors(images, labels, sentence):
    refuses(sentence, ImageSet, images, labels, ("a", "b"))


def test_floats_are_the_pixels_between_0_and_1():
    images = ImageSet(torch.tensor([0, 51, 255]).byte().view(1, 3, 1, 1), torch.tensor([0]), ("a",))
    assert torch.allclose(images.floats().flatten(), torch.tensor([0.0, 0.2, 1.0]))
    assert repr(images) == "ImageSet(1 images, 3x1x1, 1 classes)"
