"""The loop: exact steps, the log, bit-exact resume, signals, and bad input that touches nothing."""

import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY_FLAGS, read_events, record_tokenizer, write_dataset
from safetensors.torch import load_file

import train
from inference.models import find_model
from reporting.run_log import RunLog
from tokens.dataset import tokenizer_files
from training import checkpoint, keeping, saving
from training import run as training_run
from training.config import TrainConfig
from training.optim import learning_rate_at
from training.run import prepare_embedded
from training.world import StopSignals, World

ROOT = Path(__file__).resolve().parents[1]


def weights(out_dir: Path, step: int) -> dict[str, torch.Tensor]:
    path = checkpoint.checkpoint_path(out_dir, step)
    return load_file(path / "model.safetensors") | load_file(path / "optimizer.safetensors")


def losses(out_dir: Path) -> dict[tuple[str, int], tuple[float, float]]:
    found = {("train", e["step"]): (e["loss"], e["grad_norm"]) for e in read_events(out_dir, "train")}
    return found | {
        ("eval", e["step"]): (e["train_loss"], e["val_loss"]) for e in read_events(out_dir, "eval")
    }


def test_exactly_max_iters_and_the_log_of_the_contract(run, tmp_path):
    assert run("a") == 0
    events = read_events(tmp_path / "a")
    assert events[0]["event"] == "run_start" and events[-1]["event"] == "run_end"
    assert [e["step"] for e in events if e["event"] == "train"] == [1, 2, 3, 4, 5, 6]
    assert [e["step"] for e in events if e["event"] == "eval"] == [0, 3, 6]
    assert [e["step"] for e in events if e["event"] == "checkpoint"] == [3, 6]
    start, end = events[0], events[-1]
    assert {"config", "model", "hardware", "versions", "git"} <= start.keys()
    assert {"architecture_name", "params", "params_non_embedding", "flops_per_token"} <= start["model"].keys()
    for e in events:
        if e["event"] == "train":
            assert {
                "loss",
                "lr",
                "grad_norm",
                "tokens",
                "dt_ms",
                "tokens_per_s",
                "mfu",
                "memory_gb",
            } <= e.keys()
            assert e["tokens"] == e["step"] * 2 * 2 * 16 and e["mfu"] is None
        if e["event"] == "eval":  # 50 ids of 150 bytes a document
            assert e["val_bits_per_byte"] == pytest.approx(e["val_loss"] / np.log(2) / 3)
    assert end["reason"] == "done" and end["step"] == 6


def test_the_model_learns(run, tmp_path):
    run("a", "--max_iters=60", "--eval_interval=30")
    first, *_, last = read_events(tmp_path / "a", "eval")
    assert last["val_loss"] < first["val_loss"] - 1.0


