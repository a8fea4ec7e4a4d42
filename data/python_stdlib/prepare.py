"""The source of this Python's standard library as a dataset, with a BPE of 4096 tokens. Needs the package tokenizers.

    python data/python_stdlib/prepare.py [--out_dir=DIR] [--verify]

Python 3.11.7 (tokenizers 0.23, 3 s on 2 cores):
train: 581 documents, 2,519,085 tokens, 9,424,037 bytes, 3.741 bytes/token, one shard of 10 MB
val:    25 documents,   139,880 tokens,   483,959 bytes, 3.460 bytes/token
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the repository, whatever the working directory

from tokenization.command import verify_folder
from tokenization.embedded import prepare
from training.config import user_errors

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out_dir", default=Path(__file__).resolve().parent, type=Path, help="default: this folder")
    parser.add_argument("--verify", action="store_true", help="read everything again and compare it with meta.json")
    args = parser.parse_args()
    with user_errors():
        if args.verify:
            raise SystemExit(verify_folder(args.out_dir))
        meta = prepare(args.out_dir)
    print(f"{args.out_dir}: {meta['source']}, tokenizer of {meta['tokenizer']['length']}")
    for name, split in meta["splits"].items():
        docs, tokens, size = split["documents"], split["tokens"], split["text_bytes"]
        print(f"{name}: {docs:,} documents, {tokens:,} tokens, {size:,} bytes of text, {size / tokens:.3f} bytes/token")
