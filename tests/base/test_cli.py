"""Command lines: typed flags, words, help from the fields, one line and exit code 2 for wrong input and for nothing else."""

import os
import subprocess
import sys
from dataclasses import dataclass
from typing import Literal

import pytest

from base import cli, fields
from base.errors import InputError, MissingPackage, input_errors, reading, require
from base.fields import knob


@dataclass(kw_only=True)
class Options:
    out_dir: str = knob("out", "the run")
    to: str = knob("", "where to")
    model: str | None = knob(None, "a folder")
    count: int = knob(3, "how many", bounds="[1, inf)")
    dtype: Literal["float32", "bfloat16"] = knob("float32", "of weights")
    fast: bool = knob(False, "whether")

    def __post_init__(self) -> None:
        fields.check(self)


@dataclass(kw_only=True)
class Several:
    runs: list[str] = knob([], "folders", takes_words=True)
    latest: int | None = knob(None, "the newest", bounds="[1, inf)")


def test_flags_and_words():
    assert cli.read(["--count", "4", "--fast", "--to=x", "--count=5"], Options) == Options(
        count=5, fast=True, to="x"
    )
    assert cli.read(["a", "--latest=2", "b", "--runs=c"], Several) == Several(runs=["c", "a", "b"], latest=2)
    assert cli.read(["--fast", "no", "--model=none"], Options) == Options()


@pytest.mark.parametrize("argv, said", [
    (["--cuont=3"], "unknown key 'cuont' in the flags: did you mean 'count'?"),
    (["--count=0"], "count=0 must be at least 1"),
    (["--count"], "--count needs a value"),
    (["--count=many"], "--count=many is not a whole number"),
    (["--dtype=float8"], "dtype='float8' is not known"),
    (["--fast=perhaps"], "--fast=perhaps is neither True nor False"),
    (["count=4"], "'count=4' is not a flag: did you mean --count=4?"),
    (["-count=4"], "did you mean --count=4?"),
    (["elsewhere"], "'elsewhere' is not a flag: did you mean --out_dir=elsewhere?"),
])  # fmt: skip
def test_mistakes_end_with_one_line_and_2(argv, said, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.run(argv, "doc", Options, lambda config: 0)
    out, err = capsys.readouterr()
    assert ended.value.code == 2 and not out and err.count("\n") == 1 and said in err


def test_a_word_means_the_flag_that_it_fits(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out-a" / "checkpoints").mkdir(parents=True)
    (tmp_path / "exported").mkdir()
    (tmp_path / "exported" / "config.json").write_text("{}")
    assert "--out_dir=out-a?" in cli.not_a_flag("out-a", Options)
    assert "--model=exported?" in cli.not_a_flag("exported", Options)


def test_the_code_is_what_the_work_returns(capsys):
    assert cli.run([], "doc", Options, lambda config: None) == 0
    assert cli.run(["--count=7"], "doc", Options, lambda config: config.count) == 7


@pytest.mark.parametrize("flags", [["--help"], ["config/quickstart.py", "--gpu=H100", "--json"]])
def test_whoever_reads_may_leave_before_the_end(flags):
    read, write = os.pipe()
    os.close(read)
    try:
        ended = subprocess.run(
            [sys.executable, "plan.py", *flags], stdout=write, stderr=subprocess.PIPE, text=True
        )
    finally:
        os.close(write)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_other_exceptions_are_ours_and_keep_their_traceback():
    for error in (ValueError("x"), KeyError("x"), OSError("x"), ImportError("x")):

        def work(config: Options, error: Exception = error) -> None:
            raise error

        with pytest.raises(type(error)):
            cli.run([], "doc", Options, work)


def test_help_lists_every_flag_with_type_default_and_meaning(capsys):
    assert cli.run(["--help"], "What it does.", Options, lambda config: 1) == 0
    out = capsys.readouterr().out
    assert out.startswith("What it does.\n")
    for name, k in fields.knobs(Options).items():
        assert f"  --{name}=" in out and k.meaning in out
    assert "--count=int, in [1, inf)\n        how many (default 3)" in out
    assert "--dtype=float32|bfloat16" in out and "--model=str|none" in out and "--fast=True|False" in out


def test_edges_become_input_errors(tmp_path):
    with pytest.raises(
        MissingPackage, match="a thing needs the package no_such_package: pip install no-such"
    ):
        require("no_such_package.part", "a thing", "no-such")
    for name in ("missing", "folder"):
        (tmp_path / "folder").mkdir(exist_ok=True)
        with pytest.raises(InputError, match=name), reading(tmp_path / name):
            (tmp_path / name).read_bytes()


def test_of_many_processes_one_speaks(capsys):
    with pytest.raises(SystemExit), input_errors(lambda message: False):
        raise InputError("wrong")
    assert capsys.readouterr().err == ""