@pytest.mark.parametrize("flags", [
    ["--dropout=0.1"],
    ["--dropout=0.1", "--optimizer=muon", "--dtype=bfloat16"],
    ["--arch_preset=qwen3", "--head_dim=8", "--num_key_value_heads=2", "--dropout=0.2"],
    ["--dtype=float16"],
])  # fmt: skip
def test_resume_is_bit_exact_across_an_epochs_end(run, tmp_path, flags):
    # 2000 tokens are 124 windows; 4 a step: the epoch ends within step 31
    flags = [*flags, "--lr_decay_iters=36", "--eval_interval=9"]
    run("whole", *flags, "--max_iters=36")
    run("parts", *flags, "--max_iters=27")
    run("parts", *flags, "--max_iters=36")
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts")
    whole, parts = weights(tmp_path / "whole", 36), weights(tmp_path / "parts", 36)
    assert whole.keys() == parts.keys() and len(whole) > 30
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_accumulation_equals_one_big_batch(run, tmp_path):
    run("many", "--batch_size=2", "--gradient_accumulation_steps=4")
    run("one", "--batch_size=8", "--gradient_accumulation_steps=1")
    for many, one in zip(
        read_events(tmp_path / "many", "train"), read_events(tmp_path / "one", "train"), strict=True
    ):
        assert many["loss"] == pytest.approx(one["loss"], rel=1e-6)
        assert many["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-5)


def test_a_killed_run_goes_on_to_the_same_weights(run, tmp_path, dataset):
    """kill -9 between two checkpoints, and each signal that asks for one."""
    flags = [
        *TINY_FLAGS,
        f"--dataset={dataset}",
        "--max_iters=200",
        "--eval_interval=100",
        "--checkpoint_interval=20",
    ]
    run("whole", *flags)
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        out = tmp_path / number.name
        command = [sys.executable, "train.py", *flags, f"--out_dir={out}"]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
        while not (out.exists() and len(read_complete(out)) > 30):
            assert process.poll() is None, "the run ended before it could be killed"
            time.sleep(0.01)
        process.send_signal(number)
        assert process.wait(60) == (-9 if number == signal.SIGKILL else 75)
        if number != signal.SIGKILL:
            assert read_events(out)[-1]["reason"] == f"signal {number.name}"
        assert run(number.name, *flags) == 0
        whole, resumed = weights(tmp_path / "whole", 200), weights(out, 200)
        assert all(torch.equal(whole[name], resumed[name]) for name in whole), number.name


def read_complete(out_dir: Path) -> list[str]:
    return [line for f in out_dir.glob("run_*.jsonl") for line in f.read_text().splitlines()]


def test_eval_only_evaluates_and_leaves_nothing_else(run, tmp_path):
    run("a")
    assert run("a", "--eval_only") == 0
    first, second = (e for e in read_events(tmp_path / "a", "eval") if e["step"] == 6)
    assert first["val_loss"] == second["val_loss"]
    assert run("b", "--eval_only") == 0
    assert not (tmp_path / "b" / "checkpoints").exists()


def test_finished_scratch_and_kept_checkpoints(run, tmp_path, capsys):
    run("a", "--keep_last=1", "--checkpoint_interval=1")
    best = min(
        (e for e in read_events(tmp_path / "a", "eval") if e["step"] > 0), key=lambda e: e["val_loss"]
    )["step"]
    assert {s for s, _ in checkpoint.list_checkpoints(tmp_path / "a")} == {best, 6}
    assert run("a") == 0 and "nothing to train" in capsys.readouterr().out
    assert run("a", "--init_from=scratch", "--always_save_checkpoint", "--checkpoint_interval=2") == 0
    assert {s for s, _ in checkpoint.list_checkpoints(tmp_path / "a")} == {2, 4, 6}
    assert (tmp_path / "a" / "checkpoints_before_1" / "step_00000006").is_dir()


def test_init_from_hf(run, tmp_path, capsys):
    from transformers import Qwen3Config, Qwen3ForCausalLM

    shape = dict(vocab_size=97, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
                 num_key_value_heads=2, head_dim=8, max_position_embeddings=64, tie_word_embeddings=True,
                 rope_parameters={"rope_type": "default", "rope_theta": 1e6})  # fmt: skip
    twin = Qwen3ForCausalLM(Qwen3Config(**shape))
    twin.save_pretrained(tmp_path / "hf")
    ours = [
        "--arch_preset=qwen3",
        "--num_key_value_heads=2",
        "--head_dim=8",
        f"--init_from=hf:{tmp_path / 'hf'}",
    ]
    assert run("a", *ours, "--max_iters=1", "--learning_rate=0", "--min_lr=0", "--weight_decay=0") == 0
    trained = weights(tmp_path / "a", 1)["token_embedding.weight"]
    assert torch.equal(trained, twin.model.embed_tokens.weight)
    assert exit_code(run, "b", *ours, "--rope_theta=1e4") == 2
    assert "rope_theta" in capsys.readouterr().err


def exit_code(run, *args) -> int:
    with pytest.raises(SystemExit) as stopped:
        run(*args)
    return stopped.value.code


@pytest.mark.parametrize("flags, said", [
    (["--n_layers=3"], "did you mean 'n_layer'"),
    (["--n_layer=two"], "n_layer"),
    (["--n_embd=30"], "n_embd=30 is not divisible by n_head=4"),
    (["--batch_size=0"], "batch_size=0"),
    (["--vocab_size=50"], "vocab_size=50"),
    (["--block_size=5000"], "block_size=5000"),
    (["--dataset=no_such_data"], "no_such_data"),
    (["--device=cuda:99"], "cuda:99"),
    (["--device=tpu"], "tpu"),
    (["--init_from=resume"], "init_from='resume'"),
    (["--init_from=hf:/no/such/model"], "/no/such/model"),
    (["--use_zero1", "--use_fsdp"], "exclude each other"),
    (["--data_dtype=uint16"], "uint16"),
])  # fmt: skip
def test_bad_input_is_one_line_and_touches_nothing(run, tmp_path, capsys, flags, said):
    assert exit_code(run, "a", *flags) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1
    assert not (tmp_path / "a").exists()


def test_bad_data_is_one_line_and_touches_nothing(run, tmp_path, dataset, capsys):
    def refused(said: str) -> None:
        assert exit_code(run, "a") == 2
        err = capsys.readouterr().err
        assert said in err and err.count("\n") == 1
        assert not (tmp_path / "a").exists()

    shard, meta = dataset / "train_00001.bin", dataset / "meta.json"
    good, good_meta = shard.read_bytes(), meta.read_text()
    shard.write_bytes(good[:-4])
    refused("train_00001.bin")
    shard.unlink()
    refused("train_00001.bin")
    shard.write_bytes(np.uint32(97).tobytes() + good[4:])
    refused("id 97")
    shard.write_bytes(good)
    meta.write_text(good_meta.replace('"uint32"', '"uint16"'))
    refused("uint16")
    meta.write_text(good_meta)
    (tmp_path / "file").write_text("")
    assert exit_code(run, "file/a") == 2
    assert "cannot be written" in capsys.readouterr().err


def test_resume_refuses_another_model_or_another_order(run, tmp_path, dataset, capsys):
    run("a")
    for flags, said in (
        (["--n_embd=64"], "n_embd"),
        (["--seed=8"], "seed"),
        (["--batch_size=3"], "batch_size"),
        (["--optimizer=muon"], "optimizer"),
        ([f"--dataset={write_dataset(tmp_path / 'other', seed=1)}"], "fingerprint"),
    ):
        assert exit_code(run, "a", *flags) == 2
        err = capsys.readouterr().err
        assert said in err and "there" in err and err.count("\n") == 1
    for _, path in checkpoint.list_checkpoints(tmp_path / "a"):
        (path / "model.safetensors").write_bytes(b"damaged")
    assert exit_code(run, "a") == 2
    assert "no intact checkpoint" in capsys.readouterr().err


def test_a_world_without_torchrun_is_refused(run, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert exit_code(run, "a") == 2
    assert re.search(r"WORLD_SIZE=2.*start with torchrun", capsys.readouterr().err)


def test_an_asynchronous_checkpoint_is_written_while_steps_go_on(run, tmp_path, monkeypatch):
    run("sync")
    plain = saving.write_durably

    def slowly(file: Path, parts: object) -> dict:
        time.sleep(0.1 if "partial_step_00000003" in str(file) else 0)
        return plain(file, parts)

    monkeypatch.setattr(saving, "write_durably", slowly)
    assert run("async", "--async_checkpoint") == 0
    events = [
        (e["event"], e["step"])
        for e in read_events(tmp_path / "async")
        if e["event"] in ("train", "checkpoint")
    ]
    assert events.index(("checkpoint", 3)) > events.index(("train", 4))
    first, _ = read_events(tmp_path / "async", "checkpoint")
    assert first["saved_ms"] > 300 > first["blocked_ms"]
    for step in (3, 6):  # what is written is the state of its step, though the weights have moved on
        ours, theirs = weights(tmp_path / "async", step), weights(tmp_path / "sync", step)
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_signals_while_saving_and_before_the_first_step(run, tmp_path, monkeypatch):
    flags = ["--max_iters=8", "--eval_interval=4", "--dropout=0.1"]
    run("whole", *flags)
    plain = saving.write_durably

    def interrupted(file: Path, parts: object) -> dict:
        if "step_00000004" in str(file) and file.name == "optimizer.safetensors":
            signal.raise_signal(signal.SIGUSR1)
        return plain(file, parts)

    def early(*args: object) -> None:
        signal.raise_signal(signal.SIGTERM)
        return None

    with monkeypatch.context() as patch:
        patch.setattr("training.run.check_space", early)  # the last thing before the loop
        assert run("parts", *flags) == 75
    with monkeypatch.context() as patch:
        patch.setattr(saving, "write_durably", interrupted)
        assert run("parts", *flags) == 75
    assert run("parts", *flags) == 0
    assert [e["start_step"] for e in read_events(tmp_path / "parts", "run_start")] == [0, 0, 5]
    whole, parts = weights(tmp_path / "whole", 8), weights(tmp_path / "parts", 8)
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_no_room_for_a_checkpoint_is_said_before_the_run(run, tmp_path, monkeypatch, capsys):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(keeping.shutil, "disk_usage", lambda path: usage._replace(free=100_000))
    assert exit_code(run, "a") == 2 and not (tmp_path / "a").exists()
    assert "one checkpoint takes" in capsys.readouterr().err
    monkeypatch.setattr(keeping.shutil, "disk_usage", lambda path: usage._replace(free=600_000))
    assert run("a") == 0 and "more checkpoints take" in capsys.readouterr().out


def test_the_log_survives_a_full_disk(run, tmp_path, monkeypatch, caplog):

    class Full:
        def __init__(self, file: object) -> None:
            self.file, self.calls = file, 0

        def write(self, data: bytes) -> int:
            self.calls += 1
            if 3 <= self.calls < 6:
                raise OSError(28, "No space left on device")
            return self.file.write(data[:100])

    plain = RunLog.__init__

    def init(self, *args: object) -> None:
        plain(self, *args)
        self._file = Full(self._file)

    monkeypatch.setattr(RunLog, "__init__", init)
    assert run("a") == 0
    assert [e["step"] for e in read_events(tmp_path / "a", "train")] == [1, 2, 3, 4, 5, 6]
    assert "No space left on device" in caplog.text


def test_a_wandb_run_goes_on_under_its_id(run, monkeypatch):
    seen = []

    class Wandb:
        def init(self, **settings: object) -> "Wandb":
            seen.append((settings["id"], settings["resume"]))
            return self

        def log(self, *args: object, **kwargs: object) -> None: ...

        def finish(self) -> None: ...

    monkeypatch.setitem(sys.modules, "wandb", Wandb())
    for steps in (3, 6):
        run("a", "--wandb_log", f"--max_iters={steps}", "--lr_decay_iters=6")
    run("b", "--wandb_log")
    assert seen[0] == seen[1] != seen[2] and seen[0][1] == "allow"


def test_print_config_needs_neither_data_nor_device(capsys):
    assert (
        train.main(["config/full_qwen3_1.5b.py", "--device=cuda:99", "--dataset=nowhere", "--print_config"])
        == 0
    )
    printed = json.loads(capsys.readouterr().out)
    assert set(printed) == {"model", "train", "derived"}
    assert printed["derived"]["params"] == 1_720_574_976 and printed["derived"]["tokens_per_step"] == 393_216
    assert set(printed["derived"]) == {"params", "params_non_embedding", "flops_per_token", "tokens_per_step"}


@pytest.mark.parametrize("flag", ["--print_config=True", "--print_config true", "--print_config"])
def test_print_config_is_a_flag_like_any_other(flag, monkeypatch, capsys):
    assert train.main([*flag.split(), "config/quickstart.py"]) == 0
    assert json.loads(capsys.readouterr().out)["model"]["n_layer"] == 3
    monkeypatch.setenv("RANK", "1")  # of torchrun, whose ranks share a terminal
    assert train.main([*flag.split(), "config/quickstart.py"]) == 0 and capsys.readouterr().out == ""
    with pytest.raises(SystemExit) as end:
        train.main(["config/quickstart.py", "--print_config=maybe"])
    assert end.value.code == 2 and "neither True nor False" in capsys.readouterr().err


def test_the_command_line_itself(tmp_path, dataset):
    command = [
        sys.executable,
        ROOT / "train.py",
        *TINY_FLAGS,
        f"--dataset={dataset}",
        f"--out_dir={tmp_path / 'a'}",
    ]
    done = subprocess.run([*command, "--n_heads=3"], capture_output=True, text=True, cwd=tmp_path)
    assert (
        done.returncode == 2
        and done.stderr == "train.py: unknown key 'n_heads' in the flags: did you mean 'n_head'?\n"
    )
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, env=os.environ | {"COLUMNS": "80"}
    )
    assert done.returncode == 0 and "step 6/6 | loss" in done.stdout and "tokens/s" in done.stdout


def signal_after(steps: int, number: int = signal.SIGTERM) -> Callable[[int, TrainConfig], float]:
    """A schedule with which the signal arrives within the optimizer step that leads to step `steps`."""

    def schedule(step: int, config: TrainConfig) -> float:
        if step == steps - 1:
            signal.raise_signal(number)
        return learning_rate_at(step, config)

    return schedule


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_stop_at_any_step_changes_nothing(run, tmp_path, monkeypatch, capsys, optimizer):
    flags = [f"--optimizer={optimizer}", "--dropout=0.1", "--max_iters=8", "--eval_interval=4"]
    run("whole", *flags)
    for steps in (1, 2, 5):
        assert run("parts", *flags, schedule=signal_after(steps)) == 75
        assert f"SIGTERM at step {steps}" in capsys.readouterr().out
        assert (
            read_events(tmp_path / "parts")[-1]["step"]
            == checkpoint.list_checkpoints(tmp_path / "parts")[-1][0]
            == steps
        )
    assert run("parts", *flags) == 0
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts")
    whole, parts = weights(tmp_path / "whole", 8), weights(tmp_path / "parts", 8)
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    steps = [e["start_step"] for e in read_events(tmp_path / "parts", "run_start")]
    assert steps == [0, 1, 2, 5]


def test_a_second_signal_ends_at_once(monkeypatch):

    class Ended(Exception):
        pass

    def end(code: int) -> None:
        raise Ended(code)

    handlers = {s: signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}
    monkeypatch.setattr(os, "_exit", end)
    try:
        stop = StopSignals()
        assert stop.received is None
        signal.raise_signal(signal.SIGUSR1)
        assert stop.received == "SIGUSR1"
        with pytest.raises(Ended, match=str(128 + signal.SIGTERM)):
            signal.raise_signal(signal.SIGTERM)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def test_an_error_within_the_loop_is_logged_and_costs_the_steps_since_the_last_save(
    run, tmp_path, monkeypatch
):
    run("whole")

    def fails_at_4(step: int, config: object) -> float:
        if step == 4:
            raise RuntimeError("device lost")
        return learning_rate_at(step, config)

    with pytest.raises(RuntimeError, match="device lost"):
        run("parts", schedule=fails_at_4)
    assert read_events(tmp_path / "parts")[-1]["reason"] == "error: RuntimeError: device lost"
    assert not [t for t in threading.enumerate() if t.name.startswith("data")]
    assert run("parts") == 0
    assert read_events(tmp_path / "parts", "run_start")[-1]["start_step"] == 3
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts")
    whole, parts = weights(tmp_path / "whole", 6), weights(tmp_path / "parts", 6)
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_a_damaged_newest_checkpoint_costs_only_its_steps(run, tmp_path, caplog):
    run("whole")
    run("parts")
    file = checkpoint.checkpoint_path(tmp_path / "parts", 6) / "optimizer.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    assert run("parts") == 0
    assert "passing over the damaged checkpoint" in caplog.text and "optimizer.safetensors" in caplog.text
    assert read_events(tmp_path / "parts", "run_start")[-1]["start_step"] == 3
    whole, parts = weights(tmp_path / "whole", 6), weights(tmp_path / "parts", 6)
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_damaged_checkpoints_take_no_good_ones_place(run, tmp_path, monkeypatch, capsys):
    run("a", "--max_iters=9", "--always_save_checkpoint")
    for step in (6, 9):
        (checkpoint.checkpoint_path(tmp_path / "a", step) / "state.json").write_text("{}")
    assert run("a", "--max_iters=9", "--keep_last=1", schedule=signal_after(5)) == 75
    assert [step for step, _ in checkpoint.list_checkpoints(tmp_path / "a")] == [3, 5]
    damaged = sorted((tmp_path / "a" / "checkpoints").glob("damaged_*"))
    assert [path.name for path in damaged] == ["damaged_step_00000006", "damaged_step_00000009"]
    assert f"note: a damaged checkpoint is now {damaged[0]}" in capsys.readouterr().out
    assert run("a", "--max_iters=9", "--keep_last=1") == 0
    assert [e["start_step"] for e in read_events(tmp_path / "a", "run_start")] == [0, 3, 5]
    assert (damaged[0] / "model.safetensors").is_file()


@pytest.mark.parametrize("cut_off", [3, 6])
def test_an_evaluation_that_a_signal_cuts_off_is_made_up_for(run, tmp_path, monkeypatch, cut_off):
    def schedule(step: int, config: TrainConfig) -> float:  # it makes the evaluation that is cut off the best
        return learning_rate_at(step, config) if step < cut_off else 10.0

    run("whole", "--max_iters=9", "--keep_last=1", schedule=schedule)
    seen, plain = [], training_run.evaluate

    def evaluate(*args: object) -> float | None:
        seen.append(args)
        if len(seen) == 2 * cut_off // 3 + 1:  # of the training split; two a time, at steps 0, 3 and 6
            signal.raise_signal(signal.SIGTERM)
        return plain(*args)

    with monkeypatch.context() as patch:
        patch.setattr(training_run, "evaluate", evaluate)
        assert run("parts", "--max_iters=9", "--keep_last=1", schedule=schedule) == 75
    path = checkpoint.checkpoint_path(tmp_path / "parts", cut_off)
    assert checkpoint.list_checkpoints(tmp_path / "parts")[-1][1] == path
    assert cut_off not in [e["step"] for e in read_events(tmp_path / "parts", "eval")]
    written = (path / "manifest.json").stat()
    assert run("parts", "--max_iters=9", "--keep_last=1", schedule=schedule) == 0
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts")
    best = [
        checkpoint.load_state(checkpoint.checkpoint_path(tmp_path / name, 9))[0].best
        for name in ("whole", "parts")
    ]
    assert (
        best[0] == best[1]
        and best[1]["step"] == cut_off
        and checkpoint.checkpoint_path(tmp_path / "parts", best[1]["step"]).is_dir()
    )
    assert (path / "manifest.json").stat() == written  # what is safe is not written again


def test_the_best_may_be_one_that_was_rated_after_it_was_saved(tmp_path):
    checkpoints = keeping.Checkpoints(tmp_path, World(), TrainConfig(), {"step": 2, "val_loss": 3.0}, 4)
    checkpoints.rate(4, None)
    checkpoints.rate(4, 3.5)
    assert checkpoints.best == {"step": 2, "val_loss": 3.0}
    checkpoints.rate(4, 2.5)
    assert checkpoints.best == {"step": 4, "val_loss": 2.5}


def test_between_bad_steps_no_checkpoint_is_removed(run, tmp_path, monkeypatch, capsys):
    def schedule(step: int, config: TrainConfig) -> float:
        return 1e37 if step == 4 else learning_rate_at(step, config)

    flags = [
        "--max_iters=60",
        "--grad_clip=0",
        "--keep_last=1",
        "--checkpoint_interval=2",
        "--eval_interval=50",
    ]
    assert run("a", *flags, "--max_bad_steps=6", "--log_interval=50", schedule=schedule) == 1
    end = read_events(tmp_path / "a")[-1]
    assert end["reason"].startswith("error: 7 steps in a row were skipped") and end["step"] == 12
    assert "the last good step led to 5" in capsys.readouterr().out
    assert [step for step, _ in checkpoint.list_checkpoints(tmp_path / "a")] == [4, 6, 8, 10]
    largest = [max(t.abs().max().item() for t in weights(tmp_path / "a", step).values()) for step in (4, 6)]
    assert largest[0] < 100 and largest[1] > 1e30


def test_accumulated_gradients_equal_those_of_one_big_batch(run, tmp_path):
    """By Adam's running mean of them: weights whose true gradient is 0 (the bias of the keys) follow its
    rounding errors."""
    run("many", "--batch_size=2", "--gradient_accumulation_steps=4")
    run("one", "--batch_size=8", "--gradient_accumulation_steps=1")
    many, one = (weights(tmp_path / n, 6) for n in ("many", "one"))
    means = [name for name in many if name.endswith("/exp_avg")]
    assert len(means) > 20
    for name in means:
        torch.testing.assert_close(many[name], one[name], rtol=0, atol=1e-6)
    torch.testing.assert_close(
        many["token_embedding.weight"], one["token_embedding.weight"], rtol=0, atol=1e-5
    )


def test_what_may_change_on_resume(run, tmp_path):
    """The schedule, the dropout, the precision of the matmuls, and how a step is cut into micro-batches."""
    flags = ["--learning_rate=1e-3", "--lr_schedule=constant", "--dropout=0.3", "--dtype=bfloat16", "--batch_size=4",
             "--gradient_accumulation_steps=1", "--weight_decay=0", "--grad_clip=0", "--max_iters=9"]  # fmt: skip
    run("a")
    assert run("a", *flags) == 0
    later = [e for e in read_events(tmp_path / "a", "train") if e["step"] > 6]
    assert [e["lr"] for e in later] == [1e-3] * 3 and [e["step"] for e in later] == [7, 8, 9]


def test_evaluation_windows_are_those_of_every_run(run, tmp_path, monkeypatch):
    """The same windows at each evaluation, whatever the seed."""
    seen = []

    def evaluate(model: object, batches: object, *rest: object) -> float:
        seen.append([x.tolist() for x, _ in batches])
        return 1.0

    monkeypatch.setattr(training_run, "evaluate", evaluate)
    run("a")
    run("b", "--seed=8")
    train_windows, val_windows = seen[0], seen[1]
    assert len(seen) == 12 and seen == [train_windows, val_windows] * 6
    assert len(val_windows) == 2 and train_windows != val_windows


def test_every_line_of_a_diverged_run_is_json(run, tmp_path):
    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    assert run("a", "--learning_rate=1e30", "--grad_clip=0", "--warmup_iters=0") == 0
    for file in (tmp_path / "a").glob("run_*.jsonl"):
        events = [json.loads(line, parse_constant=refuse) for line in file.read_text().splitlines()]
    assert events[-1]["reason"] == "done" and any(e.get("loss", 0) is None for e in events)


def test_the_tokenizer_is_copied_and_the_tokens_are_not(run, tmp_path, dataset):
    for name in ("tokenizer.json", "merges.txt", "notes.txt"):
        (dataset / name).write_text(name)
    record_tokenizer(dataset)
    run("a")
    copied = {f.name for f in (tmp_path / "a").iterdir() if not f.name.startswith("run_")}
    assert copied == {"tokenizer.json", "merges.txt", "checkpoints"}
    data = read_events(tmp_path / "a")[0]["data"]
    assert data["tokenizer"]["name"] == "synthetic" and data["eot_id"] == 0 and data["bytes_per_token"] == 3.0


def test_a_tokenizer_of_an_earlier_run_is_not_taken_for_this_ones(run, tmp_path, dataset):
    (dataset / "tokenizer.json").write_text("theirs")
    record_tokenizer(dataset)
    run("a")
    (tmp_path / "a" / "chat_template.jinja").write_text("theirs")
    (dataset / "tokenizer.json").write_text("new")
    record_tokenizer(dataset)
    run("a", "--init_from=scratch")
    assert [f.name for f in tokenizer_files(tmp_path / "a")] == ["tokenizer.json"]
    assert (tmp_path / "a" / "tokenizer.json").read_text() == "new"
    before = tmp_path / "a" / "checkpoints_before_1"
    assert (before / "tokenizer.json").read_text() == (before / "chat_template.jinja").read_text() == "theirs"
    (dataset / "tokenizer.json").unlink()
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "tokenizer.json").write_text("the user's")  # where no run was, it is nobody else's
    run("b")
    assert (tmp_path / "b" / "tokenizer.json").read_text() == "the user's"
    (tmp_path / "a" / "tokenizer.json").write_text("another")
    with pytest.raises(ValueError, match=r"tokenizer\.json is not 'synthetic'"):
        find_model(str(tmp_path / "a"))
    (tmp_path / "a" / "tokenizer.json").write_text("new")
    assert find_model(str(tmp_path / "a")).tokenizer == str(tmp_path / "a")


