"""Runs every command of README.md's ```bash blocks as it is written, in order. Called by .ci/run.

make test and make lint are left to .ci/run itself; anything else that fails, fails this.
"""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RUN_BY_CI = ("make test", "make lint")


def readme_commands() -> list[str]:
    blocks = re.findall(r"^```bash\n(.*?)^```", (ROOT / "README.md").read_text(), flags=re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.strip() and not line.startswith("#")]


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
