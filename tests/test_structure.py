"""The house stays in order: a room imports only earlier ones, files stay short, no public name is left unused."""

import ast
import re
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "gradprune"
ROOMS = ("base", "datasets", "models", "attacks", "pruning", "search", "defenses", "evaluation", "victims", "bench", "views",
         "cli", "lessons")
FILES = sorted(PACKAGE.rglob("*.py"))


def imports(path):
    """The gradprune modules that a file imports, anywhere in it, as lists of parts without "gradprune"."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module]
            if node.module == "gradprune":  # its names: rooms, modules or what the public face offers
                names = [f"gradprune.{alias.name}" if (PACKAGE / alias.name).is_dir()
                         or (PACKAGE / f"{alias.name}.py").is_file() else "gradprune" for alias in node.names]
        else:
            assert not isinstance(node, ast.ImportFrom), f"{path}: relative imports hide where a name comes from"
            continue
        yield from (name.split(".")[1:] for name in names if name.split(".")[0] == "gradprune")


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_earlier_rooms(room):
    allowed = ROOMS[:ROOMS.index(room) + 1]
    for path in sorted((PACKAGE / room).rglob("*.py")):
        for parts in imports(path):
            assert not parts or parts[0] in allowed, \
                f"{path.relative_to(ROOT)} imports gradprune.{'.'.join(parts)}"


def test_every_file_is_in_a_room():
    assert {path.name for path in PACKAGE.glob("*.py")} == {"__init__.py", "__main__.py"}
    assert {path.relative_to(PACKAGE).parts[0] for path in FILES if path.parent != PACKAGE} == set(ROOMS)


def test_a_room_of_tests_is_a_room_of_the_package():
    """Beside the rooms stand tests of the whole: browser, notebooks, spoiled files, benchmarks."""
    folders = {path.parent.relative_to(ROOT / "tests").as_posix() for path in (ROOT / "tests").rglob("test_*.py")}
    assert folders <= {".", "browser", "fuzz", "notebooks", *ROOMS}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_files_are_short(path):
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= 250, f"{lines} lines: two things may live in {path.name}"


def test_public_names_are_used():
    """Each name that a room offers has a use: in another file, in a registry, in what its own home returns or takes."""
    texts = {path: path.read_text(encoding="utf-8") for path in [
        *FILES, *ROOT.glob("notebooks/*.ipynb"), *ROOT.glob("docs/*.md"), *ROOT.glob("tests/**/*.py"), ROOT / "README.md"]}
    words = {path: Counter(re.findall(r"\w+", text)) for path, text in texts.items()}
    for face in PACKAGE.glob("*/__init__.py"):
        offered = next(node.value for node in ast.parse(texts[face]).body
                       if isinstance(node, ast.Assign) and node.targets[0].id == "__all__")
        for name in ast.literal_eval(offered):
            homes = [path for path in face.parent.rglob("*.py") if path != face and re.search(
                rf"^(def|class) {name}\b|^{name}\b.*=", texts[path], re.MULTILINE)]
            least = {face: 3, **dict.fromkeys(homes, 2)}  # imported and offered; defined
            assert any(found[name] >= least.get(path, 1) for path, found in words.items()), \
                f"{face.parent.name} offers {name}, and nothing uses it"


def test_nothing_unpickles():
    """No file of the package loads pickles; the one unpickler there is (of CIFAR-10's archive) knows arrays alone."""
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"pickle\.loads?\(|allow_pickle=True|weights_only=False|joblib|dill", text), path
        if "pickle" in re.findall(r"^\s*(?:import|from) (\w+)", text, re.MULTILINE):
            assert path.relative_to(PACKAGE).as_posix() in ("datasets/archives.py", "models/weights.py"), path
        for call in re.findall(r"(?:np|numpy)\.load\([^)]*\)", text):
            assert "allow_pickle=False" in call, f"{path}: {call}"
        for call in re.findall(r"torch\.load\([^)]*\)", text):
            assert "weights_only=True" in call, f"{path}: {call}"
        assert not re.search(r"^\s*(?:import|from) (marshal|shelve|dbm|subprocess|cloudpickle|yaml)\b", text, re.MULTILINE), path


def test_nothing_runs_text_as_code():
    """The one way to foreign code is a module that the user named, in models/own.py."""
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            name = node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ""
            assert name not in ("eval", "exec", "compile", "__import__"), f"{path}:{node.lineno} calls {name}"
            if name == "import_module" or (isinstance(node, ast.Attribute) and node.attr == "import_module"):
                assert path.name == "__init__.py" or path.relative_to(PACKAGE).as_posix() == "models/own.py", path


def test_no_test_file_imports_another():
    """What several need stands in conftest or in a module of helpers: files can be read, moved and run alone."""
    for path in (ROOT / "tests").rglob("test_*.py"):
        assert not re.search(r"^\s*(?:from|import) test_", path.read_text(encoding="utf-8"), re.MULTILINE), path
