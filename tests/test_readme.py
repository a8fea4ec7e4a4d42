"""README.md says what the code says. Its commands are run, as written, by tests/readme_commands.py, which .ci/run calls."""

import re
from pathlib import Path

from readme_commands import readme_commands

from model_builder import ConfigurableGPT
from model_config import PRESET_CONFIGS, get_preset_config

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def test_the_config_file_it_explains_is_the_config_file():
    (block,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert block == (ROOT / "config" / "quickstart.py").read_text()


def test_the_presets_have_the_parameters_it_gives():
    import torch

    for name in PRESET_CONFIGS:
        with torch.device("meta"):
            params = ConfigurableGPT(get_preset_config(name)).get_num_params()
        assert re.search(rf"^\| `{name}` .*\| {params:,} \|$", README, flags=re.MULTILINE)


def test_ci_runs_every_command():
    commands = readme_commands()
    assert {"make train", "make test"} <= set(commands) and len(commands) >= 8
    script = (ROOT / ".ci" / "run").read_text()
    assert "make test" in script and "tests/readme_commands.py" in script


def test_every_link_leads_somewhere():
    for link in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / link).exists(), link
