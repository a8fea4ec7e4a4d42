"""scripts/import_hf.py and export_hf.py: a trained run goes to transformers and back, and both generate the
same text."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import sample
import train
from inference.hf import load_hf
from model_builder import ConfigurableGPT
from model_config import ModelArchitectureConfig
from scripts import export_hf, import_hf
from tokenization import embedded
from training import checkpoint

ROOT = Path(__file__).resolve().parents[1]
PROMPT = "def main("


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory):
    """(run folder, exported folder) of config/quickstart.py after a few steps, on a corpus that is made
    here."""
    root = tmp_path_factory.mktemp("quickstart")
    words = "def main ( self , name = None ) : return value import os class Reader for item in items".split()
    for n in range(60):
        (root / "source" / f"p{n % 7}").mkdir(parents=True, exist_ok=True)
        lines = [" ".join(words[(n * 7 + i * k) % len(words)] for k in range(1, 9)) for i in range(60)]
        (root / "source" / f"p{n % 7}" / f"m{n}.py").write_text("\n".join(lines) + "\n")
    embedded.prepare(root / "data", vocab_size=400, source=root / "source")
    flags = "--max_iters=4 --warmup_iters=1 --vocab_size=400 --n_layer=2 --block_size=64 --eval_iters=1"
    flags += f" --dataset={root / 'data'}"
    assert (
        train.main(
            [
                str(ROOT / "config" / "quickstart.py"),
                *flags.split(),
                "--device=cpu",
                f"--out_dir={root / 'run'}",
            ]
        )
        == 0
    )
    assert export_hf.main([f"--out_dir={root / 'run'}", f"--to={root / 'exported'}"]) == 0
    return root / "run", root / "exported"


def test_transformers_generates_the_text_of_sample(quickstart, capsys):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run, exported = quickstart
    assert (
        sample.main(
            [
                f"--out_dir={run}",
                f"--prompt={PROMPT}",
                "--max_new_tokens=40",
                "--temperature=0",
                "--dtype=float32",
            ]
        )
        == 0
    )
    ours = capsys.readouterr().out.removesuffix("\n")
    model, info = AutoModelForCausalLM.from_pretrained(exported, output_loading_info=True)
    assert not any(info.values())
    tokenizer = AutoTokenizer.from_pretrained(exported)
    inputs = tokenizer(PROMPT, return_tensors="pt")
    theirs = tokenizer.decode(
        model.generate(**inputs, max_new_tokens=40, do_sample=False)[0], skip_special_tokens=True
    )
    assert ours == theirs and len(ours) > len(PROMPT) + 10
    assert model.generation_config.eos_token_id == [0] and tokenizer.eos_token_id == 0


def test_import_is_the_inverse_of_export(quickstart, tmp_path, capsys):
    run, exported = quickstart
    assert import_hf.main([f"--model={exported}", f"--out_dir={tmp_path / 'back'}"]) == 0
    flags = [f"--prompt={PROMPT}", "--max_new_tokens=20", "--temperature=0"]
    capsys.readouterr()
    texts = [
        sample.main([f"--out_dir={folder}", *flags]) or capsys.readouterr().out
        for folder in (run, tmp_path / "back")
    ]
    assert texts[0] == texts[1]
    paths = [checkpoint.find_checkpoint(folder) for folder in (run, tmp_path / "back")]
    models = []
    for path in paths:
        model = ConfigurableGPT(ModelArchitectureConfig.from_dict(checkpoint.load_state(path)[1]["model"]))
        checkpoint.load_weights(path, model)
        models.append(model)
    assert all(torch.equal(p, q) for p, q in zip(models[0].parameters(), models[1].parameters(), strict=True))
    with pytest.raises(SystemExit):
        import_hf.main([f"--model={exported}", f"--out_dir={tmp_path / 'back'}"])
    assert "holds the checkpoints of a run" in capsys.readouterr().err
    with pytest.raises(SystemExit):  # what can be done instead is said
        data = f"--dataset={run.parent / 'data'}"
        train.main(
            [str(ROOT / "config/quickstart.py"), data, "--vocab_size=400", f"--out_dir={tmp_path / 'back'}"]
        )
    assert f"pass --init_from=hf:{exported} and another --out_dir" in capsys.readouterr().err


def test_the_reader_of_a_sample_may_leave(quickstart):
    run, _ = quickstart
    command = [
        sys.executable,
        str(ROOT / "sample.py"),
        f"--out_dir={run}",
        "--max_new_tokens=64",
        "--device=cpu",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        child.stdout.close()
        assert child.stderr.read() == b"" and child.wait() == 0


def test_options_of_the_export(quickstart, tmp_path, capsys):
    run, exported = quickstart
    flags = [f"--out_dir={run}", f"--to={tmp_path / 'half'}"]
    assert export_hf.main([*flags, "--dtype=bfloat16", "--max_shard_gb=0.0005", "--step=4"]) == 0
    assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == "bfloat16"
    assert len(list((tmp_path / "half").glob("model-*.safetensors"))) > 2
    full, half = load_hf(exported), load_hf(tmp_path / "half")
    assert all(
        torch.equal(p.bfloat16().float(), q)
        for p, q in zip(full.parameters(), half.parameters(), strict=True)
    )


@pytest.mark.parametrize(
    ("script", "flags", "word"),
    [
        (export_hf, ["--to={tmp}/x", "--out_dir={tmp}/none"], "no checkpoint"),
        (export_hf, ["--out_dir={run}"], "--to=DIR is missing"),
        (export_hf, ["{run}"], "did you mean --out_dir="),
        (export_hf, ["--out_dir={run}", "--to={exported}/config.json"], "is not a folder"),
        (export_hf, ["--out_dir={run}", "--to=/dev/null/x"], "cannot be written to"),
        (import_hf, ["--model={exported}", "--out_dir={exported}/config.json"], "is not a folder"),
        (import_hf, ["--model={exported}/config.json", "--out_dir={tmp}/x"], "pass the folder"),
        (export_hf, ["--out_dir={run}", "--to={run}"], "choose a new folder"),
        (export_hf, ["--out_dir={run}", "--to={tmp}/x", "--step=3"], "no checkpoint of step 3"),
        (export_hf, ["--out_dir={run}", "--to={tmp}/x", "--tokenizer={tmp}"], "tokenizer.json is missing"),
        (export_hf, ["--out_dir={run}", "--to={tmp}/x", "--max_shard_gb=0"], "max_shard_gb=0"),
        (export_hf, ["--out_dir={run}", "--to={tmp}/x", "--tokenizer=qwen3"], "belongs to another model"),
        (export_hf, ["--out_dir={run}", "--to={tmp}/x", "--dtype=int8"], "dtype='int8'"),
        (import_hf, ["--model={tmp}/none", "--out_dir={tmp}/x"], "is not a folder"),
        (import_hf, ["--model={tmp}", "--out_dir={tmp}/x"], "config.json is missing"),
        (import_hf, ["--model={exported}"], "--out_dir=OUT is missing"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(
    script, flags, word, quickstart, tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    run, exported = quickstart
    with pytest.raises(SystemExit) as stopped:
        script.main([flag.format(tmp=tmp_path, run=run, exported=exported) for flag in flags])
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and error.count("\n") == 1 and word in error
    assert list(tmp_path.iterdir()) == []
