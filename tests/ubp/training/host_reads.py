"""Finds, on a CPU, what would make a program wait for its GPU."""

from contextlib import contextmanager

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_aten = torch.ops.aten
# A value read, or a shape that depends on values.
_READS = {
    *(_aten._local_scalar_dense, _aten.nonzero, _aten.masked_select, _aten.repeat_interleave, _aten.is_nonzero),
    *(_aten._unique2, _aten.unique_dim, _aten.equal, _aten.bincount),
}
_INDEXED = {_aten.index, _aten.index_put, _aten.index_put_}


class _Watch(TorchDispatchMode):
    def __init__(self, found):
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        operation = func.overloadpacket
        masked = operation in _INDEXED and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        if masked or (operation in _READS and func is not _aten.repeat_interleave.self_int):
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


@contextmanager
def host_reads():
    """Collects the operations inside that a GPU would have to be waited for, by name."""
    found = []
    with _Watch(found):
        yield found
