"""The pages of docs/ say what works: their code is run as written, and the reference holds every public name."""

import math
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch
from conftest import card_of, squares, write_npz

import gradprune as gp
from gradprune.attacks import TRIGGERS
from gradprune.bench import read_results, summarise
from gradprune.datasets import Dataset
from gradprune.defenses import DEFENSES
from gradprune.models.checkpoints import save_checkpoint
from gradprune.victims import victim as victims
from gradprune.victims.zoo import SHIPPED

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted((ROOT / "docs").rglob("*.md"))


def code(page: str) -> str:
    """The one block of Python on a page."""
    block, = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / page).read_text(encoding="utf-8"), re.S)
    assert len(block.strip().splitlines()) <= 35
    return block


@pytest.mark.slow
def test_an_attack_is_added_as_the_page_says(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(TRIGGERS, "stripes", None)  # taken out again afterwards
    write_npz(tmp_path / "mine.npz", Dataset(squares(240, 1), squares(40, 2), squares(80, 3)))
    names: dict = {}
    exec(code("add_attack.md"), names)
    assert "Stripes(every=4, depth=0.6)" in capsys.readouterr().out
    given, cleaned = names["victim"].evaluate(), names["victim"].evaluate(names["result"].model)
    assert given.acc > 0.8 and given.asr > 0.8 and cleaned.asr < given.asr
    stripes = gp.make_trigger("stripes", every=2, depth=0.5)
    assert stripes(torch.full((1, 4, 2), 0.8))[0, :, 0].tolist() == pytest.approx([0.4, 0.8, 0.4, 0.8])


def test_a_defence_is_added_as_the_page_says(tmp_path, monkeypatch, capsys, victim):
    """With a small model in place of the shipped one of that name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(DEFENSES, "small_filters", None)
    write_npz(tmp_path / "data.npz", victim.data)
    save_checkpoint(tmp_path / "checkpoints" / "badnets", victim.model, card_of(victim))
    monkeypatch.setattr(victims, "data_folder", lambda: tmp_path)
    names: dict = {}
    exec(code("add_defense.md"), names)
    result, table = names["result"], names["table"].set_index("defense")
    assert result.mask.positions and result.rows("tune") and result.pruned is not result.model
    assert all(not result.model.get_submodule(layer).weight[index].any() for layer, index in result.mask.removed)
    assert table["error"].eq("").all() and table.loc["small_filters", "acc"] > 0.8
    assert "small_filters(spc=2" in capsys.readouterr().out


@pytest.mark.parametrize("page", PAGES, ids=[page.relative_to(ROOT).as_posix() for page in PAGES])
def test_links_and_files_of_the_pages_are_there(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s#]+)[^)]*\)", text):
        assert re.match("https?://", target) or (page.parent / target).exists(), target
    for path in re.findall(r"`((?:gradprune|tests)/[\w/.]+\.py)`", text):
        assert (ROOT / path).is_file(), path
    index = ROOT / "README.md" if page.parent.name == "docs" or page.name == "README.md" else page.with_name("README.md")
    assert f"({page.relative_to(index.parent).as_posix()})" in index.read_text(encoding="utf-8"), f"{index} does not list it"


def test_tables_are_those_of_the_rows(monkeypatch):
    """Every table of README and results that is made from rows holds their figures."""
    monkeypatch.syspath_prepend(ROOT / "tests/benchmarks")
    import readme_tables
    for page in readme_tables.PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        assert text.count("<!-- table ") == text.count("<!-- end of table -->") > 0
        assert readme_tables.renewed(text) == text, f"{page}: python tests/benchmarks/readme_tables.py --write"


def test_a_star_needs_an_interval_and_is_not_owed_to_its_cut(monkeypatch):
    """Holm's test by hand: 3 differences with 3 degrees of freedom need t = 4.86 first; an interval ends at 1."""
    monkeypatch.syspath_prepend(ROOT / "tests/benchmarks")
    from readme_tables import holm
    half = 3.182  # of the 95 % interval for a standard error of 1
    def pair(gain, low, high, attacks=4):
        return {"gain": gain, "gain_low": low, "gain_high": high, "attacks": attacks}
    clear, unclear = (pair(t / 10, (t - half) / 10, (t + half) / 10) for t in (5.0, 4.5))
    assert holm({"a": clear, "b": pair(0, 0, 0), "c": pair(0.9, math.nan, math.nan, 1)}) == {"a"}
    assert holm({"a": unclear, "b": unclear, "c": unclear}) == set()
    assert holm({"a": {**unclear, "gain_high": 0.5}, "b": unclear, "c": unclear}) == set(), "the cut interval looks narrow"


def test_every_defence_met_every_attack_of_the_signs():
    """At two, ten and fifty images: the README says that each was run."""
    rows = summarise(read_results(ROOT / "data/results/signs")).query("failed == 0")
    attacks = {name for name in SHIPPED if "/" not in name and name != "clean"}
    for (spc, name), own in rows.groupby(["spc", "defense"]):
        assert attacks <= set(own["attack"]), f"{name} at {spc}"
    assert {(spc, name) for spc in (2, 10, 50) for name in DEFENSES} == set(zip(rows["spc"], rows["defense"], strict=True))


@pytest.mark.slow
def test_the_reference_holds_every_public_name_with_its_docstring(tmp_path):
    done = subprocess.run([sys.executable, "docs/build_api.py", tmp_path], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    first = (tmp_path / "gradprune.html").read_text(encoding="utf-8")
    sections = dict(re.findall(r'<section id="(\w+)">(.*?)</section>', first, re.S))
    assert set(gp.__all__) <= set(sections) and "Alias for field" not in first
    assert [name for name in gp.__all__ if 'class="docstring"' not in sections[name]] == []
    for room in sorted(path.parent.name for path in (ROOT / "gradprune").glob("*/__init__.py")):
        assert f'href="gradprune/{room}.html"' in first, "the first page leads to the room"
        page = (tmp_path / "gradprune" / f"{room}.html").read_text(encoding="utf-8")
        names = set(import_module(f"gradprune.{room}").__all__)
        assert names <= set(re.findall(r'<section id="(\w+)">', page)), room
    assert (tmp_path / "index.html").is_file()
