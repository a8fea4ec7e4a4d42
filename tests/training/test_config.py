"""defaults < preset < file < flags, every value typed, every mistake one line; and every knob of
TrainConfig turns."""

import contextlib
import dataclasses
import io
import json
import string
from pathlib import Path

import pytest
from conftest import TINY_FLAGS, read_events
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import train
from base.cli import parse_flags
from model_config import get_preset_config
from training.config import MODEL_FIELDS, TRAIN_FIELDS, TrainConfig, load_config

ROOT = Path(__file__).resolve().parents[2]


def write(tmp_path: Path, text: str) -> str:
    file = tmp_path / "config.py"
    file.write_text(text)
    return str(file)


def test_flags_over_file_over_preset_over_defaults(tmp_path):
    file = write(
        tmp_path, "arch_preset = 'qwen3'\nn_layer = 5\nbatch_size = 3\n_helper = 7\nmax_iters = 1e3\n"
    )
    model, config = load_config([file, "--batch_size=4", "--n_head", "8"])
    assert (model.n_layer, model.n_head, model.rope_theta, model.dropout) == (5, 8, 1e6, 0.0)
    assert (config.batch_size, config.max_iters, config.learning_rate) == (
        4,
        1000,
        TrainConfig().learning_rate,
    )
    model, _ = load_config([file, "--arch_preset=llama3"])
    assert (model.n_layer, model.rope_theta) == (5, 5e5)


def test_d_ff_and_ffn_ratio_over_the_layers(tmp_path):
    file = write(tmp_path, "arch_preset = 'qwen3'\nd_ff = 100\n")
    assert load_config([file])[0].d_ff == 100
    assert load_config([file, "--ffn_ratio=2"])[0].d_ff == 2048


def test_flags_are_typed():
    def parsed(*flags: str) -> dict:
        return dataclasses.asdict(load_config(flags)[1])

    assert parsed("--compile=False")["compile"] is False and parsed("--eval_only")["eval_only"] is True
    assert (
        parsed("--compile", "no", "--seed", "3")["compile"] is False
        and parsed("--max_iters=2e3")["max_iters"] == 2000
    )
    assert (
        parsed("--lr_decay_iters=none")["lr_decay_iters"] is None
        and parsed("--max_iters=1_000")["max_iters"] == 1000
    )
    assert parse_flags(["a", "--x", "-1", "b"], {"x": int}) == (["a", "b"], {"x": -1})


