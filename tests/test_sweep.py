"""compare_architectures.py --run: what is planned, what is trained, what is left alone, and how it
resumes."""

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from conftest import TINY_FLAGS, read_events
from run_logs import write_log

import compare_architectures as compare
import train
from analysis import sweep, sweep_plan
from base import cli
from base.errors import InputError
from model_builder import ConfigurableGPT
from training.config import load_config

ROOT = Path(__file__).resolve().parents[1]
TINY = sorted(str(p) for p in (ROOT / "config").glob("compare_tiny_*.py"))


@pytest.fixture
def tiny(dataset, tmp_path, monkeypatch) -> Path:
    """A config file of a run of 6 steps of 64 tokens."""
    monkeypatch.chdir(tmp_path)
    values = dict(flag[2:].split("=") for flag in TINY_FLAGS) | {"dataset": str(dataset)}
    words = ("device", "dtype", "dataset")
    lines = [
        f"{key} = {value!r}" if key in words else f"{key} = {value}"
        for key, value in values.items()
        if key != "seed"
    ]
    (tmp_path / "tiny.py").write_text("\n".join(lines))
    return tmp_path


@pytest.fixture
def in_this_process(run):
    """Training without a new process, which takes most of the time; `run` restores the signal handlers."""
    return lambda command: (train.main(command[2:]), False)


def test_the_tiny_four_match():
    """Parameters within 2 %, and nothing but architecture differs."""
    configs = [load_config([path]) for path in TINY]
    assert [train.arch_preset for _, train in configs] == ["gpt2", "llama2", "llama3", "qwen3"]
    counts = [ConfigurableGPT(model).get_num_params() for model, _ in configs]
    assert max(counts) <= 1.02 * min(counts)
    for path, count in zip(TINY, counts, strict=True):
        assert f"\n{count:,} parameters; 2,048 tokens a step" in Path(path).read_text()
    trains = [{**vars(train), "arch_preset": "", "out_dir": ""} for _, train in configs]
    assert all(train == trains[0] for train in trains)
    for name in ("n_layer", "n_embd", "block_size", "vocab_size", "weight_tying"):
        assert len({getattr(model, name) for model, _ in configs}) == 1


def test_a_mixture_is_one_value():
    (run,) = sweep_plan.plan(TINY[:1], ["dataset=a:0.5,b:0.5"], 1, None, Path("out-x"))
    assert run.config["train"]["dataset"] == "a:0.5,b:0.5" and run.out_dir.name == "compare_tiny_gpt2-seed0"
    assert [
        r.config["train"]["dataset"]
        for r in sweep_plan.plan(TINY[:1], ["dataset=a,b"], 1, None, Path("out-x"))
    ] == ["a", "b"]


def test_plan():
    runs = sweep_plan.plan(TINY[2:], ["rope_theta=1e4,5e5", "batch_size=4"], 2, 10_000, Path("out-x"))
    names = [
        f"compare_tiny_{a}-rope_theta={t}-seed{s}"
        for s in (0, 1)
        for a in ("llama3", "qwen3")
        for t in ("1e4", "5e5")
    ]
    assert [run.out_dir.name for run in runs] == names
    assert all(
        run.tokens == 10_240 for run in runs
    )  # 10 steps of 4 * 256: the first whole step that reaches the tokens
    first = runs[1].config
    assert (first["model"]["rope_theta"], first["train"]["batch_size"], first["train"]["seed"]) == (5e5, 4, 0)
    assert first["train"]["max_iters"] == 10 and first["train"]["out_dir"] == str(runs[1].out_dir)
    assert any("warmup_iters=50 reaches beyond the 10 steps" in note for note in runs[0].notes)


def log_of(run, **differing):
    """The log of a planned run, done, but for these fields of its TrainConfig."""
    write_log(run.out_dir, model=run.config["model"], train={**run.config["train"], **differing})


@pytest.mark.parametrize("differing", [
    {}, {"compile": True}, {"keep_last": 9}, {"sample_prompt": "def"}, {"init_from": "resume"}, {"seed": 5},
])  # fmt: skip
def test_what_learns_the_same_is_the_run(differing, tmp_path):
    (run,) = sweep_plan.plan(TINY[:1], [], 1, None, tmp_path)
    log_of(run, **differing)
    assert sweep.is_done(run)


@pytest.mark.parametrize("differing, said", [
    ({"beta2": 0.5}, "beta2=0.5, wanted 0.95"), ({"of_tomorrow": 1}, "of_tomorrow=1, wanted nothing"),
    ({"init_from": "hf:gpt2"}, "init_from='hf:gpt2', wanted nothing"),
])  # fmt: skip
def test_what_learns_something_else_is_another_run(differing, said, tmp_path):
    (run,) = sweep_plan.plan(TINY[:1], [], 1, None, tmp_path)
    log_of(run, **differing)
    with pytest.raises(InputError, match=f"holds a run with {said}: name another --sweep_dir"):
        sweep.is_done(run)


