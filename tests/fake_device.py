"""A second device without a GPU: tensors that say they are on "meta" and have their numbers here.

Inside `with Machine():` a tensor that is sent to "meta" becomes a `FakeDevice`. Mixing it with a tensor of the CPU fails as it
does on a GPU, so code that forgets the device is found on any machine.
"""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

META, CPU = torch.device("meta"), torch.device("cpu")
_aten = torch.ops.aten
_MAY_MIX = (_aten.copy_, _aten.index, _aten.index_put, _aten.index_put_, _aten._index_put_impl_, _aten._local_scalar_dense)


class FakeDevice(torch.Tensor):
    """Sizes and strides of `inner`, which holds the numbers: a real tensor on "meta" has none."""

    is_meta = False

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(cls, inner.size(), strides=inner.stride(), dtype=inner.dtype,
                                                   storage_offset=inner.storage_offset(), device=META)

    def __init__(self, inner):
        self.inner = inner

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


class Machine(TorchDispatchMode):
    """While it is on, "meta" is a device to compute on."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


def _run(func, args, kwargs):
    leaves = tree_flatten((args, kwargs))[0]
    there = [leaf for leaf in leaves if isinstance(leaf, FakeDevice)]
    here = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor) and not isinstance(leaf, FakeDevice) and leaf.dim()]
    wanted = next((leaf for leaf in leaves if isinstance(leaf, torch.device)), None)
    packet = func.overloadpacket
    if there and here and not (packet in _MAY_MIX and (packet is _aten.copy_ or isinstance(args[0], FakeDevice))):
        raise RuntimeError(f"Expected all tensors to be on the same device, but {func} got two.")
    originals = {id(leaf.inner): leaf for leaf in there}

    def inside(leaf):
        return leaf.inner if isinstance(leaf, FakeDevice) else CPU if isinstance(leaf, torch.device) else leaf

    def outside(leaf):
        if not isinstance(leaf, torch.Tensor) or (wanted or (META if there else CPU)) != META:
            return leaf
        return originals.get(id(leaf)) if id(leaf) in originals else FakeDevice(leaf)

    return tree_map(outside, func(*tree_map(inside, args), **tree_map(inside, kwargs)))
