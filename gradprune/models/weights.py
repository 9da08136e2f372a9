"""Foreign weights: read without running code, unwrapped, and loaded into a model, or refused with the reason."""

import io
import logging
import mmap
import pickle
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np
import torch
from safetensors.torch import load as load_safetensors
from torch import Tensor, nn

from gradprune.base.errors import InputError, listed, require, told_as
from gradprune.base.pickles import check_pickle
from gradprune.models.inference import is_lazy
from gradprune.models.limits import Within
from gradprune.models.names import under_names_of
from gradprune.models.preact_resnet import PreActResNet

Net = TypeVar("Net", bound=nn.Module)
_log = logging.getLogger(__name__)

WEIGHTS = (".pt", ".pth", ".ckpt", ".bin", ".tar")  # files that torch.save wrote, which have no card
_NESTS = ("state_dict", "model_state_dict", "model", "net")  # where training scripts put the state dict
_COMPUTED = r"(\.|^)parametrizations\.|_(orig|mask|g|v|u|bar)$"  # names that torch.nn.utils gives, now or earlier
_DEEPEST = 8  # nested dicts
_PREFIXES = ("module.", "_orig_mod.")  # of DataParallel and torch.compile
_OLD_PICKLES = 5  # magic number, version, system, content, names of the storages
_OTHERS = {  # how files begin that are often taken for weights, and what they are
    rb"version https://git-lfs": "a Git LFS pointer; `git lfs pull` fetches the file itself",
    rb"(?i)\s*<(!doctype|html)": "a web page; download the file itself",
    rb"\x89HDF": "an HDF5 file, as Keras writes them; only weights of PyTorch can be read",
    rb"\x08[\x01-\x0f][\x12\x1a\x22\x2a\x32\x3a\x42]": "an ONNX model; save model.state_dict() in PyTorch"}


def bare_name(weights: str | Path) -> str:
    """The name of a file of weights, without folder and ending; "net.v1" has none."""
    path = Path(weights)
    return path.stem if path.suffix in (*WEIGHTS, ".safetensors", ".json") else path.name


class _Unread:
    """Replaces a picture, or a script's options, inside a file; their content is not read."""

    def __setstate__(self, state: object) -> None:
        pass


class _Array(np.ndarray):
    """A file's NumPy array, as long as the bytes that come with it; also replaces NumPy's `_reconstruct`."""

    def __new__(cls, *_: object) -> "_Array":
        """Make an empty array, whatever size the file claims."""
        return super().__new__(cls, (0,), np.uint8)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        require(isinstance(state[-1], bytes), "an array in it holds objects")
        super().__setstate__(state)


def _number(kind: np.dtype[Any], content: bytes) -> Any:
    """Replaces NumPy's `scalar`, which without bytes would make a number of whatever length its dtype claims."""
    return np.frombuffer(content, kind, 1)[0]


def load_weights(model: Net, path: str | Path) -> Net:
    """Load a file of weights into `model`, in place, in eval mode; returns the model.

    path: a .safetensors file, or one that torch.save wrote: a state dict, or a dict with one under "net", "model",
        "state_dict", "model_state_dict", or any other key if there is only one. The names may have another prefix than
        the model's, such as "module."; tensors without that prefix are left out with a warning.
    No code from the file is run. A warning is logged if the model's stem was changed (see `models.imported`), since
    weights that were trained with the original one may load all the same.
    Raises InputError for any other file, or for names and shapes that are not the model's.
    """
    if note := getattr(model, "stem_note", ""):
        _log.warning("%s", note)
    return fit_weights(model, state_dict(read_file(path), path), path)


