"""The program of every data/download_*_tokenizer.py."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from base import cli, fields
from base.fields import knob
from base.files import writable_folder
from base.text import printable
from tokenization import tokenizers


@dataclass(frozen=True, kw_only=True)
class DownloadConfig:
    out_dir: str = knob("", "where the files are saved")

    def __post_init__(self) -> None:
        fields.check(self)


def run(doc: str, name: str, argv: Sequence[str]) -> int:
    """Saves the tokenizer `name`, by default in data/<name>_tokenizer, and prints its length, model rows
    and special tokens. Returns the exit code."""
    config = fields.with_defaults(DownloadConfig, out_dir=str(tokenizers.DATA / f"{name}_tokenizer"))
    return cli.run(argv, doc, config, lambda chosen: download(name, chosen.out_dir))


def download(name: str, out_dir: str) -> None:
    found = tokenizers.save_tokenizer(name, writable_folder(out_dir))
    print(f"{out_dir}: tokenizer.json of {len(found.json):,} bytes, sha256 {found.sha256}")
    print(
        f"{found.length:,} tokens, {found.vocab_size:,} model rows; "
        f"{printable(found.eot_token)} ({found.eot_id}) goes between documents"
    )
    for token in json.loads(found.json)["added_tokens"]:
        if not token["content"].startswith("<|reserved_special_token_"):
            print(
                f"{token['id']:>7}  {printable(token['content'])}{'' if token['special'] else '  (not special)'}"
            )
