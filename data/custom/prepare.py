"""Your own text as a dataset: a folder, files or a pattern of .jsonl, .json, .csv, .parquet, .txt, .md, .html, .py and others,
compressed or not.

python data/custom/prepare.py --source=my_texts/ --tokenizer=qwen3
python train.py config/quickstart.py --dataset=custom --vocab_size=151936 --out_dir=out-custom

python data/custom/prepare.py --source=my_texts/ --train_tokenizer=8192       # a vocabulary of its own
python train.py config/quickstart.py --dataset=custom --vocab_size=8192 --out_dir=out-custom
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the repository, whatever the working directory

from tokenization.command import run

if __name__ == "__main__":
    raise SystemExit(run(__doc__, Path(__file__).resolve().parent, sys.argv[1:]))