def read_file(path: str | Path) -> Any:
    """The content of a file of weights: tensors, numbers, strings, lists, dicts and NumPy arrays; no other classes.

    Pictures (PIL) and the options of a script (argparse) become empty placeholders.
    Raises InputError for a missing, damaged or refused file.
    """
    path = Path(path)
    require(not re.match("https?:/", str(path)),
            f"{str(path).replace(':/', '://', 1)} is an address; nothing is downloaded, so fetch it first.")
    require(path.is_file(), f"there is no file of weights at {path}.")
    with path.open("rb") as file:
        start = file.read(99)
    for beginning, kind in _OTHERS.items():
        require(not re.match(beginning, start), f"{path} was not read: it is {kind}.")
    if path.suffix == ".safetensors":
        with told_as(lambda error: f"{path} is no readable .safetensors file: {error}."):  # a header may claim anything
            return dict(sorted(load_safetensors(path.read_bytes()).items()))  # the file keeps no order of its own
    _look_over(path)
    try:
        with torch.serialization.safe_globals(_harmless()), Within():
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)|<class '(\S+)'>", str(error))
        if named is None:
            raise InputError(f"{path} is no file of weights that torch.save wrote.") from None
        raise InputError(f"{path} was not read: it holds {named[1] or named[2]}, and loading that would "
                         "run code; save model.state_dict() alone.") from None
    except Exception as error:  # truncated or foreign files: each fails in its own way
        reason = re.split(r"\. |\n", str(error).strip() or type(error).__name__)[0].rstrip(".")
        raise InputError(f"{path} is no file of weights that torch.save wrote ({reason}).") from None


def state_dict(content: Any, path: str | Path) -> dict[str, Tensor]:
    """The tensors by name in the result of `read_file`, taken out of nested dicts and without prefixes."""
    inner = content
    for _ in range(_DEEPEST):  # bounded, since a dict may contain itself
        if isinstance(inner, Mapping):
            outer, inner = inner, next((inner[nest] for nest in _NESTS if isinstance(inner.get(nest), Mapping)), inner)
            same = [word for word, part in outer.items() if part is not inner and isinstance(word, str)
                    and isinstance(part, Mapping) and part.keys() == inner.keys()]
            if same and inner is not outer:
                _log.warning("%s also holds such weights under %s, which were not taken.", path, listed(same))
    inner = _only_nest(inner, path)
    require(isinstance(inner, Mapping), f"{path} holds no state dict, only: {type(inner).__name__}.")
    tensors = {name: torch.as_tensor(np.array(value)) if isinstance(value, np.ndarray) else value
               for name, value in inner.items() if isinstance(name, str) and _plain(value)}
    keys = listed(str(key) for key in inner if isinstance(key, str | int)) or "nothing"
    require(bool(tensors), f"{path} holds no state dict, only: {keys}.")
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def _only_nest(inner: Any, path: str | Path) -> Any:
    """The only value of a dict or list that holds tensors by name; `inner` itself if there is none.

    Raises InputError if there are several.
    """
    parts = inner if isinstance(inner, Mapping) else dict(enumerate(inner)) if isinstance(inner, list | tuple) else {}
    nests = {word: sum(map(_plain, part.values())) for word, part in parts.items()
             if isinstance(part, Mapping) and all(isinstance(name, str) for name in part)}
    nests = {word: count for word, count in nests.items() if count > sum(map(_plain, parts.values()))}
    told = listed(f"{count} under {word}" for word, count in nests.items())
    require(len(nests) < 2, f"{path} holds several state dicts ({told}): save the one that is meant alone.")
    return parts[next(iter(nests))] if nests else inner


