"""All that one process of a run reads: dataset folders by name or path, their splits, their batches."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from base.errors import InputError, MissingFile
from tokens.format import tokenizer_files
from tokens.llmc import is_llmc
from tokens.loader import Batch, BatchLoader, evaluation_batches
from tokens.mixture import Mixture, parse_mixture
from tokens.reader import open_tokens


def dataset_folder(dataset: str, data_root: Path) -> Path:
    """A name under data_root, or a path. Raises MissingFile, which says how to prepare it, where there is no
    data."""
    named = data_root / dataset
    folder = named if os.path.isdir(named) else Path(dataset)
    if any(os.path.lexists(folder / file) for file in ("meta.json", "train.bin")) or is_llmc(folder):
        return folder
    if os.path.isfile(named / "prepare.py"):
        raise MissingFile(f"dataset {dataset!r} is not prepared: run python data/{dataset}/prepare.py")
    if os.path.isdir(folder):
        raise MissingFile(
            f"dataset {folder} holds neither meta.json nor train.bin: prepare it or name another"
        )
    known = sorted(path.parent.name for path in data_root.glob("*/prepare.py"))
    raise MissingFile(f"dataset {dataset!r} is neither a folder nor one of data/: {', '.join(known)}")


def copy_tokenizer(folder: Path, to: Path) -> None:
    for file in tokenizer_files(folder):
        copy = to / file.relative_to(folder)
        copy.parent.mkdir(exist_ok=True)
        shutil.copy(file, copy)


class Dataset:
    """All that one process of a run reads: the prepared folder of `dataset`, or several in proportion to
    their weights.

    `dataset` is a name under data_root, a path, or a mixture such as "a:0.7,b:0.3"; `vocab_size` is the
    model's rows; `gradient_accumulation_steps` counts the micro-batches of a step over all processes;
    `eval_tokens` says how much of each split is evaluated; `data_dtype` is for nanoGPT's folders alone.
    Raises InputError, which says what to do, where something is not prepared or does not fit the model."""

    def __init__(
        self,
        dataset: str,
        data_root: Path,
        *,
        vocab_size: int,
        block_size: int,
        batch_size: int,
        gradient_accumulation_steps: int,
        seed: int,
        eval_tokens: int,
        data_dtype: str | None = None,
        document_masking: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.name, self.block_size, self.batch_size = dataset, block_size, batch_size
        self.evaluated = max(1, eval_tokens // block_size)  # windows that are asked for
        weights, weights_note = parse_mixture(dataset, data_root)
        self.weights = weights
        self.folders = [dataset_folder(name, data_root) for name in weights]
        self.splits = {
            split: Mixture(
                [open_tokens(folder, split, vocab_size, data_dtype) for folder in self.folders],
                list(weights.values()),
                [f"{name} ({split})" for name in weights],
            )
            for split in ("train", "val")
        }
        first = self.splits["val"].streams[0]
        self.tokenizer, self.eot_id = first.tokenizer, first.eot_id  # one for all of a mixture
        if document_masking and self.eot_id is None:
            raise InputError(
                f"document_masking=True: {self.folders[0]} has no meta.json and so no eot_id; set it to False"
            )
        self.own_share = {
            "rank": rank,
            "world_size": world_size,
            "eot_id": self.eot_id if document_masking else None,
        }
        self.loader = BatchLoader(
            self.splits["train"], block_size, batch_size, gradient_accumulation_steps, seed, **self.own_share
        )
        # Of the whole split; those of what is evaluated are training.measure's to count
        self.bytes_per_token = self.splits["val"].bytes_per_token(self.evaluated, block_size)
        self.notes = [weights_note] if weights_note else []
        self.notes += self._notes()

    def _notes(self) -> Iterator[str]:
        if self.tokenizer and not tokenizer_files(self.folders[0]):
            yield f"{self.folders[0]} holds no tokenizer: sample.py will look for its files in the run folder"
        for split, mixture in self.splits.items():
            there = sum(mixture.evaluated(self.evaluated, self.block_size))
            if there < self.evaluated:
                why = "has no more" + (" for its weight" if len(self.folders) > 1 else "")
                yield f"evaluations of {split} take {there:,} windows, not {self.evaluated:,}: the split {why}"

    def evaluation_batches(self, split: str) -> Iterator[Batch]:
        sizes = self.block_size, self.batch_size, self.evaluated
        return evaluation_batches(self.splits[split], *sizes, **self.own_share)

    def record(self, max_iters: int) -> dict[str, Any]:
        """For the run log and the checkpoints."""
        streams, epochs = self.splits["train"].streams, self.loader.epochs(max_iters)
        sources = [
            {"dataset": str(folder), "weight": float(weight), "tokens": tokens.n_tokens, "epochs": n}
            for folder, weight, tokens, n in zip(
                self.folders, self.weights.values(), streams, epochs, strict=True
            )
        ]
        return {
            "dataset": str(self.folders[0]) if len(self.folders) == 1 else self.name,
            "sources": sources,
            "fingerprint": self.splits["train"].fingerprint,
            "bytes_per_token": self.bytes_per_token,
            "train_bytes_per_token": self.splits["train"].mean_bytes_per_token,
            "tokenizer": self.tokenizer,
            "eot_id": self.eot_id,
        }
