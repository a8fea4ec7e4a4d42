"""Counting what is alive while tensors without data are computed with."""

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.distributed.tensor import DTensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Storage = torch.UntypedStorage


class LiveBytes(TorchDispatchMode):
    """`now`: bytes of all storages made under this mode and not yet freed, as [fixed, for each sequence of
    the batch]; `points`: what it was after each change. With batch_size None all bytes are fixed."""

    def __init__(self, batch_size: int | None) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.now = np.zeros(2, np.int64)
        self.points = [self.now]
        self._storages: dict[int, tuple[weakref.ref, int]] = {}
        self._resized: dict[int, Storage] = {}

    def __torch_dispatch__(
        self, func: Callable, types: Iterable[type], args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if func is torch.ops.prim.device.default and isinstance(args[0], FakeTensor):
            return args[0].fake_device  # half of all calls; FakeTensorMode would take its longest way
        if DTensor in types:
            return NotImplemented  # it comes back as operations on the shard
        self._look_again()
        if func is torch.ops.fsdp.chunk_cat.default:
            return None  # it fills what is there, a piece for each rank and parameter
        out = func(*args, **(kwargs or {}))
        for t in tree_leaves(out):
            if isinstance(t, Tensor):
                self._add(t.untyped_storage())
        return out

    def watch(self, storages: Iterable[Storage]) -> None:
        """Counts these at the size that they have by then before each operation. FSDP2 frees and refills
        gathered weights by resizing their storages, which is not an operation."""
        self._resized |= {s._cdata: s for s in storages}

    def _look_again(self) -> None:
        changes = []
        for key, storage in self._resized.items():
            ref, before = self._storages[key]
            if (size := storage.nbytes()) != before:
                self._storages[key] = ref, size
                changes.append(size - before)
        for change in sorted(changes, reverse=True):
            self._count(change)

    def _add(self, storage: Storage) -> None:
        key = storage._cdata
        if key not in self._storages:
            forget = lambda _: self._count(-self._storages.pop(key)[1])  # noqa: E731
            self._storages[key] = weakref.ref(storage, forget), storage.nbytes()
            self._count(storage.nbytes())

    def _count(self, change: int) -> None:
        each = change // self.batch_size if self.batch_size and change % self.batch_size == 0 else 0
        self.now = self.now + (0 if each else change, each)
        self.points.append(self.now)


class FusedNorms(TorchFunctionMode):
    """RMSNorm is one kernel on CUDA. On the CPU, where tensors without data lie, it is composed and keeps
    more."""

    def __torch_function__(
        self, func: Callable, types: Iterable[type], args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if func is F.rms_norm:
            return fused_rms_norm(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def fused_rms_norm(x: Tensor, shape: tuple[int, ...], weight: Tensor, eps: float) -> Tensor:
    return torch.ops.aten._fused_rms_norm(x, shape, weight, eps)[0]


class FirstShards(TorchFunctionMode):
    """FSDP2 cuts a parameter into a piece for each rank, and rank 0 takes the first: the others are not
    made, so that a thousand ranks cost no more than two."""

    def __torch_function__(
        self, func: Callable, types: Iterable[type], args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if func is torch.chunk:
            return first_of_chunks(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def first_of_chunks(t: Tensor, chunks: int, dim: int = 0) -> list[Tensor]:
    return [t.narrow(dim, 0, -(-t.size(dim) // chunks))] * chunks
