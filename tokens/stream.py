"""TokenStream: one split as one array of ids over memory-mapped shards."""

from bisect import bisect_right
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from base.errors import InputError, reading
from base.files import size_of

SCAN_WHOLE_BYTES = 256 << 20  # a split up to this size is scanned whole when it is opened
SCAN_PIECE_BYTES = 1 << 20  # a larger one in 64 pieces of 1 MiB, the first and the last among them
SCAN_PIECES = 64
# Each map holds a file descriptor, of which a process often gets 1024; 627 B tokens are 6,270 shards
MAX_OPEN_SHARDS = 256


class TokenStream:
    """One split as one array of ids over memory-mapped shards. open_tokens() makes it; threads may share it.

    n_tokens          ids of the split
    bytes_per_token   UTF-8 bytes of text for each id, for bits per byte; None where nobody counted them
    fingerprint       hex sha256 that changes when the data does; the folder's place is not part of it
    tokenizer         {name, length, sha256} of meta.json; None in nanoGPT's folders
    eot_id            the id that ends each document; None in nanoGPT's folders
    """

    n_tokens: int
    bytes_per_token: float | None
    fingerprint: str
    tokenizer: dict[str, Any] | None
    eot_id: int | None

    def __init__(
        self,
        paths: list[Path],
        shard_tokens: list[int],
        dtype: np.dtype,
        vocab_size: int,
        fingerprint: str,
        *,
        max_ids: list[int] | None = None,
        offset_bytes: int = 0,
        bytes_per_token: float | None = None,
        tokenizer: dict[str, Any] | None = None,
        eot_id: int | None = None,
    ) -> None:
        self._paths = paths
        self._starts = [0, *accumulate(shard_tokens)]  # shard i holds ids [starts[i], starts[i+1])
        self._dtype = dtype
        self._offset_bytes = offset_bytes  # of the first id of each shard
        self._vocab_size = vocab_size
        # What meta.json records; never beyond the vocabulary
        self._max_ids = max_ids or [vocab_size - 1] * len(paths)
        self.n_tokens = self._starts[-1]
        self.bytes_per_token = bytes_per_token
        self.fingerprint = fingerprint
        self.tokenizer = tokenizer
        self.eot_id = eot_id
        self._map = lru_cache(maxsize=MAX_OPEN_SHARDS)(self._open_shard)

    def _open_shard(self, i: int) -> np.ndarray:
        path, n_tokens = self._paths[i], self._starts[i + 1] - self._starts[i]
        expected = self._offset_bytes + n_tokens * self._dtype.itemsize
        if (size := size_of(path)) < expected:
            raise InputError(
                f"{path} has shrunk to {size} bytes from {expected} since it was opened: restore it"
            )
        with reading(path):
            # A plain view of the map: slices of np.memmap itself cost 3 us more
            return np.asarray(np.memmap(path, self._dtype, "r", self._offset_bytes, (n_tokens,)))

    def __len__(self) -> int:
        return self.n_tokens

    def read(self, start: int, length: int) -> np.ndarray:
        """Ids [start, start + length) of the split as a new int64 array [length], across shards where need
        be.

        Raises IndexError beyond the split's ends, and InputError, with file and position, at an id that is
        beyond the shard's max_id, or >= vocab_size, which an embedding on a GPU would answer with a device
        assert or, in places, with silence."""
        if start < 0 or length < 0 or start + length > self.n_tokens:
            raise IndexError(f"ids [{start}, {start + length}) of a split of {self.n_tokens}")
        out = np.empty(length, dtype=np.int64)
        done = 0
        shard = bisect_right(self._starts, start) - 1
        while done < length:
            offset = start + done - self._starts[shard]
            piece = self._map(shard)[offset : offset + length - done]
            if piece.max() > self._max_ids[shard]:
                self._refuse(shard, offset, piece)
            out[done : done + len(piece)] = piece
            done += len(piece)
            shard += 1
        return out

    def _refuse(self, shard: int, offset: int, piece: np.ndarray) -> None:
        beyond_model = piece >= self._vocab_size
        at = int(np.argmax(beyond_model if beyond_model.any() else piece > self._max_ids[shard]))
        id_there = f"{self._paths[shard]}: id {piece[at]} at position {offset + at}"
        if beyond_model.any():
            raise InputError(
                f"{id_there} is beyond the model's vocab_size={self._vocab_size}: damaged, of another "
                f"tokenizer, or not of dtype {self._dtype.name}"
            )
        raise InputError(
            f"{id_there} is beyond the shard's max_id {self._max_ids[shard]} in meta.json: damaged, or "
            "another shard's bytes"
        )

    @property
    def is_small(self) -> bool:
        """Whether the whole split is checked when it is opened."""
        return self.n_tokens * self._dtype.itemsize <= SCAN_WHOLE_BYTES

    def scan(self) -> None:
        """Reads the split, or evenly spaced pieces of a large one, for the sake of the InputError that
        read() may raise."""
        piece_tokens = SCAN_PIECE_BYTES // self._dtype.itemsize
        if self.is_small:
            starts = range(0, self.n_tokens, piece_tokens)
        else:
            last = self.n_tokens - piece_tokens
            starts = [last * i // (SCAN_PIECES - 1) for i in range(SCAN_PIECES)]
        for start in starts:
            self.read(start, min(piece_tokens, self.n_tokens - start))
