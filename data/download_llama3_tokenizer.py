"""Saves the LLaMA 3 tokenizer in data/llama3_tokenizer and prints its length, model rows and special tokens.

python data/download_llama3_tokenizer.py
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository, whatever the working directory

from tokenization.download import run

if __name__ == "__main__":
    raise SystemExit(run(__doc__, "llama3", sys.argv[1:]))
