"""What strangers may write into cards, tables and names; whole spoiled files are in tests/fuzz."""

import contextlib
import io
import json
import os
import zlib

import pytest
import torch
from conftest import Page, refuses
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from gradprune.base.errors import InputError, unknown
from gradprune.base.pickles import check_pickle
from gradprune.bench.cells import COLUMNS
from gradprune.bench.store import FORMAT, Store, _line, _parse, read_results
from gradprune.cli.console import say
from gradprune.datasets import load
from gradprune.lessons.runtime import predictions, progress
from gradprune.models import build, load_weights
from gradprune.models.checkpoints import load_checkpoint, read_card, save_checkpoint
from gradprune.victims.victim import versions
from gradprune.views.reports.page import TEMPLATES

QUICK = settings(max_examples=60, deadline=None, database=None, derandomize=True)
JSON = st.recursive(st.none() | st.booleans() | st.integers(-3, 99) | st.integers(10**9) | st.floats() | st.text(max_size=9),
                    lambda part: st.lists(part, max_size=3) | st.dictionaries(st.text(max_size=6), part, max_size=3), max_leaves=6)
NET = {"name": "preact_resnet", "num_classes": 3, "width": 2, "blocks": [1]}


def one_sentence(error: InputError) -> bool:
    return 0 < len(str(error)) <= 1000 and str(error).isprintable()


@contextlib.contextmanager
def refused_or_right():
    """What is in it goes well, or ends in one sentence."""
    refusal = None
    try:
        yield
    except InputError as error:
        refusal = error
    assert refusal is None or one_sentence(refusal)


# ---- cards

@pytest.fixture(scope="module")
def card(tmp_path_factory):
    path = tmp_path_factory.mktemp("card") / "model"
    save_checkpoint(path, build(**NET), {"model": NET})
    return path, json.loads(path.with_suffix(".json").read_text())


@QUICK
@given(part=st.sampled_from(["name", "num_classes", "width", "blocks", "mean", "channels", "sizes", "seed", "code", "largest", "x"]),
       value=JSON)
def test_any_value_in_a_cards_model(card, part, value):
    path, content = card
    path.with_suffix(".json").write_text(json.dumps({**content, "model": {**NET, part: value}}))
    with refused_or_right():
        model, _ = load_checkpoint(path)
        assert all(tensor.shape == build(**NET).state_dict()[name].shape for name, tensor in model.state_dict().items())


@QUICK
@given(part=st.sampled_from(["model", "attack", "data", "training", "metrics", "defense", "sha256"]), value=JSON)
def test_any_value_as_a_part_of_a_card(card, part, value):
    path, content = card
    path.with_suffix(".json").write_text(json.dumps({**content, part: value}))
    with refused_or_right():
        read = read_card(path)
        assert all(isinstance(read.get(name, {}), dict) for name in ("model", "attack", "data", "training", "metrics", "defense"))


@pytest.mark.parametrize(("name", "more", "words"), [
    ("timm/resnet10t", {"checkpoint_path": "evil.pth"}, "would make timm read other files"),
    ("timm/resnet10t", {"pretrained_cfg": {"file": "evil.pth"}}, "would make timm read other files"),
    ("timm/hf-hub:a/b", {}, "knows no network of that name"), ("timm/local-dir:.", {}, "knows no network of that name")])
def test_timm_is_kept_to_its_own_networks(name, more, words):
    pytest.importorskip("timm", reason="timm is an optional extra")
    refuses(words, build, name, 3, **more)


def test_a_bound_on_what_settings_make_leaves_the_same_network():
    for one, other in zip(build(**NET, largest=10**6).state_dict().values(), build(**NET).state_dict().values(), strict=True):
        assert torch.equal(one, other)
    refuses("far more numbers than the file", build, **NET | {"width": 64}, largest=10_000)


# ---- tables

@QUICK
@given(text=st.text(alphabet=st.characters(exclude_characters="\n"), max_size=200))
def test_any_line_with_a_right_checksum(text):
    row = _parse(f"{text},{zlib.crc32(text.encode('utf-8', 'surrogatepass')):08x}") if text.isprintable() else None
    assert row is None or set(row) == set(COLUMNS)


@pytest.mark.parametrize("changes", [{"acc": 5.0}, {"der": float("nan")}, {"seconds": float("inf")}, {"spc": None}, {"seed": -1},
                                     {"spc": 10**30}, {"attack": "x" * 200_000}])
def test_numbers_that_no_run_writes_are_damage(tmp_path, changes):
    good = {name: 0.5 if kind is float else 1 if kind is int else "a" for name, kind in COLUMNS.items()}
    (tmp_path / "bench.json").write_text(json.dumps({"format": FORMAT, **versions(), "checkpoints": {}}))
    (tmp_path / "cells.csv").write_text("\n".join(["head", _line(good), _line({**good, "seed": 2, **changes})]) + "\n")
    assert read_results(tmp_path).seed.tolist() == [1]


