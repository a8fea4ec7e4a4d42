"""The files of config/: what they resolve to, that none restates a default, and their launch lines.

golden/configs.json holds what `train.py FILE --print_config` printed for each at commit 2738213. After a
change that is meant to alter one, say why in its commit and rewrite it with

    python tests/test_configs.py --update
"""

import ast
import contextlib
import io
import json
import re
import shlex
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # pytest does this too; --update runs without it

import train
from base.errors import InputError
from training.config import load_config

FILES = sorted((ROOT / "config").glob("*.py"))
GOLDEN = Path(__file__).with_name("golden") / "configs.json"
# What makes a run in a reader's eyes may stand there even where it is the default
SAID_ANYWAY = set(
    "arch_preset n_layer n_head n_embd block_size dataset batch_size gradient_accumulation_steps "
    "max_iters learning_rate out_dir".split()
)
by_file = pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)


def printed(file: Path) -> dict[str, dict]:
    """{"model", "train", "derived"} as --print_config has them."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert train.main([str(file), "--print_config"]) == 0
    return json.loads(out.getvalue())


def restated(text: str, scratch: Path) -> list[str]:
    """The names whose assignments can be removed from a config file's text without changing what it
    resolves to."""

    def resolve(text: str) -> list[dict] | None:
        scratch.write_text(text)
        try:
            return [asdict(config) for config in load_config([str(scratch)])]
        except InputError:  # without the line, the rest contradicts itself
            return None

    whole, found = resolve(text), []
    assert whole is not None
    for node in ast.parse(text).body:
        if isinstance(node, ast.Assign):
            lines = text.splitlines(keepends=True)
            del lines[node.lineno - 1 : node.end_lineno]
            if resolve("".join(lines)) == whole:
                found += [
                    name.id
                    for target in node.targets
                    for name in ast.walk(target)
                    if isinstance(name, ast.Name)
                ]
    return found


def test_every_file_is_in_the_golden_ones():
    assert set(json.loads(GOLDEN.read_text())) == {file.stem for file in FILES}, "run this file with --update"


@by_file
def test_it_resolves_to_the_golden_configuration(file):
    golden, now = json.loads(GOLDEN.read_text())[file.stem], printed(file)
    for part, fields in golden.items():
        assert {
            name: now[part].get(name, "gone") for name in fields
        } == fields  # a new field is not in the golden file


@by_file
def test_it_restates_nothing(file, tmp_path):
    assert set(restated(file.read_text(), tmp_path / "config.py")) <= SAID_ANYWAY


def test_restating_is_seen(tmp_path):
    text = """arch_preset = "qwen3"
n_embd = 256
n_head = 8
d_ff = 768
bias = True
beta1, beta2 = 0.9, 0.95
grad_clip = 0
"""
    # bias stays: True is the default of the field, but not of the preset
    assert restated(text, tmp_path / "config.py") == ["d_ff", "beta1", "beta2"]


@by_file
def test_it_is_short_and_begins_with_its_launch_line_and_its_size(file):
    text, derived = file.read_text(), printed(file)["derived"]
    assert 20 <= text.count("\n") <= 40
    said = ast.get_docstring(ast.parse(text))
    name = f"config/{file.name}"
    launches = re.findall(
        rf"^    (?:python|torchrun .*) train\.py ({re.escape(name)}.*)$", said, flags=re.MULTILINE
    )
    assert name in launches
    for launch in launches:
        path, *flags = shlex.split(launch)
        load_config([str(ROOT / path), *flags])  # raises where file and flags contradict each other
    assert (
        f"{derived['params']:,} parameters" in said
        and f"{derived['tokens_per_step']:,} tokens a step" in said
    )


if __name__ == "__main__":
    if sys.argv[1:] != ["--update"]:
        sys.exit(__doc__)
    GOLDEN.write_text(json.dumps({f.stem: printed(f) for f in FILES}, indent=1, sort_keys=True) + "\n")
