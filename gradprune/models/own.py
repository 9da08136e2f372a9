"""A network from the user's own code, such as `mypkg.module:build`, imported from the current folder."""

import importlib
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import nn

from gradprune.base.errors import InputError, require
from gradprune.models.layers import normalized


def own_model(place: str, num_classes: int, *, mean: float | list[float] | None = None,
              std: float | list[float] | None = None) -> nn.Module:
    """Import `module:function` and call the function; this runs that code, so use it only for code you trust.

    place: "module:function"; the current folder is searched first. The function returns an nn.Module.
    num_classes: passed on if the function has an argument of that name or takes any (**kwargs).
    mean, std: shift and scale the images first, see `normalized`; without them the network gets pixels in [0, 1].
    Raises InputError if the module or function is not found, fails, or returns something else.
    """
    with current_folder_first():  # also for the call, since a function may import
        function = look_up(place)
        try:
            wants = any(name == "num_classes" or taken.kind is taken.VAR_KEYWORD
                        for name, taken in inspect.signature(function).parameters.items())
            net = function(num_classes=num_classes) if wants else function()
        except (Exception, SystemExit) as error:  # foreign code may raise anything
            raise InputError(f"{place} failed with {type(error).__name__}: {error}.") from error
    require(isinstance(net, nn.Module), f"{place} must return an nn.Module, got {type(net).__name__}.")
    if mean is None and std is None:
        return net
    return normalized(net, 0.0 if mean is None else mean, 1.0 if std is None else std)


def look_up(place: str) -> Callable[..., nn.Module]:
    """The function that "module:function" names; raises InputError if it cannot be imported."""
    module_name, _, name = place.partition(":")
    require(bool(module_name and name), f"own code is named as module:function, got {place!r}.")
    require(not set(module_name) & set("/\\") and not module_name.startswith(".") and not module_name.endswith(".py"),
            "own code is named as module:function and looked up from the current folder: pkg.net:build is the function "
            f"build in pkg/net.py, got {place!r}.")
    try:
        importlib.invalidate_caches()
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and (module_name + ".").startswith(error.name + "."):
            raise InputError(f"there is no module {module_name!r} in the current folder or among the installed "
                             "packages.") from None
        raise InputError(f"importing {module_name} failed: {error}.") from error
    except SystemExit as error:
        raise InputError(f"importing {module_name} ended the program, as a script does: put what it runs under "
                         "`if __name__ == '__main__':`.") from error
    except Exception as error:
        raise InputError(f"importing {module_name} failed with {type(error).__name__}: {error}.") from error
    function = getattr(module, name, None)
    require(not isinstance(function, nn.Module), f"{place} is a network; name a function that builds it.")
    if not callable(function):
        has = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise InputError(f"{module_name} has no function {name!r}; it has {', '.join(has[:8]) or 'none'}.")
    return function


@contextmanager
def current_folder_first() -> Iterator[None]:
    """A context in which modules of the current folder can be imported; the search path is restored afterwards."""
    before = list(sys.path)
    sys.path.insert(0, str(Path.cwd()))
    try:
        yield
    finally:
        sys.path[:] = before
