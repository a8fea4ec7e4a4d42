"""Saves the GPT-2 tokenizer in data/gpt2_tokenizer and prints its length, model rows and special tokens.

python data/download_gpt2_tokenizer.py
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository, whatever the working directory

from tokenization.download import run

if __name__ == "__main__":
    raise SystemExit(run(__doc__, "gpt2", sys.argv[1:]))