def test_notes_are_said(run, capsys):
    run("a", "--rope_theta=5e5", "--muon_learning_rate=1", "--use_zero1")
    out = capsys.readouterr().out
    for said in (
        "rope_theta=500000.0 has no effect",
        "muon_learning_rate=1.0 has no effect",
        "use_zero1=True",
    ):
        assert out.count(said) == 1


def test_a_dataset_that_is_not_prepared_names_the_command(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train, "ROOT", tmp_path)
    (tmp_path / "data" / "slimpajama").mkdir(parents=True)
    (tmp_path / "data" / "slimpajama" / "prepare.py").write_text("")
    for name, said in (
        ("slimpajama", "run python data/slimpajama/prepare.py"),
        ("slimpyjama", "data/: slimpajama"),
    ):
        assert exit_code(run, "a", f"--dataset={name}") == 2
        err = capsys.readouterr().err
        assert said in err and err.count("\n") == 1 and not (tmp_path / "a").exists()


def test_the_embedded_corpus_is_prepared_on_first_use(run, tmp_path, monkeypatch, capsys):
    import train
    from tokenization import embedded

    prepared = []

    def prepare(folder: Path) -> None:
        prepared.append(folder)
        write_dataset(folder)

    monkeypatch.setattr(train, "ROOT", tmp_path)
    monkeypatch.setattr(embedded, "prepare", prepare)
    for _ in range(2):
        assert run("a", "--dataset=python_stdlib") == 0
    assert prepared == [tmp_path / "data" / "python_stdlib"]


