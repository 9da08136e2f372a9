"""Small data and models that the tests share."""

import json
import os
from html.parser import HTMLParser
from itertools import combinations
from pathlib import Path

import ipywidgets as widgets
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, settings
from local_server import server  # noqa: F401  (a fixture)
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from matplotlib.transforms import Bbox
from PIL import Image
from torch import nn
from toys import silenced
from typer.testing import CliRunner

from gradprune.attacks import fit, make_trigger, poison
from gradprune.base.errors import InputError
from gradprune.cli.app import app
from gradprune.datasets import Dataset, ImageSet, draw_defense_images
from gradprune.defenses import DEFENSES, DefenseResult, grad_prune
from gradprune.evaluation import Metrics, der
from gradprune.models import build
from gradprune.pruning.filters import filters
from gradprune.search import Inversion, invert
from gradprune.victims import Victim
from gradprune.views import DefenceComparer, OneNeuron, Picture, PruningPlayer, ScanExplorer

# One thread a process: on a busy machine two threads that wait for each other make small models 20 x as slow.
os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the processes that tests start
torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))

# No deadline and no judgement on speed: on a busy machine either would fail a test that is right.
settings.register_profile("quick", max_examples=8, deadline=None, derandomize=True, database=None,
                          suppress_health_check=list(HealthCheck))
settings.register_profile("nightly", max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))

SHARED = Path(__file__).resolve().parents[1].parent / "shared"


def squares(count: int, seed: int, size: int = 16) -> ImageSet:
    """Four classes that differ in the place of a bright square, on a noisy ground."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 4
    images = torch.randint(0, 110, (count, 3, size, size), generator=generator)
    half = size // 2
    for i, label in enumerate(labels.tolist()):
        row, column = (label // 2) * half + 1, (label % 2) * half + 1
        images[i, :, row:row + half - 3, column:column + half - 3] += 120
    return ImageSet(images.to(torch.uint8), labels.long(), ("north west", "north east", "south west", "south east"))


def lived_in(model: nn.Module, images: torch.Tensor) -> nn.Module:
    """Give the BatchNorms statistics, scales and shifts such as training leaves."""
    torch.manual_seed(1)
    model.train()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.uniform_(-0.5, 0.5)
        model(images)
    return model.eval()


def write_npz(path: Path, data: Dataset) -> None:
    """A data set as the .npz file that `--data` takes."""
    arrays = {f"{letter}_{part}": tensor.numpy() for part, images in data._asdict().items()
              for letter, tensor in (("x", images.images), ("y", images.labels))}
    np.savez(path, **arrays, classes=np.array(data.train.classes))


def write_pictures(folder: Path, images: torch.Tensor, labels) -> None:
    """Images (N, C, H, W) of bytes as a folder of pictures for each label."""
    for place, (image, label) in enumerate(zip(images, labels, strict=True)):
        (folder / f"{label}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.asarray(image).transpose(1, 2, 0)).save(folder / f"{label}" / f"{place}.png")


def same(one, other) -> bool:
    """Whether two models, or two dicts of tensors, hold the same tensors under the same names."""
    one, other = (part.state_dict() if isinstance(part, nn.Module) else part for part in (one, other))
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def row_of(attack="badnets", defense="ft", spc=2, seed=0, acc=0.9, asr=0.1, ra=0.8, error="", **others) -> dict:
    """One row of a bench, the given model at ACC 0.95 and ASR 0.99."""
    before, after = Metrics(0.95, 0.99, 0.01), Metrics(acc, asr, ra)
    figures = {"acc": acc, "asr": asr, "ra": ra, "der": der(before, after), "seconds": 2.0} | others
    if error:
        figures |= dict.fromkeys(("acc", "asr", "ra", "der", "seconds"), np.nan)
    return {"attack": attack, "defense": defense, "spc": spc, "seed": seed, "acc_before": 0.95, "asr_before": 0.99,
            "ra_before": 0.01, **figures, "error": error}


def bench(attacks=("badnets", "blended", "sig"), defenses=("grad_prune", "ft_unlearn", "ft", "clp"), spcs=(2, 10), seeds=3) -> pd.DataFrame:
    """A made-up bench: a defence further down the list does worse, and more images help."""
    generator, rows = np.random.default_rng(0), []
    for number, attack in enumerate(attacks):
        before = Metrics(0.99 - number / 500, 0.98, 0.01)
        for place, name in enumerate(defenses):
            for spc in spcs:
                for seed in range(seeds):
                    asr = (0.05 + 0.06 * place + 0.02 * number) * (2 / spc) ** 0.3 + generator.uniform(0, 0.04)
                    after = Metrics(before.acc - 0.01 * (place + generator.uniform(0, 1)), asr, 0.95 * (1 - asr))
                    figures = {"pruned_acc": np.nan, "pruned_asr": np.nan, "pruned_ra": np.nan, **after._asdict(),
                               "der": der(before, after), "seconds": 0.5 * (place + 1) * spc}
                    rows.append({"attack": attack, "defense": name, "spc": spc, "seed": seed,
                                 **{f"{key}_before": value for key, value in before._asdict().items()}, **figures,
                                 "filters_removed": 2, "filters": 336, "stopped": "", "error": "", "gradprune": "0.1.0",
                                 "torch": "2.9.0", "machine": "x86_64, 2 cores", "threads": 1, "cell_seconds": 3.0})
    return pd.DataFrame(rows)


def fail(table: pd.DataFrame, error="ran out of memory", **where) -> pd.DataFrame:
    """The same bench with an error in the cells that fit."""
    table = table.copy()
    cells = np.logical_and.reduce([table[key] == value for key, value in where.items()])
    assert cells.any()
    table.loc[cells, ["acc", "asr", "ra", "der", "seconds"]] = np.nan
    table.loc[cells, "error"] = error
    return table


def same_data(one: Dataset, other: Dataset) -> bool:
    return all(torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels) and a.classes == b.classes
               for a, b in zip(one, other, strict=True))


def run(*arguments):
    """A command of gradprune in this process."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)


