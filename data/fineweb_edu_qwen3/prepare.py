"""FineWeb-Edu, its sample of 10 B tokens, with the Qwen3 tokenizer.

    python data/fineweb_edu_qwen3/prepare.py                        # from the hub, streamed
    python data/fineweb_edu_qwen3/prepare.py --source=FILES         # from local files: a folder or a pattern
    python data/fineweb_edu_qwen3/prepare.py --verify

About 10 B tokens: 40 GB of shards. Source: HuggingFaceFW/fineweb-edu, sample-10BT, parquet.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the repository, whatever the working directory

from tokenization.command import run

if __name__ == "__main__":
    here = Path(__file__).resolve().parent
    raise SystemExit(
        run(
            __doc__,
            here,
            sys.argv[1:],
            tokenizer="qwen3",
            repo="HuggingFaceFW/fineweb-edu",
            config="sample-10BT",
            expected_tokens=10_000_000_000,
        )
    )
