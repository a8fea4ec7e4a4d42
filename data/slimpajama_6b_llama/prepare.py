"""SlimPajama-6B, a sample of SlimPajama, with the LLaMA-2 tokenizer.

    python data/slimpajama_6b_llama/prepare.py                        # from the hub, streamed
    python data/slimpajama_6b_llama/prepare.py --source=FILES         # from local files: a folder or a pattern
    python data/slimpajama_6b_llama/prepare.py --verify

About 6 B tokens: 24 GB of shards. Source: DKYoon/SlimPajama-6B, parquet.
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
            tokenizer="llama2",
            repo="DKYoon/SlimPajama-6B",
            source_field="meta.redpajama_set_name",
            expected_tokens=6_000_000_000,
        )
    )
