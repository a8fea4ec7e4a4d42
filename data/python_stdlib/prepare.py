"""The source of this Python's standard library as a dataset, with a BPE of 4096 tokens. Needs the package
tokenizers.

    python data/python_stdlib/prepare.py [--out_dir=DIR] [--verify]

Python 3.11.7 (tokenizers 0.23, 3 s on 2 cores):
train: 581 documents, 2,519,085 tokens, 9,424,037 bytes, 3.741 bytes/token, one shard of 10 MB
val:    25 documents,   139,880 tokens,   483,959 bytes, 3.460 bytes/token
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the repository, whatever the working directory

from base import cli
from base.fields import knob
from tokenization.command import verify_folder
from tokenization.embedded import prepare


@dataclass(kw_only=True)
class StdlibConfig:
    out_dir: str = knob(str(Path(__file__).resolve().parent), "the folder of the dataset")
    verify: bool = knob(False, "read everything again and compare it with meta.json")


def work(config: StdlibConfig) -> int:
    out_dir = Path(config.out_dir or Path(__file__).resolve().parent)
    if config.verify:
        return verify_folder(out_dir)
    meta = prepare(out_dir)
    print(f"{out_dir}: {meta['source']}, tokenizer of {meta['tokenizer']['length']}")
    for name, split in meta["splits"].items():
        docs, tokens, size = split["documents"], split["tokens"], split["text_bytes"]
        print(
            f"{name}: {docs:,} documents, {tokens:,} tokens, {size:,} bytes of text, "
            f"{size / tokens:.3f} bytes/token"
        )
    return 0


def main(argv: Sequence[str]) -> int:
    return cli.run(argv, __doc__, StdlibConfig, work)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