def parsed(result) -> dict:
    """The object in the one line that a command prints with --json; NaN and Infinity are refused."""
    lines = result.stdout.splitlines()
    assert len(lines) == 1, result.output
    return json.loads(lines[0], parse_constant=lambda constant: pytest.fail(f"{constant} in JSON"))


def as_json(*arguments) -> dict:
    """What a command that goes well says with --json."""
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return parsed(result)


def listing(folder: Path) -> dict:
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(folder.rglob("*"))}


def refused(*arguments) -> str:
    """A command ends with code 2 and writes nothing in the current folder; returns the one sentence that it says."""
    before, result = listing(Path()), run(*arguments)
    assert (result.exit_code, result.stdout) == (2, ""), result.output
    assert result.stderr.startswith("Error: ") and result.stderr.count("\n") == 1, result.stderr
    assert listing(Path()) == before, "something was written"
    return result.stderr


def refuses(words, call, /, *arguments, **settings) -> str:
    """The call ends in an InputError of one line that has these words, a regular expression; returns what it says."""
    with pytest.raises(InputError, match=words) as told:
        call(*arguments, **settings)
    assert "\n" not in str(told.value), f"more than one line: {told.value}"
    return str(told.value)


QUICK = {  # enough to change the model, in about a second
    "grad_prune": {"patience": 2}, "grad_prune_verified": {"patience": 1, "tune": False}, "ft": {"steps": 2},
    "ft_unlearn": {"epochs": 2}, "ft_sam": {"steps": 2}, "fine_pruning": {"steps": 2}, "clp": {"u": 1.5},
    "anp": {"iterations": 6}, "nad": {"steps": 2, "teacher_steps": 2}, "i_bau": {"inner_steps": 2, "outer_steps": 2},
    "ft_distilled": {}, "rnp": {"unlearn_steps": 10, "recover_steps": 10}, "neural_cleanse": {"tune_steps": 2, "steps": 15, "threshold": 0.1},
    "sau": {"steps": 2}, "fst": {"steps": 2}, "ims": {"first_rounds": 5, "rounds": 2},
    "repair": {"steps": 2, "first": 3, "changes": 2, "sturdy": 1.0},
}


