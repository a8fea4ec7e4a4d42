"""scripts/run_lm_eval.py around a harness of our own: what it is asked for, and what it may do wrong."""

import json
import sys
import types

import pytest
from tiny_models import tiny

from inference.hf import save_hf
from model_builder import ConfigurableGPT
from scripts import run_lm_eval


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    from tokenizers import Tokenizer, models

    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer = Tokenizer(models.WordLevel({"<|endoftext|>": 0, "a": 1}, unk_token="a"))
    tokenizer.add_special_tokens(["<|endoftext|>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    return save_hf(ConfigurableGPT(tiny()), folder / "model", str(folder))


@pytest.fixture
def harness(monkeypatch):
    """A stand-in for the package; `fails` says where it raises what."""
    fails, asked = {}, []

    def step(name, value):
        if name in fails:
            raise fails[name]
        return value

    class TaskManager:
        def __init__(self, include_path):
            step("tasks", None)

        def match_tasks(self, names):
            return [name for name in names if name == "known"]

    def simple_evaluate(**options):
        asked.append(options)
        return step("evaluate", {"results": {("a", 1): {"acc": 0.5, "dtype": object}}, "n": (1, None)})

    package = types.ModuleType("lm_eval")
    package.__version__, package.simple_evaluate = "0", simple_evaluate
    package.models, package.utils = types.ModuleType("models"), types.ModuleType("utils")
    package.utils.make_table = lambda results: "a table"
    modules = {
        "lm_eval": package,
        "lm_eval.models": package.models,
        "lm_eval.tasks": types.ModuleType("tasks"),
    }
    modules["lm_eval.models.huggingface"] = types.ModuleType("huggingface")
    modules["lm_eval.tasks"].TaskManager = TaskManager
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    return fails, asked


def test_results_of_any_type_become_json(model, harness, tmp_path, capsys):
    out = tmp_path / "results.json"
    flags = [
        f"--model={model}",
        "--tasks=known",
        f"--out={out}",
        "--device=cpu",
        "--dtype=float32",
        "--limit=3",
    ]
    assert run_lm_eval.main(flags) == 0
    assert "a table" in capsys.readouterr().out
    record = json.loads(out.read_text())
    assert record["results"]["('a', 1)"]["acc"] == 0.5 and record["n"] == [1, None]
    (options,) = harness[1]
    assert options["model_args"] == {"pretrained": str(model), "dtype": "float32"} and options["limit"] == 3


@pytest.mark.parametrize(
    ("fails", "flags", "words"),
    [
        ({"tasks": KeyError("group")}, [], "its tasks cannot be read (KeyError: 'group')"),
        (
            {"evaluate": ConnectionError("no\nroute")},
            [],
            "known cannot be evaluated (ConnectionError: no route)",
        ),
        ({}, ["--tasks=known,none"], "tasks='none' is not known"),
        ({}, ["--out={tmp}"], "is a folder: name a file in it"),
        ({}, ["--out={tmp}/none/x.json"], "is not a folder"),
        ({}, ["--out=/dev/null/x.json"], "cannot be written to"),
        ({}, ["--include_path={tmp}/none"], "is not a folder"),
    ],
)
def test_what_goes_wrong_is_one_line(fails, flags, words, model, harness, tmp_path, capsys):
    harness[0].update(fails)
    with pytest.raises(SystemExit) as stopped:
        run_lm_eval.main(
            [f"--model={model}", "--tasks=known", "--device=cpu", *(f.format(tmp=tmp_path) for f in flags)]
        )
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and error.count("\n") == 1 and words in error
    assert not any(tmp_path.iterdir())
