"""Counts the bytes of tensors that are alive, whether or not they hold data."""

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """`now`: bytes of all storages made under this mode and not yet freed, as [fixed, for each sequence of
    the batch]; `points`: what it was after each change. With batch_size None all bytes are fixed.

    FSDP2 frees and refills the storages of gathered weights, flat buffers, in place. No operator tells of
    it, so the sizes of flat buffers are looked at before each operator and each change."""

    def __init__(self, batch_size: int | None) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.now = np.zeros(2, np.int64)
        self.points = [self.now]
        self._storages: dict[int, tuple[weakref.ref, int]] = {}
        self._flat: set[int] = set()  # of those, what may be resized

    def __torch_dispatch__(
        self, func: Callable, types: Iterable[type], args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if func is torch.ops.prim.device.default and isinstance(args[0], FakeTensor):
            return args[0].fake_device  # half of all calls; FakeTensorMode would take its longest way
        if DTensor in types:
            return NotImplemented  # it comes back as operations on the shard
        self.look()
        out = func(*args, **(kwargs or {}))
        self.look()
        for t in tree_leaves(out):
            if isinstance(t, Tensor):
                self._add(
                    t.untyped_storage(), flat=func is torch.ops.aten.empty.memory_format and t.dim() == 1
                )
        return out

    def look(self) -> None:
        """Counts the flat buffers whose size has changed."""
        for key in self._flat:
            ref, before = self._storages[key]
            storage = ref()
            if storage is not None and (size := storage.nbytes()) != before:
                self._storages[key] = ref, size
                self._count(size - before)

    def _add(self, storage: torch.UntypedStorage, flat: bool) -> None:
        key = storage._cdata
        if key not in self._storages:
            self._storages[key] = weakref.ref(storage, lambda _: self._remove(key)), storage.nbytes()
            if flat:
                self._flat.add(key)
            self._count(storage.nbytes())

    def _remove(self, key: int) -> None:
        self._flat.discard(key)
        size = self._storages.pop(key)[1]
        self._count(-size)

    def _count(self, change: int) -> None:
        each = change // self.batch_size if self.batch_size and change % self.batch_size == 0 else 0
        self.now = self.now + (0 if each else change, each)
        self.points.append(self.now)