def defend(name, victim, model=None, **settings):
    return DEFENSES[name](model or victim.model, victim.data.defense, victim.trigger,
                          **{"spc": 2, "progress": False, **QUICK[name], **settings})


def texts(picture: Picture) -> list[Text]:
    """All texts that are to be seen, after a drawing."""
    picture.png()
    hidden = {id(label) for ax in picture.figure.axes for axis in (ax.xaxis, ax.yaxis)
              for tick in axis.get_major_ticks() + axis.get_minor_ticks() for label in (tick.label1, tick.label2)
              if not ax.axison or not min(axis.get_view_interval()) - 1e-9 <= tick.get_loc() <= max(axis.get_view_interval()) + 1e-9}
    return [text for text in picture.figure.findobj(Text)
            if text.get_visible() and text.get_text().strip() and id(text) not in hidden]


def shown(picture: Picture) -> list[str]:
    """What these texts say; none of them may leave the figure."""
    return [text.get_text() for text, _ in _boxes(picture)]


def _boxes(picture: Picture) -> list[tuple[Text, Bbox]]:
    found, page = texts(picture), picture.figure.bbox
    renderer = FigureCanvasAgg(picture.figure).get_renderer()
    boxes = [(text, Text.get_window_extent(text, renderer)) for text in found]  # without leader lines
    for text, box in boxes:
        assert page.x0 <= box.x0 <= box.x1 <= page.x1, f"{text.get_text()!r} is cut"
        assert page.y0 <= box.y0 <= box.y1 <= page.y1, f"{text.get_text()!r} is cut"
    return boxes


def assert_readable(picture: Picture) -> None:
    """No text leaves the figure, and no two texts lie on each other, but for slanted ones, whose boxes say little."""
    level = [(text, box) for text, box in _boxes(picture) if text.get_rotation() % 90 == 0]
    for (first, one), (second, other) in combinations(level, 2):
        width = min(one.x1, other.x1) - max(one.x0, other.x0)
        height = min(one.y1, other.y1) - max(one.y0, other.y0)
        assert width <= 1 or height <= 4, f"{first.get_text()!r} and {second.get_text()!r} overlap"


def says(text: str, *words: str) -> bool:
    """Whether a sentence has these key words in this order; what stands between them may be put better."""
    place = 0
    for word in words:
        place = text.find(word, place) + len(word)
        assert place >= len(word), f"{word!r} is missing, or in another place: {text}"
    return True


def holds(text, *words: str) -> bool:
    """Whether a text has all of these words, in whatever order."""
    missing = [word for word in words if word not in text]
    assert not missing, f"{missing} missing in: {text}"
    return True


class Page(HTMLParser):
    """Tags of a page with their attributes, and its visible words; every tag must be closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags, self.open, self.pieces = [], [], []
        self.feed(text)
        assert self.open == []
        self.words = " ".join(" ".join(self.pieces).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("img", "meta"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"style", "title"} & set(self.open):
            self.pieces.append(data)

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]

    def assert_safe(self) -> None:
        """Nothing is loaded, and nothing runs."""
        assert {name for name, _ in self.tags}.isdisjoint({"script", "link", "iframe", "object", "a"})
        assert not any(key.startswith("on") for _, attrs in self.tags for key in attrs)
        assert all(image["src"].startswith("data:image/png;base64,") for image in self.all("img"))


def family(widget: widgets.Widget):
    """A widget and all that is in it, in reading order."""
    yield widget
    for child in getattr(widget, "children", ()):
        yield from family(child)


def put(control: widgets.Widget, value) -> None:
    """Set a control the way the browser does."""
    if isinstance(control, widgets.ToggleButtons | widgets.SelectionSlider):
        options = [option[1] if isinstance(option, tuple) else option for option in control.options]
        control.set_state({"index": options.index(value)})
    else:
        control.set_state({"value": value})


def interrupt_call(monkeypatch, home, name: str, call: int) -> list:
    """Ctrl-C strikes at the start of this call of a function; returns a list that grows with each call."""
    original, calls = getattr(home, name), []

    def counted(*arguments, **settings):
        calls.append(name)
        if len(calls) == call:
            raise KeyboardInterrupt
        return original(*arguments, **settings)

    monkeypatch.setattr(home, name, counted)
    return calls


def card_of(victim: Victim, data="data.npz", **more) -> dict:
    """A checkpoint's card for the small victim."""
    return {"model": {"name": "preact_resnet", "num_classes": 4, "width": 16, "blocks": [1]}, "data": {"name": str(data)},
            "attack": {"trigger": "badnets", "settings": victim.trigger.settings, "target": victim.target}, **more}