@pytest.mark.parametrize("argv, said", [
    (["--n_layers=3"], "unknown key 'n_layers' in the flags: did you mean 'n_layer'?"),
    (["--max_iters=1.5"], "--max_iters=1.5 is not a whole number"),
    (["--max_iters=inf"], "--max_iters=inf is not a whole number"),
    (["--learning_rate=fast"], "--learning_rate=fast is not a number"),
    (["--compile=maybe"], "--compile=maybe is neither True nor False"),
    (["--seed"], "--seed needs a value"),
    (["--dtype=bf16"], "dtype='bf16' is not known"),
    (["--arch_preset=qwen"], "did you mean 'qwen3'"),
    (["config/quickstart.py", "config/full_llama3_8b.py"], "one config file at most"),
    (["config"], "config is a folder"),
    (["config/quikstart.py"], "did you mean 'config/quickstart.py'"),
    (["--min_lr=1"], "min_lr=1.0 exceeds learning_rate=0.0006"),
    (["--beta1=1"], "beta1=1.0"),
    (["--keep_last=0"], "keep_last=0"),
    (["--seed=-1"], "seed=-1"),
    (["--wsd_decay_fraction=0"], "wsd_decay_fraction=0.0"),
    (["--grad_clip=-1"], "grad_clip=-1.0"),
    (["--init_from=scrach"], "did you mean 'scratch'"),
    (["--out_dir="], "out_dir=''"),
])  # fmt: skip
def test_mistakes_are_named(argv, said, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(ValueError) as error:
        load_config(argv)
    assert said in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("text, said", [
    ("n_layers = 3", "did you mean 'n_layer'"),
    ("import os", "unknown key 'os'"),
    ("x = (", ":1: '(' was never closed"),
    ("1 / 0", "ZeroDivisionError"),
    ("n_layer = '3'", "n_layer='3' is of type str, wanted int"),
    ("compile = 1", "compile=1 is of type int, wanted bool"),
])  # fmt: skip
def test_mistakes_in_the_file_are_named(tmp_path, text, said):
    with pytest.raises(ValueError) as error:
        load_config([write(tmp_path, text)])
    assert said in str(error.value)


@pytest.mark.parametrize("path", sorted((ROOT / "config").glob("*.py")), ids=lambda p: p.stem)
def test_print_config_of_every_file(path, capsys):
    assert train.main([str(path), "--print_config"]) == 0
    out, err = capsys.readouterr()
    printed = json.loads(out)
    assert list(printed) == ["model", "train", "derived"] and not err
    assert set(printed["model"]) == set(MODEL_FIELDS) and set(printed["train"]) == set(TRAIN_FIELDS)
    # what was printed, given as flags, is the same configuration
    flags = [
        f"--{k}={v}"
        for part in ("model", "train")
        for k, v in printed[part].items()
        if not (k == "ffn_ratio" and v is None)
    ]
    train.main([*flags, "--print_config"])
    assert json.loads(capsys.readouterr().out) == printed


def test_no_name_means_two_things():
    assert not set(MODEL_FIELDS) & set(TRAIN_FIELDS)


values = st.one_of(
    st.integers(-3, 64).map(str),
    st.floats().map(str),
    st.sampled_from(
        [
            "true",
            "none",
            "",
            "qwen3",
            "rope",
            "manual",
            "swiglu",
            "1e400",
            "-0",
            "0x10",
            "nan",
            "🙂",
            "a=b",
            "--x",
        ]
    ),
    st.text(alphabet=string.printable, max_size=8),
)
names = st.one_of(
    st.sampled_from(MODEL_FIELDS + TRAIN_FIELDS), st.text(alphabet=string.printable, max_size=8)
)


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.tuples(names, values, st.sampled_from(["=", " ", None])), max_size=6))
def test_no_command_line_ends_in_a_traceback(pairs):
    argv = ["--n_layer=1"]  # building 10^9 layers on the meta device would only take long
    for name, value, joint in pairs:
        if name in ("n_layer", "-h", "help"):
            continue
        argv += (
            [f"--{name}"]
            if joint is None
            else [f"--{name}", value]
            if joint == " "
            else [f"--{name}={value}"]
        )
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = train.main([*argv, "--print_config"])
        except SystemExit as stopped:
            code = stopped.code
    assert code in (0, 2)
    assert err.getvalue().count("\n") == (1 if code else 0)


def test_a_nanogpt_folder_needs_its_dtype(tmp_path, capsys):
    import numpy as np

    for split in ("train", "val"):
        np.random.default_rng(0).integers(1, 97, 500).astype(np.uint16).tofile(tmp_path / f"{split}.bin")
    argv = [*TINY_FLAGS, f"--dataset={tmp_path}", f"--out_dir={tmp_path / 'out'}"]
    with pytest.raises(SystemExit) as stopped:
        train.main(argv)
    assert stopped.value.code == 2 and "--data_dtype=uint16" in capsys.readouterr().err
    assert train.main([*argv, "--data_dtype=uint16"]) == 0
    assert read_events(tmp_path / "out", "eval")[-1]["val_bits_per_byte"] is None


def test_wandb_names(run, monkeypatch, tmp_path):
    import sys
    import types

    seen = []
    fake = types.SimpleNamespace(log=lambda *a, **k: None, finish=lambda: None)
    monkeypatch.setitem(
        sys.modules,
        "wandb",
        types.SimpleNamespace(init=lambda **s: seen.append((s["project"], s["name"])) or fake),
    )
    run("a", "--wandb_log", "--wandb_project=p", "--wandb_run_name=n")
    run("b", "--wandb_log")
    assert seen == [("p", "n"), ("nanofoundry", str(tmp_path / "b"))]


def test_notes_on_what_has_no_effect():
    assert TrainConfig(muon_learning_rate=0.1).notes() == [
        "muon_learning_rate=0.1 has no effect with optimizer='adamw'"
    ]
    assert not TrainConfig().notes()
    said = {
        "wsd_decay_fraction": TrainConfig(wsd_decay_fraction=0.5),
        "lr_decay_iters": TrainConfig(lr_schedule="constant", lr_decay_iters=5),
        "min_lr": TrainConfig(lr_schedule="constant", min_lr=1e-5),
        "keep_last": TrainConfig(keep_last=5, always_save_checkpoint=True),
    }
    for name, config in said.items():
        (note,) = config.notes()
        assert note.startswith(f"{name}={getattr(config, name)} has no effect with ")
    assert (
        not TrainConfig(wsd_decay_fraction=0.5, lr_schedule="wsd").notes()
        and not TrainConfig(keep_last=5).notes()
    )
    model = get_preset_config("qwen3")
    here = TrainConfig(reduce_dtype="bfloat16", use_fsdp=True, eval_tokens=2048)
    assert [note.split("=")[0] for note in here.notes_here(model, "cpu", 1)] == ["use_fsdp", "reduce_dtype"]
    assert not here.notes_here(model, "cpu", 2)


