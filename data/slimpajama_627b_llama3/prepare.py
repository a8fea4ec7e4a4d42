"""SlimPajama, all of it, with the LLaMA-3 tokenizer.

    python data/slimpajama_627b_llama3/prepare.py                        # from the hub, streamed
    python data/slimpajama_627b_llama3/prepare.py --source=FILES         # from local files: a folder or a pattern
    python data/slimpajama_627b_llama3/prepare.py --verify

627 B tokens by its authors' count: 2.5 TB of shards. Source: cerebras/SlimPajama-627B, 59,166 files of
.jsonl.zst."""

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
            tokenizer="llama3",
            repo="cerebras/SlimPajama-627B",
            source_field="meta.redpajama_set_name",
            expected_tokens=627_000_000_000,
        )
    )