def edit(path: Path, change) -> None:
    """Change what a JSON file holds."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def without(victim: Victim, *positions: int) -> nn.Module:
    return silenced(victim.model, filters(victim.model, victim.data.test.floats()[:1]), *positions)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """A cache of this run's own, which its processes share: data left by another version of the code must not pass for this one's."""
    folder = tmp_path_factory.getbasetemp()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADPRUNE_CACHE", str((folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "cache"))
        patch.setenv("GRADPRUNE_PROGRESS", str(tmp_path_factory.mktemp("progress") / "progress.json"))
        yield


@pytest.fixture(scope="session")
def data() -> Dataset:
    return Dataset(squares(400, 1), squares(120, 2), squares(200, 3))


@pytest.fixture(scope="session")
def victim(data: Dataset) -> Victim:
    """A small ResNet with a working BadNets backdoor, trained in about two seconds; one filter carries most of it."""
    trigger = make_trigger("badnets", size=3, margin=0, color="checker")
    model = build("preact_resnet", 4, width=16, blocks=(1,), seed=0)
    fit(model, poison(data.train, trigger, target=1, rate=0.15).images, epochs=8, batch_size=32, shift=1, progress=False)
    return Victim(model, trigger, 1, data, {})


@pytest.fixture(scope="session")
def honest(data: Dataset) -> nn.Module:
    """The victim's network without a backdoor."""
    model = build("preact_resnet", 4, width=16, blocks=(1,), seed=0)
    fit(model, data.train, epochs=8, batch_size=32, shift=1, progress=False)
    model.zero_grad()
    return model


@pytest.fixture(scope="session")
def mark() -> nn.Module:
    """A white patch of three pixels in the corner."""
    trigger = make_trigger("picture", size=(3, 3))
    trigger.picture.fill_(1.0)
    return trigger


@pytest.fixture(scope="session")
def result(victim: Victim) -> DefenseResult:
    """The paper's pruning of the small victim, without fine-tuning."""
    return grad_prune(victim.model, victim.data.defense, victim.trigger, spc=9, recipe="paper", tune=False, progress=False)


@pytest.fixture(scope="session")
def found(victim: Victim) -> list[Inversion]:
    """A short search for a trigger of each class."""
    images = draw_defense_images(victim.data.defense, 10).train.floats()
    return [invert(victim.model, images, label, steps=25, batch_size=12, progress=False) for label in range(4)]


@pytest.fixture
def given(victim, request):
    """What a panel is made of."""
    cells = pd.DataFrame([row_of(attack, name, seed=seed, acc=0.9 - seed / 50, asr=0.1 + seed / 9)
                          for attack in ("badnets", "sig") for name in ("ft", "clp") for seed in range(3)])
    others = {OneNeuron: lambda: (), DefenceComparer: lambda: (cells,), PruningPlayer: lambda: (victim, request.getfixturevalue("result")),
              ScanExplorer: lambda: (victim, request.getfixturevalue("found"))}
    return lambda kind: others.get(kind, lambda: (victim,))()


@pytest.fixture
def make(given):
    """Build panels, and close them when the test is over."""
    made = []

    def build_panel(kind, of=None, **settings):
        usual = given(kind)
        made.append(kind(*(usual if of is None and "result" not in settings else [usual[0] if of is None else of]), **settings))
        return made[-1]

    yield build_panel
    for panel in made:
        panel.close()


def pytest_terminal_summary(terminalreporter):
    """Print what tests measured (`record_property("summary", ...)`), also when they ran in parallel."""
    reports = [report for outcome in ("passed", "failed") for report in terminalreporter.getreports(outcome)]
    lines = [str(value) for report in reports for name, value in report.user_properties if name == "summary"]
    if lines:
        terminalreporter.section("measured")
        terminalreporter.write_line("\n".join(lines))