def test_no_steps_at_all(run, tmp_path, capsys):
    assert run("a", "--max_iters=0") == 0
    assert [s for s, _ in checkpoint.list_checkpoints(tmp_path / "a")] == [0]
    assert run("a", "--max_iters=2") == 0
    run("b", "--max_iters=2")
    whole, parts = weights(tmp_path / "b", 2), weights(tmp_path / "a", 2)
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_the_best_checkpoint_stays_when_the_loss_rises_again(run, tmp_path):
    """After step 4 the rate is absurd: step 4 stays the best."""
    run("a", "--max_iters=4", "--eval_interval=2", "--keep_last=1")
    run(
        "a",
        "--max_iters=10",
        "--eval_interval=2",
        "--keep_last=1",
        "--learning_rate=10",
        "--lr_schedule=constant",
    )
    evaluations = {e["step"]: e["val_loss"] for e in read_events(tmp_path / "a", "eval") if e["step"]}
    assert min(evaluations, key=evaluations.get) == 4
    assert [s for s, _ in checkpoint.list_checkpoints(tmp_path / "a")] == [4, 10]


def test_eval_only_of_a_run_that_is_not_there(run, tmp_path, capsys):
    assert exit_code(run, "a", "--eval_only", "--init_from=resume") == 2
    assert not (tmp_path / "a").exists()
    run("b", "--max_iters=3")
    before = sorted(p.relative_to(tmp_path) for p in (tmp_path / "b").rglob("*"))
    assert run("b", "--eval_only", "--init_from=scratch") == 0
    after = sorted(p.relative_to(tmp_path) for p in (tmp_path / "b").rglob("*"))
    assert len(after) == len(before) + 1 and set(before) < set(after)  # one more run log


