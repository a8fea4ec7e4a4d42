"""`python X.py --help` of every program lists each of its flags, with type, default and meaning, as the fields declare them."""

import runpy
import sys
from pathlib import Path

import pytest

from base import cli, fields

ROOT = Path(__file__).resolve().parents[1]
NOT_PROGRAMS = ("model_config.py", "model_components.py", "model_builder.py")
NOT_PROGRAMS += ("benchmarks/records.py", "benchmarks/contestants.py")
FILES = [
    *ROOT.glob("*.py"),
    *ROOT.glob("scripts/*.py"),
    *ROOT.glob("benchmarks/*.py"),
    *ROOT.glob("data/*.py"),
]
FILES += [*ROOT.glob("data/*/prepare.py"), ROOT / "tokenization" / "vocabulary.py"]
PROGRAMS = sorted({str(file.relative_to(ROOT)) for file in FILES} - set(NOT_PROGRAMS))


def helped(program: str, flag: str, monkeypatch, capsys) -> tuple[str, list[type]]:
    """What the program prints, run as from a shell, and the records whose fields are its flags: those that it describes are
    those that it parses (cli.run, load_config_and)."""
    described, plain = [], cli.help_text
    monkeypatch.setattr(cli, "help_text", lambda doc, *kinds: described.extend(kinds) or plain(doc, *kinds))
    monkeypatch.setattr(sys, "argv", [program, flag])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / program), run_name="__main__")
    out, err = capsys.readouterr()
    assert not ended.value.code and not err
    return out, described


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_lists_every_flag(program, capsys, monkeypatch):
    out, records = helped(program, "--help", monkeypatch, capsys)
    assert records, "its flags are declared nowhere"
    for cls in records:
        for name, k in fields.knobs(cls).items():
            shape, _ = cli.flag_help(cls, name)
            assert f"  {shape}\n" in out and k.meaning and k.meaning in out, name
            assert f"  --{name}=" in out and "(default " in out


def test_a_short_flag_helps_too(capsys, monkeypatch):
    short, _ = helped("sample.py", "-h", monkeypatch, capsys)
    assert short == helped("sample.py", "--help", monkeypatch, capsys)[0]


def test_the_programs_are_all():
    assert {"train.py", "sample.py", "plan.py", "compare_architectures.py", "scripts/export_hf.py"} <= set(
        PROGRAMS
    )
    assert len(PROGRAMS) > 35
