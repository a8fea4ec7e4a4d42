"""OpenWebText with the GPT-2 tokenizer.

    python data/openwebtext_gpt2/prepare.py                        # from the hub, streamed
    python data/openwebtext_gpt2/prepare.py --source=FILES         # from local files: a folder or a pattern
    python data/openwebtext_gpt2/prepare.py --verify

About 9 B tokens: 36 GB of shards. Source: Skylion007/openwebtext.
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
            tokenizer="gpt2",
            repo="Skylion007/openwebtext",
            expected_tokens=9_000_000_000,
        )
    )