def test_a_mixture_trains_resumes_and_says_what_it_is(run, tmp_path, dataset, capsys):
    other = write_dataset(tmp_path / "other", train_tokens=900, seed=1)
    mixed = f"--dataset={dataset}:3,{other}:1"
    flags = [mixed, "--lr_decay_iters=6", "--eval_iters=4"]
    run("whole", *flags)
    out = capsys.readouterr().out
    assert "the weights of dataset sum to 4; normalised: " in out and "holds no tokenizer: sample.py" in out
    assert f"{dataset}: 2,000 tokens, weight 0.75, " in out and f"{other}: 900 tokens, weight 0.25, " in out
    run("parts", *flags, "--max_iters=3")
    run("parts", *flags)
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts")
    data = read_events(tmp_path / "whole", "run_start")[0]["data"]
    assert [(s["dataset"], s["weight"], s["tokens"]) for s in data["sources"]] == [
        (str(dataset), 0.75, 2000), (str(other), 0.25, 900)]  # fmt: skip
    assert [s["epochs"] for s in data["sources"]] == pytest.approx([24 * 0.75 / 124, 24 * 0.25 / 56])
    assert data["bytes_per_token"] == 3.0 and data["eot_id"] == 0 and data["tokenizer"]["name"] == "synthetic"
    run("long", *flags, "--eval_iters=100")
    assert "evaluations take 49 windows, not 200: " in capsys.readouterr().out  # 37 are three quarters of 49
    run("alone")
    assert losses(tmp_path / "alone") != losses(tmp_path / "whole")
    capsys.readouterr()
    for changed in (f"{dataset}:1,{other}:1", f"{other}:3,{dataset}:1", str(dataset)):
        with pytest.raises(SystemExit) as stopped:
            run("whole", f"--dataset={changed}", "--max_iters=9")
        assert stopped.value.code == 2 and "fingerprint" in capsys.readouterr().err