def fit_weights(model: Net, given: Mapping[str, Tensor], path: str | Path) -> Net:
    """Load tensors by name into `model`, in place, in eval mode; `path` is for the message if they do not fit."""
    own = model.state_dict()
    given = under_names_of(model, given, path)
    missing = [name for name in own if name not in given and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in given if name not in own]
    lazy = {name for name, tensor in own.items() if is_lazy(tensor)}  # they take any shape
    shapes = [f"{name} {tuple(given[name].shape)} in the file, {tuple(own[name].shape)} in the model"
              for name in own if name in given and name not in lazy and given[name].shape != own[name].shape]
    kinds = [f"{name} {str(given[name].dtype).removeprefix('torch.')}" for name in own
             if name in given and own[name].is_floating_point() > given[name].is_floating_point()]
    wrong = [f"{what}: {listed(names)}" for what, names in
             (("missing", missing), ("unexpected", unexpected), ("other shapes", shapes),
              ("no floats, as of quantised weights", kinds)) if names]
    note = _note(model, missing, unexpected) if wrong else ""
    require(not wrong, f"the weights in {path} do not fit the model; {'; '.join(wrong)}.{note}")
    with told_as(lambda error: f"the weights in {path} do not fit the model: {error}.",
                 (RuntimeError,)):  # tensors without memory, such as on the device "meta"
        model.load_state_dict(given, strict=False)  # old files lack BatchNorm's count of batches
    model.eval()  # its return value is not used: foreign code may override train() and return None
    return model


def _note(model: nn.Module, missing: list[str], unexpected: list[str]) -> str:
    """A hint for weights that do not fit."""
    if any(re.search(_COMPUTED, name) for name in unexpected):
        return (" Its weights are computed from others (pruned, or weight or spectral norm): before saving, make them "
                "plain by prune.remove, remove_weight_norm or remove_parametrizations of torch.nn.utils.")
    if missing and all(name.startswith("bn.") for name in missing) and isinstance(model, PreActResNet):
        return " Public code mostly has no BatchNorm after the last block: last_norm=False."
    return f" {model.stem_note}" if hasattr(model, "stem_note") and not missing and not unexpected else ""


def _plain(value: Any) -> bool:
    """Whether this is an array of numbers or a plain tensor, that is, not sparse, nested or quantised."""
    if isinstance(value, np.ndarray):
        return value.dtype.kind in "fiu"
    return (isinstance(value, Tensor) and value.layout is torch.strided and not value.is_nested
            and not value.is_quantized)


def _look_over(path: Path) -> None:
    """Refuse a file whose pickles or compressed members would take far more memory than it has bytes."""
    size = path.stat().st_size
    require(size > 0, f"{path} is no file of weights that torch.save wrote: it is empty.")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if content[:4] == b"PK\x03\x04":
            _look_over_zip(file, size, path)
            return
        for _ in range(_OLD_PICKLES):  # torch's older format
            if content.tell() < size:
                check_pickle(content, path, size)


def _look_over_zip(file: IO[bytes], size: int, path: Path) -> None:
    damaged = f"{path} is no file of weights that torch.save wrote: its zip is damaged."
    with told_as(lambda _: damaged), zipfile.ZipFile(file) as archive:  # a damaged zip raises almost anything
        members = archive.infolist()
        require(not any(member.filename.endswith("constants.pkl") for member in members),
                f"{path} was not read: it holds a program of TorchScript; save model.state_dict() alone.")
        packed = any(member.compress_type != zipfile.ZIP_STORED for member in members)
        require(not packed and sum(member.file_size for member in members) <= size,
                f"{path} was not read: its members are packed, or claim more bytes than the file has.")
        for member in members:
            if member.filename.endswith("data.pkl"):
                check_pickle(io.BytesIO(archive.read(member)), path, size)


def _harmless() -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    """What may be built from a file besides torch's own list: NumPy's numbers and arrays, and placeholders."""
    allowed: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [np.dtype, (_Array, "numpy.ndarray")]
    allowed += [(_Unread, name) for name in ("PIL.Image.Image", "argparse.Namespace")]
    for home in ("numpy.core.multiarray", "numpy._core.multiarray"):  # NumPy 1 and 2
        allowed += [(_Array, f"{home}._reconstruct"), (_number, f"{home}.scalar")]
    return allowed + list({type(np.dtype(kind)) for kind in "?bhilqBHILQefd"})
