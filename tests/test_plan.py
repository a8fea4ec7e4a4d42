"""The command: a plan of a run, of a budget, and what it refuses."""

import json

import pytest

import plan
from planning.cost import dataset_tokens
from planning.memory import step_memory
from planning.report import report
from tokens.format import read_meta


def run_plan(capsys, *argv):
    assert plan.main([*argv, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_command(capsys):
    """On two A6000 of 154.8 dense TFLOP/s and 300 W."""
    shape = [
        "config/full_qwen3_1.5b.py",
        "--n_layer=2",
        "--vocab_size=1024",
        "--d_ff=512",
        "--block_size=256",
    ]
    p = run_plan(
        capsys, *shape, "--gpus=2", "--gpu=A6000", "--tokens=6e9", "--mfu=0.4", "--price_per_gpu_hour=0.5"
    )
    (t,) = p["time"]
    matmul = 2 * (2048 * 128 * (16 + 16) + 128 * 16 * 2048 + 3 * 2048 * 512) + 1024 * 2048
    work = 6 * matmul + 6 * 2 * 16 * 128 * 256
    assert p["flops_per_token"] == work and p["flops"] == 6e9 * work and p["disk"]["data_gb"] == 24
    choice = p["recommended"]
    assert (choice["strategy"], choice["activation_checkpointing"]) == ("ddp", "none")
    assert t["days"] == pytest.approx(6e9 * work / (2 * 154.8e12 * 0.4) / 86400)
    assert t["price"] == pytest.approx(0.5 * t["gpu_hours"]) and t["kwh_at_most"] == pytest.approx(
        0.3 * t["gpu_hours"]
    )
    assert p["disk"]["checkpoint_gb"] == pytest.approx(12e-9 * p["parameters"]["total"])
    assert [row["strategy"] for row in p["memory"][::3]] == ["ddp", "zero1", "fsdp"]
    assert choice["use_batch_size"] * choice["use_gradient_accumulation_steps"] == 6 * 32
    for row in p["memory"]:
        assert row["fits"] and row["gib"]["total"] <= 48 and row["largest_batch_size"] == 96  # the whole step


def test_the_flags_that_are_recommended_are_flags_of_train(capsys):
    flags = [
        "config/quickstart.py",
        "--optimizer=adamw",
        "--n_layer=2",
        "--gradient_accumulation_steps=16",
        "--gpus=16",
        "--gpu=x",
    ]
    flags += ["--peak_tflops=1", "--memory_gb=1.7", "--context_gb=1.4", "--fragmentation=0"]
    p = run_plan(capsys, *flags)
    choice = p["recommended"]
    c, train, _ = plan.parse([*flags, *choice["flags"].split()])
    assert train.batch_size == choice["use_batch_size"]
    assert step_memory(c, train, 16).total <= 0.3 * 2**30
    assert choice["flags"] in "\n".join(report(p))


SMALL = ["config/quickstart.py", "--n_layer=2", "--n_embd=64", "--n_head=2", "--num_key_value_heads=2", "--head_dim=32",
         "--d_ff=64", "--vocab_size=512", "--block_size=64", "--optimizer=adamw", "--gpu=A6000"]  # fmt: skip


@pytest.mark.parametrize(
    "flags, said",
    [
        (
            ["--gpus=7", "--use_fsdp", "--hybrid_shard_size=3", "--document_masking", "--dtype=float16"],
            ["cannot be divided among 7 GPUs", "does not divide 7 GPUs", "masks are not in the memory"],
        ),
        (
            ["--gpus=2", "--dtype=float16", "--fp8=rowwise"],
            ["only DDP is planned", "counts against the bf16 peak"],
        ),
        (["--memory_gb=0.5"], ["It does not fit"]),
    ],
)
def test_what_it_cannot_plan_is_said(flags, said, capsys):
    assert plan.main([*SMALL, *flags]) == 0
    out = capsys.readouterr().out
    assert all(words in out for words in said)


@pytest.mark.parametrize(
    "sizes, said",
    [
        (["--block_size=100000000", "--attention_backend=manual"], "beyond 64 bits"),
        (["--vocab_size=1000000000000000000"], "beyond 64 bits"),
        (["--d_ff=1000000000000000000"], "beyond 64 bits"),
        (["--batch_size=1000000000000000000"], "are beyond 1e+15"),
        (["--max_iters=1000000000000000000"], "are beyond 1e+15"),
        (["--tokens=1e29"], "are beyond 1e+15"),
        (["--gpus=1000000000"], "gpus=1000000000 must lie in"),
    ],
)
def test_absurd_sizes_are_one_line(sizes, said, capfd):
    with pytest.raises(SystemExit) as end:
        plan.main([*SMALL, *sizes])
    err = capfd.readouterr().err
    assert end.value.code == 2 and said in err and err.count("\n") == 1


def test_depth_takes_no_time(capsys):
    """A billion layers, which are not built."""
    p = run_plan(capsys, *SMALL, "--n_layer=1000000000", "--tokens=1e9")
    assert p["parameters"]["total"] > 1e13 and p["recommended"] is None
    assert p["disk"]["checkpoint_gb"] == pytest.approx(12e-9 * p["parameters"]["total"])


def test_what_is_recomputed_counts_once(capsys):
    """A stated MFU is that of the log, recomputation in it; a measured one, or the range, falls with
    recomputation."""
    long = ["--n_layer=60", "--block_size=4096", "--batch_size=1"]
    tight = [*long, "--memory_gb=0.25", "--context_gb=0", "--fragmentation=0"]
    for flags, mode, falls in ((long, "none", 1), (tight, "full", 3 / 4)):
        stated, ranged = (run_plan(capsys, *SMALL, *flags, *mfu) for mfu in (["--mfu=0.3"], []))
        assert stated["recommended"]["activation_checkpointing"] == mode
        stated, ranged = stated["time"][0], ranged["time"][0]
        assert stated["mfu"] == 0.3 and ranged["mfu"] == pytest.approx(0.3 * falls)  # the range begins at 0.3
        assert ranged["tokens_per_s"] == pytest.approx(falls * stated["tokens_per_s"])


def test_the_tokens_of_a_dataset_by_name_and_by_path(capsys, dataset, tmp_path):
    there = read_meta(dataset)["splits"]["train"]["tokens"]
    assert run_plan(capsys, *SMALL, f"--dataset={dataset}")["disk"]["dataset_tokens"] == there
    assert dataset_tokens(dataset.name, tmp_path) == there
    for elsewhere in ("nowhere", f"{dataset}:0.5,b:0.5"):
        assert dataset_tokens(elsewhere, tmp_path) is None
    (dataset / "meta.json").write_text("[]")
    with pytest.raises(SystemExit) as end:
        plan.main([*SMALL, f"--dataset={dataset}"])
    assert end.value.code == 2 and "meta.json" in capsys.readouterr().err


def test_a_measured_run_and_a_budget(capsys, run, tmp_path):
    assert run("a") == 0
    capsys.readouterr()
    tiny_gpu = ["--gpu=mine", "--peak_tflops=1", "--memory_gb=8"]
    p = run_plan(
        capsys, "config/quickstart.py", *tiny_gpu, f"--measured={tmp_path / 'a'}", "--budget=1000gpu-hours"
    )
    assert p["budget_flops"] == pytest.approx(1000 * 3600 * 1e12 * p["mfu"]) and p["shapes"]


@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--gpus=2"],
        ["config/quickstart.py"],
        ["config/quickstart.py", "--gpu=H1000"],
        ["config/quickstart.py", "--gpu=H100", "--gpus=0"],
        ["config/quickstart.py", "--gpu=H100", "--mfu=40"],
        ["config/quickstart.py", "--gpu=H100", "--mfu=nan"],
        ["config/quickstart.py", "--gpu=H100", "--budget=lots"],
        ["config/quickstart.py", "--gpu=H100", "--budget=5gpu-hours"],
        ["config/quickstart.py", "--gpu=H100", "--measured=nowhere"],
        ["config/quickstart.py", "--gpu=H100", "--context_gb=1e300"],
        ["config/quickstart.py", "--gpu=H100", "--max_iters=0"],
        ["config/quickstart.py", "--gpu=H100", "--budget=1e6"],
    ],
)
def test_bad_input_is_one_line(flags, capsys):
    with pytest.raises(SystemExit) as end:
        plan.main(flags)
    assert end.value.code == 2 and len(capsys.readouterr().err.strip().splitlines()) == 1