def test_document_masking_changes_the_loss_and_resumes(run, tmp_path):
    run("plain", "--arch_preset=qwen3", "--head_dim=8", "--num_key_value_heads=2")
    masked = [
        "--arch_preset=qwen3",
        "--head_dim=8",
        "--num_key_value_heads=2",
        "--document_masking",
        "--lr_decay_iters=6",
    ]
    run("masked", *masked)
    run("parts", *masked, "--max_iters=3")
    run("parts", *masked)
    plain, whole, parts = (losses(tmp_path / name) for name in ("plain", "masked", "parts"))
    assert whole == parts and plain.keys() == whole.keys()
    assert all(plain[key] != whole[key] for key in plain)
    assert (
        read_events(tmp_path / "masked", "train")[-1]["tokens"]
        == read_events(tmp_path / "plain", "train")[-1]["tokens"]
    )


def test_a_prompt_that_is_no_text_is_one_line(run, capsys):
    assert exit_code(run, "a", "--sample_prompt=\udcff") == 2
    assert "sample_prompt is not UTF-8 at character 0" in capsys.readouterr().err


def test_data_that_cannot_be_read_so_is_one_line(run, tmp_path, dataset, capsys):
    class Hostile:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    def foreign(name: str) -> Path:
        meta_file = write_dataset(tmp_path / name, seed=2) / "meta.json"
        meta = json.loads(meta_file.read_text())
        meta["tokenizer"]["sha256"] = "1" * 64
        meta_file.write_text(json.dumps(meta))
        return meta_file.parent

    nanogpt = tmp_path / "nanogpt"
    nanogpt.mkdir()
    for split in ("train", "val"):
        np.random.default_rng(0).integers(1, 97, 500).astype(np.uint16).tofile(nanogpt / f"{split}.bin")
    hostile = Path(shutil.copytree(nanogpt, tmp_path / "hostile"))
    (hostile / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": Hostile()}))
    for flags, said in (
        ([f"--dataset={dataset}:0.5,{tmp_path / 'nowhere'}:0.5"], "neither a folder nor one of data/"),
        ([f"--dataset={dataset}:0.5,{dataset}"], "is not name:weight"),
        ([f"--dataset={dataset}:0.5,{foreign('foreign')}:0.5"], "different tokenizers"),
        (
            [f"--dataset={nanogpt}", "--data_dtype=uint16", "--document_masking"],
            "has no meta.json and so no eot_id",
        ),
        (
            [f"--dataset={write_dataset(tmp_path / 'short', val_tokens=50)}", "--block_size=50"],
            "needs 51 tokens",
        ),
        ([f"--dataset={hostile}", "--data_dtype=uint16"], "meta.pkl holds more than plain values"),
    ):
        with pytest.raises(SystemExit) as stopped:
            run("never", *flags)
        error = capsys.readouterr().err
        assert stopped.value.code == 2 and said in error and error.count("\n") == 1
    assert not (tmp_path / "executed").exists() and not (tmp_path / "never").exists()


def test_only_its_own_name_prepares_the_embedded_corpus(tmp_path, monkeypatch):
    prepared = []
    monkeypatch.setattr(train, "ROOT", tmp_path)
    monkeypatch.setattr("tokenization.embedded.prepare", prepared.append)
    for dataset in ("elsewhere/python_stdlib_copy", "my_python_stdlib:0.5,other:0.5"):
        prepare_embedded(dataset, World(), tmp_path / "data")
    assert not prepared
    with pytest.raises(ValueError, match="weight above 0"):
        prepare_embedded("python_stdlib:none,other:1", World(), tmp_path / "data")
    assert not prepared
    for dataset in ("python_stdlib", "python_stdlib:0.5,other:0.5"):
        prepare_embedded(dataset, World(), tmp_path / "data")
    assert prepared == [tmp_path / "data" / "python_stdlib"] * 2
