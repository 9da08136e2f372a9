"""Export a model for other programs: ONNX (`.onnx`) or torch.export (`.pt2`), checked before the file gets its name."""

import importlib.util
import io
import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

import torch
from torch import Tensor, nn

from gradprune.base.errors import require, told_as
from gradprune.base.paths import write_atomic
from gradprune.models.inference import copy_of, predict

TOLERANCE = 1e-4  # largest absolute difference of the logits
NEEDS: dict[str, tuple[str, ...]] = {".onnx": ("onnx", "onnxruntime", "onnxscript"), ".pt2": ()}


def check_export(path: str | Path) -> None:
    """Raise InputError if `export` cannot write this kind of file here; call it before any work."""
    kind = Path(path).suffix
    require(kind in NEEDS, f"a model is exported as {' or '.join(NEEDS)}, and {str(path)!r} is neither.")
    missing = [name for name in NEEDS[kind] if importlib.util.find_spec(name) is None]
    require(not missing, f"export to {kind} needs {', '.join(missing)}; install with: pip install 'gradprune[export]'")


def export(model: nn.Module, path: str | Path, example: Tensor) -> Path:
    """Write `model` in eval mode as a file that takes any number of images of this shape; the ending gives the format.

    example: float (N, C, H, W) in [0, 1], at least two images, for the trace and the check: the file's logits for all
        of them, and for one alone, must equal the model's within 1e-4 (for .onnx computed by onnxruntime).
    Raises InputError for another ending, a missing package, an operator without such a form, or logits that differ;
    then no file is written, and an existing one stays.
    """
    check_export(path)
    require(len(example) >= 2, f"the trace needs two images at least, got {len(example)}.")
    copied, images = copy_of(model).cpu(), example.cpu()
    copied.eval()
    wanted = predict(copied, images)
    write, answers = (_write_onnx, _ask_onnx) if Path(path).suffix == ".onnx" else (_write_pt2, _ask_pt2)

    def write_and_check(temporary: Path) -> None:
        with _quiet():
            with told_as(lambda error: f"the model cannot be exported as {Path(path).suffix}: {_reason(error)}"):
                write(copied, images, temporary)  # torch's exporters and runtimes raise many kinds of errors
                found = [(answers(temporary, images[part]), wanted[part]) for part in (slice(None), slice(1))]
            for answer, right in found:
                off = (answer - right).abs().max().item()
                require(off <= TOLERANCE, f"the exported file's answers differ from the model's by {off:.2g}; "
                                          "nothing was written.")

    return write_atomic(path, write_and_check)


def _write_onnx(model: nn.Module, images: Tensor, path: Path) -> None:
    program = torch.onnx.export(model, (images,), dynamo=True, verbose=False, input_names=["images"],
                                output_names=["logits"], dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    assert program is not None  # for mypy: with `dynamo` and no file it never is
    for node in program.model.graph:
        node.metadata_props.clear()  # the lines of code it came from, which name folders of this machine
    program.save(path, external_data=False)


def _ask_onnx(path: Path, images: Tensor) -> Tensor:
    import onnxruntime
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: images.numpy()})[0])


def _write_pt2(model: nn.Module, images: Tensor, path: Path) -> None:
    program = torch.export.export(model, (images,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    with path.open("wb") as file:  # given a path, the archive would keep the name of the temporary file
        torch.export.save(program, file)


def _ask_pt2(path: Path, images: Tensor) -> Tensor:
    with torch.inference_mode():
        return torch.export.load(path).module()(images)


def _reason(error: BaseException) -> str:
    """The operator that cannot be exported, or else the first line of the error at the bottom of the chain."""
    while error.__cause__:
        error = error.__cause__
    operator = re.search(r"OpOverload\(op='([\w.]+)'", str(error))
    if operator:
        return f"there is no such form of the operator {operator[1]}."
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide the exporters' long logs; the error contains what matters."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
