"""The source of this Python's standard library as a dataset, with a BPE of 4096 tokens. Needs the package
tokenizers.

    python data/python_stdlib/prepare.py [--out_dir=DIR] [--verify]

Python 3.11.7 (tokenizers 0.23, 3 s on 2 cores):
train: 581 documents, 2,519,085 tokens, 9,424,037 bytes, 3.741 bytes/token, one shard of 10 MB
val:    25 documents,   139,880 tokens,   483,959 bytes, 3.460 bytes/token
"""

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the repository, whatever the working directory

from base.cli import parse_flags
from base.errors import InputError, input_errors
from tokenization.command import verify_folder
from tokenization.embedded import prepare


def main(argv: Sequence[str]) -> int:
    if "--help" in argv or "-h" in argv:
        print(__doc__)
        return 0
    with input_errors():
        words, flags = parse_flags(argv, {"out_dir": str, "verify": bool})
        if words:
            raise InputError(f"{words[0]!r} is no flag: did you mean --out_dir={words[0]!r}?")
        out_dir = Path(flags.get("out_dir") or Path(__file__).resolve().parent)
        if flags.get("verify"):
            return verify_folder(out_dir)
        meta = prepare(out_dir)
    print(f"{out_dir}: {meta['source']}, tokenizer of {meta['tokenizer']['length']}")
    for name, split in meta["splits"].items():
        docs, tokens, size = split["documents"], split["tokens"], split["text_bytes"]
        print(
            f"{name}: {docs:,} documents, {tokens:,} tokens, {size:,} bytes of text, {size / tokens:.3f} bytes/token"
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