def test_a_sweep_trains_compares_and_does_not_repeat(tiny, in_this_process, capfd):
    sweeping = partial(compare.work, launch=in_this_process)
    argv = [
        "--run",
        "tiny.py",
        "--seeds",
        "2",
        "--tokens=250",
        "--set",
        "learning_rate=3e-3,1e-3",
        "--out=cmp",
    ]
    assert cli.run(argv, "", compare.CompareConfig, sweeping) == 0
    report = json.loads(Path("cmp/comparison.json").read_text())
    assert {row["tokens"] for row in report["runs"]} == {256} and {
        row["status"] for row in report["runs"]
    } == {"done"}
    assert {(row["label"], row["seed"]) for row in report["runs"]} == {
        (f"out-sweep/tiny-learning_rate={lr}-seed{seed}", seed) for lr in ("3e-3", "1e-3") for seed in (0, 1)}  # fmt: skip
    (entry,) = [e for e in report["standings"] if e["axis"] == "tokens"]
    assert [place["seeds"] for place in entry["places"]] == [2, 2] and entry["places"][1]["p"] is not None
    assert list(report["config_diff"]["fields"]) == ["learning_rate"]
    logs = sorted(Path("out-sweep").glob("*/run_*.jsonl"))
    assert len(logs) == 4
    capfd.readouterr()
    assert (
        cli.run([*argv[:3], "3", *argv[4:]], "", compare.CompareConfig, sweeping) == 0
    )  # a third seed: only it is trained
    out = capfd.readouterr().out
    assert out.count("done already") == 4 and out.count("tokens: train.py") == 2
    assert set(logs) < set(Path("out-sweep").glob("*/run_*.jsonl"))
    with pytest.raises(SystemExit) as stopped:  # the same folders, another length
        compare.main([*argv[:4], "--tokens=640", *argv[5:]])
    assert stopped.value.code == 2 and "max_iters=4, wanted 10" in capfd.readouterr().err


def test_a_signal_stops_the_sweep_and_the_same_command_ends_it(tiny, in_this_process, capfd):
    command = [sys.executable, str(ROOT / "compare_architectures.py"), "--run", "tiny.py", "--tokens=1e6"]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    folder = Path("out-sweep/tiny-seed0")
    deadline = time.time() + 60
    while not any(e["event"] == "train" for e in read_events(folder)) and time.time() < deadline:
        time.sleep(0.2)
    child.send_signal(signal.SIGTERM)
    out, _ = child.communicate(timeout=60)
    assert child.returncode == 75 and "the same command resumes out-sweep/tiny-seed0" in out
    (end,) = read_events(folder, "run_end")
    assert end["reason"] == "signal SIGTERM" and not Path("comparison/comparison.json").exists()
    (run,) = sweep_plan.plan(["tiny.py"], [], 1, 1_000_000, Path("out-sweep"))
    assert not sweep.is_done(run)
    run.flags[:] = [f"--max_iters={end['step'] + 2}" if f.startswith("--max_iters") else f for f in run.flags]
    assert sweep.execute([run], launch=in_this_process) == ([folder], 0)
    capfd.readouterr()
    assert [e["start_step"] for e in read_events(folder, "run_start")] == [0, end["step"]]
    assert read_events(folder, "run_end")[-1]["step"] == end["step"] + 2


def test_a_run_that_crashes_does_not_stop_the_others(tiny, capfd):
    """Its weights become infinite at once, so that every step is bad."""
    argv = ["--run", "tiny.py", "--set=init_std=1e30,0.02", "--set=max_bad_steps=2", "--out=cmp"]
    assert compare.main(argv) == 1
    report = json.loads(Path("cmp/comparison.json").read_text())
    assert {row["label"].split("=")[1]: row["status"] for row in report["runs"]} == {
        "1e30-seed0": "crashed",
        "0.02-seed0": "done",
    }


def test_two_processes(tiny):
    """Through torchrun, on the same steps of the same tokens."""
    assert compare.main(["--run", "tiny.py", "--nproc_per_node=2", "--out=cmp"]) == 0
    (row,) = json.loads(Path("cmp/comparison.json").read_text())["runs"]
    assert row["world_size"] == 2 and row["status"] == "done" and row["tokens"] == 6 * 64


@pytest.mark.parametrize("argv, said", [
    (["--run"], "--run needs config files"),
    (["--run", "tiny.py", "--seeds=0"], "seeds=0 must"),
    (["--run", "tiny.py", "--tokens=0"], "tokens=0 must"),
    (["--run", "tiny.py", "--tokens=many"], "many"),
    (["--run", "tiny.py", "--set", "learning_rate"], "wanted key=value"),
    (["--run", "tiny.py", "--set=lerning_rate=1"], "did you mean 'learning_rate'"),
    (["--run", "tiny.py", "--set=seed=1,2"], "seed is not for --set"),
    (["--run", "tiny.py", "--tokens=100", "--set=max_iters=5"], "follows from --tokens"),
    (["--run", "tiny.py", "--set=n_head=3"], "n_head=3"),
    (["--run", "tinny.py"], "tinny.py is not there"),
    (["--run", "tiny.py", "./tiny.py"], "one name"),
    (["--run", "tiny.py", "--latest=2"], "--run and --latest"),
    (["--run", "tiny.py", "--nproc_per_node=0"], "nproc_per_node=0 must"),
    (["--seeds=3", "out"], "--seeds is for --run"),
])  # fmt: skip
def test_bad_input(argv, said, tiny, capsys):
    before = sorted(os.listdir())
    with pytest.raises(SystemExit) as stopped:
        compare.main(argv)
    captured = capsys.readouterr()
    assert stopped.value.code == 2 and captured.out == "" and sorted(os.listdir()) == before
    assert said in captured.err and captured.err.count("\n") == 1


@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells a child of its parent's death")
def test_what_a_sweep_trains_ends_with_it():
    child = "import signal, sys; print('there', flush=True); signal.pause()"
    code = f"import sys; from analysis.sweep import launch; launch([sys.executable, '-c', {child!r}])"
    sweeping = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE)
    with sweeping.stdout:
        assert sweeping.stdout.readline() == b"there\n"
        sweeping.kill()
        sweeping.wait()
        assert sweeping.stdout.read() == b""  # the child has it too: this ends when the child does