@pytest.mark.parametrize("name", ["cells.csv", "bench.json", ".lock"])
def test_a_bench_writes_through_no_link(tmp_path, name):
    folder, outside = tmp_path / "bench", tmp_path / "outside"
    with Store(folder, {}):
        pass
    outside.write_text((folder / "cells.csv").read_text() if name == "cells.csv" else (folder / "bench.json").read_text())
    before = outside.read_text()
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(outside)
    with pytest.raises(InputError, match="is a link to another place"), Store(folder, {}):
        pass
    assert outside.read_text() == before


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_makes_nobody_wait(tmp_path):
    os.mkfifo(tmp_path / "bench.json")
    refuses("there is no file at", read_results, tmp_path)


# ---- progress

@pytest.mark.parametrize("answers", [{"a.b": 10**400}, {"a.b": float("nan")}, {"a.b": float("inf")}, {"a.b": [1]}, [1], None])
def test_answers_that_are_none(tmp_path, monkeypatch, answers):
    monkeypatch.setenv("GRADPRUNE_PROGRESS", str(tmp_path / "progress.json"))
    (tmp_path / "progress.json").write_text(json.dumps({"version": 1, "answers": answers}))
    assert predictions.reveal("a.b", 3.0, "d") is None
    assert [file.name for file in tmp_path.iterdir()] == ["progress.json.damaged"]


def test_half_a_character_is_no_reason_to_lose_answers(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADPRUNE_PROGRESS", str(tmp_path / "progress.json"))
    (tmp_path / "progress.json").write_text('{"answers": {"a.b": "\\ud800"}}')
    progress.remember("answers", "a.c", "ü")
    assert json.loads((tmp_path / "progress.json").read_text())["answers"] == {"a.b": "\ud800", "a.c": "ü"}


# ---- weights

def test_a_nest_that_holds_itself(tmp_path):
    nest = {"epoch": 3}
    nest["net"] = nest
    torch.save(nest, tmp_path / "nest.pth")
    refuses("holds no state dict, only: epoch, net", load_weights, build(**NET), tmp_path / "nest.pth")


@pytest.mark.parametrize("odd", [torch.eye(3).to_sparse(), torch.empty(3, device="meta")])
def test_tensors_without_numbers_of_their_own(tmp_path, odd):
    torch.save({**build(**NET).state_dict(), "linear.bias": odd}, tmp_path / "odd.pth")
    refuses(r"do not fit the model", load_weights, build(**NET), tmp_path / "odd.pth")


@QUICK
@given(value=st.recursive(st.integers() | st.text(max_size=5) | st.none(), lambda part: st.lists(part) | st.tuples(part, part)
                          | st.dictionaries(st.text(max_size=3), part), max_leaves=20), protocol=st.integers(2, 5))
def test_honest_pickles_pass_the_look(value, protocol):
    import pickle
    check_pickle(io.BytesIO(pickle.dumps(value, protocol)), "x")


# ---- names

@pytest.mark.parametrize("name", ["a" * 5000, "~nobody-of-that-name/x", "a\0b", "\ud800", "\n"])
def test_names_that_are_no_path(name):
    with pytest.raises(InputError) as told:
        load(name)
    assert one_sentence(told.value)


@QUICK
@given(name=st.text(max_size=50))
def test_sentences_are_short_and_printable(name):
    assert one_sentence(unknown("thing", name * 100, ["thing"]))
    assert one_sentence(InputError(f"x{name * 100}"))
    assert InputError("a short one.").args == ("a short one.",)


@QUICK
@given(name=st.text(max_size=30))
def test_names_cannot_steer_the_terminal(name):
    out = io.StringIO()
    say(Console(file=out, width=200), f"\x1b]0;title\x07{name}")
    assert all(letter.isprintable() or letter == "\n" for letter in out.getvalue())


PAGE = TEMPLATES.from_string("""{% extends "page.html" %}{% block lead %}{{ word }}{% endblock %}{% block body %}{% call section(word) %}
{{ table([[word, word]], [word], word) }}{{ terms({word: word}) }}{% endcall %}{% endblock %}""")


@QUICK
@given(name=st.text(min_size=1, max_size=30) | st.sampled_from(["<script>x</script>", '"><img src=x onerror=x>', "&lt;b&gt;", "{lead}", "{{ lead }}", "]]>"]))
def test_pages_show_names_as_they_are(name):
    found, plain = (Page(PAGE.render(title=word, word=word)) for word in (name, "plain"))
    assert found.tags == plain.tags
    assert name in "".join(found.pieces)