BELOW_ONE = ("batch_size", "gradient_accumulation_steps", "eval_interval", "eval_iters", "log_interval", "checkpoint_interval",
             "keep_last", "lr_decay_iters", "sample_tokens")  # fmt: skip
AT_LEAST_ZERO = ("profile", "max_iters", "warmup_iters", "learning_rate", "min_lr", "muon_learning_rate", "weight_decay",
                 "grad_clip")  # fmt: skip
CONTRADICTIONS = [
    *((name, 0) for name in BELOW_ONE),
    *((name, -1) for name in BELOW_ONE + AT_LEAST_ZERO),
    *((name, value) for name in AT_LEAST_ZERO[3:] for value in (float("nan"), float("inf"))),
    *((name, value) for name in ("beta1", "beta2") for value in (-0.1, 1.0, float("nan"))),
    *(("wsd_decay_fraction", value) for value in (0.0, 1.01, float("nan"))),
    *(("seed", value) for value in (-1, 2**63)),
    *((name, value) for name in ("dataset", "out_dir", "device") for value in ("", "a\0b")),
    ("init_from", "hf"),
]


@pytest.mark.parametrize("name, value", CONTRADICTIONS)
def test_every_field_keeps_its_range(name, value):
    with pytest.raises(ValueError, match=name):
        TrainConfig(**{name: value})


def test_the_ends_of_the_ranges_are_allowed():
    TrainConfig(**dict.fromkeys(BELOW_ONE, 1))
    TrainConfig(
        **dict.fromkeys(AT_LEAST_ZERO, 0), beta1=0.0, beta2=0.0, seed=2**63 - 1, wsd_decay_fraction=1.0
    )
    TrainConfig(lr_schedule="constant", min_lr=1.0, warmup_iters=10, max_iters=5, init_from="hf:x/y")


def test_every_train_field_from_a_file_and_from_a_flag(tmp_path):
    defaults = TrainConfig()
    other = {"optimizer": "muon", "lr_schedule": "wsd", "data_dtype": "uint32", "dtype": "float16", "init_from": "hf:x",
             "arch_preset": "llama2", "beta1": 0.5, "beta2": 0.5, "wsd_decay_fraction": 0.5, "min_lr": 1e-6,
             "muon_learning_rate": 0.5, "lr_decay_iters": 9, "eval_tokens": 9, "checkpoint_interval": 9, "wandb_run_name": "w",
                 "hybrid_shard_size": 8, "reduce_dtype": "bfloat16", "activation_checkpointing": "full",
                 "spike_factor": 3.0, "fp8": "rowwise"}  # fmt: skip
    for name in TRAIN_FIELDS:
        was = getattr(defaults, name)
        if name in other:
            value = other[name]
        else:
            value = not was if type(was) is bool else was + "x" if type(was) is str else was + 1
        assert value != was
        for argv in (
            [write(tmp_path, f"{name} = {value!r}")],
            [f"--{name}={value}"],
            [f"--{name}", str(value)],
        ):
            _, config = load_config(argv)
            assert dataclasses.asdict(config) == dataclasses.asdict(defaults) | {name: value}, argv
            assert type(getattr(config, name)) is type(value)


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(
        st.one_of(st.text(max_size=6), st.tuples(st.sampled_from(TRAIN_FIELDS), st.text(max_size=6))),
        max_size=3,
    )
)
def test_no_unicode_ends_in_a_traceback(words):
    argv = [w if isinstance(w, str) else f"--{w[0]}={w[1]}" for w in words if w not in ("-h", "--help")]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = train.main(["--n_layer=1", *argv, "--print_config"])
        except SystemExit as stopped:
            code = stopped.code
    assert code in (0, 2)
    if code:
        assert not out.getvalue() and len(err.getvalue().splitlines()) == 1
    else:
        assert set(json.loads(out.getvalue())) == {"model", "train", "derived"} and not err.getvalue()
