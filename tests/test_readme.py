"""README.md says what the code says. Its commands are run, as written, by tests/readme_commands.py, which
.ci/run calls."""

import json
import re
from pathlib import Path

import torch
from readme_commands import readme_commands

from model_builder import ConfigurableGPT
from model_config import PRESET_CONFIGS, get_preset_config
from training.config import load_config

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def test_the_config_file_it_explains_is_the_config_file():
    (block,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert block == (ROOT / "config" / "quickstart.py").read_text()


def test_the_presets_have_the_parameters_it_gives():
    for name in PRESET_CONFIGS:
        with torch.device("meta"):
            params = ConfigurableGPT(get_preset_config(name)).get_num_params()
        assert re.search(rf"^\| `{name}` .*\| {params:,} \|$", README, flags=re.MULTILINE)


def test_the_quickstarts_figures_are_those_of_its_log():
    log = (ROOT / "benchmarks" / "results" / "quickstart.jsonl").read_text().splitlines()
    start, *events = map(json.loads, log)
    params, last = start["model"]["params"], [e for e in events if e["event"] == "eval"][-1]
    with torch.device("meta"):
        assert (
            params
            == ConfigurableGPT(load_config([str(ROOT / "config" / "quickstart.py")])[0]).get_num_params()
        )
    tokens, bits = last["tokens"] / 1e6, last["val_bits_per_byte"]
    said = f"{params / 1e6:.1f} M parameters after {tokens:.1f} M tokens, stands at {bits:.2f} bits per byte"
    assert said in " ".join(README.split())
    recipe = json.loads((ROOT / "benchmarks" / "results" / "time_to_loss.json").read_text())["results"]
    ours, theirs = recipe["nanofoundry"], recipe["nanoGPT"]
    assert (
        ours["val bits per byte"] <= theirs["val bits per byte"]
        and 3 * ours["seconds"] <= theirs["seconds"] * 1.01
    )


def test_ci_runs_every_command():
    commands = readme_commands()
    assert {"make train", "make test"} <= set(commands) and len(commands) >= 8
    script = (ROOT / ".ci" / "run").read_text()
    assert "make test" in script and "tests/readme_commands.py" in script


def test_every_link_leads_somewhere():
    for link in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / link).exists(), link
