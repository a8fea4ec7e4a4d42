"""A model with a part of its vocabulary: embedding and head reduced, ids renumbered, the tokenizer saved
beside it.

    python -m tokenization.vocabulary english --tokenizer=MODEL --tier=ascii --out=english.json
    python scripts/prune_vocabulary.py --model=MODEL --vocabulary=english.json --to=pruned

Its logits are those of the full model at the ids that are kept. Single bytes and control tokens stay, so
that any text can still be encoded. kept_ids.json lists the old id of each new one."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import contextlib
import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from base import cli, fields
from base.errors import InputError, reading, writing
from base.fields import knob
from base.files import read_json, writable_folder, write_json
from base.text import brief
from inference.ends import generation_config
from inference.hf import load_hf, save_hf
from inference.hf.reading import find_folder
from model_builder import ConfigurableGPT
from tokenization.tokenizers import TokenizerFiles, find_tokenizer
from tokenization.vocabulary import kept_ids, prune_tokenizer, read_vocabulary


@dataclass(kw_only=True)
class PruneConfig:
    model: str = knob("", "a folder of Hugging Face's layout, or a hub id")
    vocabulary: str = knob("", "JSON of `python -m tokenization.vocabulary`")
    to: str = knob("", "the folder that is written")
    tokenizer: str | None = knob(None, "a name, folder or hub id; none: the model's own")

    def __post_init__(self) -> None:
        fields.check(self)
        for name in ("model", "vocabulary", "to"):
            if not getattr(self, name):
                raise InputError(f"--{name}=... is missing")


@torch.no_grad()
def prune_model(model: ConfigurableGPT, kept: Sequence[int]) -> ConfigurableGPT:
    """The model with these rows of embedding and head alone, in this order; everything else is shared with
    it."""
    with torch.device("meta"):
        pruned = ConfigurableGPT(replace(model.config, vocab_size=len(kept)))
    weights = dict(model.named_parameters())
    for name in ("token_embedding.weight", "lm_head.weight"):
        if name in weights:
            weights[name] = weights[name][torch.tensor(kept, device=weights[name].device)]
    pruned.load_state_dict(weights, assign=True)
    pruned.position_embedding = model.position_embedding
    return pruned


def main(argv: Sequence[str]) -> int:
    return cli.run(argv, __doc__, PruneConfig, prune)


def prune(config: PruneConfig) -> None:
    to = writable_folder(config.to, "to")
    with reading(to):
        if to.is_dir() and any(to.iterdir()):
            raise InputError(f"{to} is not empty: choose a new folder")
    folder = find_folder(config.model)
    tokenizer = find_tokenizer(config.tokenizer or folder)
    record = read_vocabulary(config.vocabulary, tokenizer)
    dtype = stored_dtype(read_json(folder / "config.json"))
    model = load_hf(folder, dtype=dtype)
    kept = kept_ids(record)
    if kept[-1] >= model.config.vocab_size:
        raise InputError(
            f"{config.vocabulary} has ids up to {kept[-1]}, the model {model.config.vocab_size} rows"
        )
    pruned = prune_model(model, kept)
    generation = generation_config(folder, {old: new for new, old in enumerate(kept)})
    with scratch_beside(to) as small:
        save_pruned_tokenizer(tokenizer, kept, small)
        save_hf(pruned, to, small, dtype, generation=generation)
    with writing(to):
        write_json(to / "kept_ids.json", kept, indent=None)
    before, after = model.get_num_params(), pruned.get_num_params()
    mb = dtype.itemsize / 1e6
    print(
        f"{to}: {len(kept):,} of {model.config.vocab_size:,} rows, {after:,} of {before:,} parameters "
        f"({1 - after / before:.1%} less), {after * mb:,.1f} of {before * mb:,.1f} MB in "
        f"{str(dtype).removeprefix('torch.')}"
    )


@contextlib.contextmanager
def scratch_beside(folder: Path) -> Iterator[Path]:
    """A folder beside another that is gone afterwards."""
    with contextlib.ExitStack() as stack:
        with writing(folder):
            parent = folder.absolute().parent
            parent.mkdir(parents=True, exist_ok=True)
            scratch = tempfile.TemporaryDirectory(dir=parent, prefix=".", ignore_cleanup_errors=True)
        yield Path(stack.enter_context(scratch))


def save_pruned_tokenizer(tokenizer: TokenizerFiles, kept: Sequence[int], folder: Path) -> None:
    """The tokenizer's files with these ids alone, renumbered, into folder. Raises InputError."""
    pruned = prune_tokenizer(tokenizer.json, kept)
    tokenizer.save(folder)
    with writing(folder):
        (folder / "tokenizer.json").write_bytes(pruned)
        # What tokenizer.json repeats, of the full vocabulary
        for name in ("vocab.json", "merges.txt", "tokenizer.model", "added_tokens.json"):
            (folder / name).unlink(missing_ok=True)
    renumber_config(folder / "tokenizer_config.json", kept)


def stored_dtype(hf_config: dict[str, Any]) -> torch.dtype:
    """What config.json says that the weights are; float32 where it does not."""
    name = hf_config.get("dtype") or hf_config.get("torch_dtype") or "float32"
    dtype = getattr(torch, str(name), None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise InputError(f"dtype={brief(name)} in config.json is not a floating-point type")
    return dtype


def renumber_config(path: Path, kept: Sequence[int]) -> None:
    """The ids in tokenizer_config.json, where it has any."""
    if not path.is_file():
        return
    fields = read_json(path)
    new_id = {old: new for new, old in enumerate(kept)}
    decoder = fields.get("added_tokens_decoder") or {}
    if not isinstance(decoder, dict) or not all(re.fullmatch("[0-9]{1,10}", i) for i in decoder):
        raise InputError(f"{path.name}: added_tokens_decoder is not a table of ids: copy it again")
    if decoder:
        kept_tokens = {new_id[int(i)]: token for i, token in decoder.items() if int(i) in new_id}
        fields["added_tokens_decoder"] = kept_tokens
    with writing(path):
        write_json(path, fields)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
