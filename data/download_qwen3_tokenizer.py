"""Saves the Qwen3 tokenizer in data/qwen3_tokenizer and prints its length, model rows and special tokens.

python data/download_qwen3_tokenizer.py [--out_dir=DIR]
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository, whatever the working directory

from tokenization.tokenizers import download

if __name__ == "__main__":
    download("qwen3", sys.argv[1:])
