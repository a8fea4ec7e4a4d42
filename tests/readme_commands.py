"""Runs every command of the ```bash blocks of README.md and docs/, as it is written, in order. Called by
.ci/run.

make test, make test-faults and make lint are left to .ci/run itself; anything else that fails, fails this.
"""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RUN_BY_CI = ("make test", "make test-faults", "make lint")


def readme_commands() -> list[str]:
    text = "\n".join(file.read_text() for file in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))])
    blocks = re.findall(r"^```bash\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    lines = [
        line for block in blocks for line in block.splitlines() if line.strip() and not line.startswith("#")
    ]
    return list(dict.fromkeys(lines))  # what a document repeats is run once


def main() -> None:
    env = os.environ | {"PATH": f"{ROOT}/.venv/bin:{os.environ['PATH']}"}
    commands = [c for c in readme_commands() if c not in RUN_BY_CI]
    assert "make train" in commands, "README.md no longer gives `make train` in a bash block"
    for command in commands:
        print(f"$ {command}", flush=True)
        start = time.time()
        code = subprocess.run(command, shell=True, cwd=ROOT, env=env).returncode
        if code:
            sys.exit(f"README.md's command ended with {code}: {command}")
        print(f"({time.time() - start:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
