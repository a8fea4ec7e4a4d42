"""plan.py and the rooms below it: memory beside torch's own count, FLOPs beside FlopCounterMode, the
arithmetic, the command. benchmarks/plan_memory.py holds the memory against resident memory, on one and two
processes."""

import json
import os
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import plan
from hardware.gpus import GPUS, find_gpu, peak_flops_per_s
from model_builder import ConfigurableGPT
from model_config import PRESET_CONFIGS, get_preset_config
from planning.cost import measured_mfu
from planning.memory import BatchMemory, largest_batch, parameters_by_part, simulated_step, step_memory
from planning.report import report
from planning.scaling import BESIROGLU, HOFFMANN, best_shapes, parameters
from tokens.format import read_meta
from training import flops
from training.config import TrainConfig

TINY = dict(
    n_layer=2, n_embd=64, d_ff=96, n_head=4, num_key_value_heads=2, head_dim=16, block_size=32, vocab_size=101
)
TRAIN = TrainConfig(batch_size=3, gradient_accumulation_steps=4, dtype="bfloat16", compile=False)


def tiny(preset="qwen3", **changes):
    return get_preset_config(preset, **(TINY | changes))


def saved_bytes(c, batch_size):
    """What autograd keeps between a forward and a backward pass, parameters and tables aside, counted by
    torch's own hooks."""
    model = ConfigurableGPT(c)
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    kept = {}

    def pack(t):
        if t.untyped_storage().data_ptr() not in own:
            kept[t.untyped_storage().data_ptr()] = t
        return t

    ids = torch.randint(c.vocab_size, (batch_size, c.block_size))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t), torch.autocast("cpu", torch.bfloat16):
        model(ids, ids.clone())
    return sum(t.untyped_storage().nbytes() for t in kept.values())


@pytest.mark.parametrize("backend", ["sdpa", "manual"])
@pytest.mark.parametrize("preset", PRESET_CONFIGS)
def test_activations_are_those_that_autograd_keeps(preset, backend):
    """The difference of two depths, so that the head and the loss drop out."""
    a, b = (tiny(preset, n_layer=n, attention_backend=backend) for n in (2, 5))
    kept = saved_bytes(b, 3) - saved_bytes(a, 3)
    assert kept == pytest.approx(
        step_memory(b, TRAIN, device="cpu").activations - step_memory(a, TRAIN, device="cpu").activations,
        rel=0.02,
    )


@pytest.mark.parametrize("preset", PRESET_CONFIGS)
def test_weights_gradients_and_adamw_are_four_four_and_eight_bytes(preset):
    c = tiny(preset)
    n = ConfigurableGPT(c).get_num_params()
    tables = 4 * c.block_size * c.head_dim if c.position_encoding == "rope" else 0
    m = step_memory(c, TRAIN)
    assert (m.weights, m.gradients) == (4 * n + tables, 4 * n)
    assert m.optimizer == pytest.approx(8 * n, rel=0.01)  # and a count of steps for each tensor
    assert sum(parameters_by_part(ConfigurableGPT(c)).values()) == n


def test_strategies_divide_what_they_shard():
    n = ConfigurableGPT(tiny()).get_num_params()
    ddp, zero1, fsdp = (step_memory(tiny(), replace(TRAIN, gradient_accumulation_steps=8, **flags), 4)
                        for flags in ({}, {"use_zero1": True}, {"use_fsdp": True}))  # fmt: skip
    assert ddp.gradients == 4 * n  # in the buckets, from the first micro-step on
    for sharded in (zero1, fsdp):
        assert sharded.optimizer == pytest.approx(ddp.optimizer / 4, rel=0.02)
        assert sharded.gradients == pytest.approx(4 * n, rel=0.01)  # whole until the last micro-step
    assert zero1.gathered > fsdp.gathered > 0 == ddp.gathered
    hybrid = step_memory(tiny(), replace(TRAIN, use_fsdp=True, hybrid_shard_size=2), 4)
    assert hybrid.optimizer == pytest.approx(ddp.optimizer / 2, rel=0.02)
    alone = step_memory(tiny(), replace(TRAIN, use_fsdp=True, gradient_accumulation_steps=4), 4)
    assert alone.gradients == 0 and alone.total < fsdp.total


STRATEGIES = [{}, {"use_fsdp": True}, {"use_zero1": True}, {"optimizer": "muon"}]


SLOW = "SLOW" in os.environ  # make test-faults, which has time for all combinations


@pytest.mark.parametrize("mode", ["none", "selective", "full"] if SLOW else ["selective"])
@pytest.mark.parametrize("flags", STRATEGIES)
def test_depth_is_a_line(mode, flags):
    c, train = (
        tiny(n_layer=6, attention_backend="sdpa"),
        replace(TRAIN, activation_checkpointing=mode, **flags),
    )
    world_size = 2 if "optimizer" not in flags and flags else 1
    _, peaks = simulated_step(c, train, world_size, "cuda").at(train.batch_size)
    assert step_memory(c, train, world_size).total == pytest.approx(max(peaks.values()), rel=0.005)


@pytest.mark.parametrize("backend", ["auto", "chunked"] if SLOW else ["chunked"])
@pytest.mark.parametrize("flags", STRATEGIES)
def test_one_trace_answers_for_all_batches(flags, backend, monkeypatch):
    """To the byte what a trace of the batch itself says: one, two, some chunks of the loss, and no whole
    number of them."""
    monkeypatch.setattr("operators.loss.CHUNK_BYTES", 2 * 101 * 70)  # 70 tokens; sequences have 32
    c, train = tiny(loss_backend=backend, attention_backend="sdpa"), replace(TRAIN, **flags)
    memory = BatchMemory(c, train, 2)
    for B in (1, 3, 7, 9):
        parts, peaks = simulated_step(c, replace(train, batch_size=B), 2, "cuda").at(B)
        assert vars(memory(B)) | {"workspace": 0} == parts | {"workspace": 0} and memory(B).total == max(
            peaks.values()
        )


def test_checkpointing_keeps_less():
    none, selective, full = (step_memory(tiny(n_layer=8), replace(TRAIN, activation_checkpointing=mode)).activations
                             for mode in ("none", "selective", "full"))  # fmt: skip
    assert full < selective < none


def test_largest_batch(monkeypatch):
    assert largest_batch(lambda b: 100 + 7 * b, 100 + 7 * 35 + 6, most=99) == 35
    assert largest_batch(lambda b: 100 + 7 * b, 100 + 7 * 35 + 6, most=20) == 20
    assert largest_batch(lambda b: 100 + 7 * b, 106, most=99) == 0
    assert largest_batch(lambda b: 100 + 7 * b, 110, most=1) == 1
    by_chunks_from_10 = lambda b: 100 + 7 * b - 50 * (b >= 10)  # noqa: E731
    answers = [
        largest_batch(by_chunks_from_10, limit, most=99, starts=(1, 10, 30))
        for limit in (400, 210, 125, 119, 106)
    ]
    assert answers == [50, 22, 10, 2, 0]
    memory = BatchMemory(tiny(), TRAIN)
    assert largest_batch(lambda b: memory(b).total, memory(5).total, most=99, starts=memory.starts) == 5
    monkeypatch.setattr(
        "operators.loss.PLAIN_MAX_BYTES", 4 * 101 * 32 * 10
    )  # the plain loss up to ten sequences
    monkeypatch.setattr("operators.loss.CHUNK_BYTES", 2 * 101 * 70)
    memory = BatchMemory(tiny(), TRAIN)
    assert memory.starts == (1, 11, 11) and memory(11).workspace < memory(10).workspace
    for B in (3, 10, 11, 40):
        fitting = [b for b in range(1, 50) if memory(b).total <= memory(B).total]
        assert largest_batch(
            lambda b: memory(b).total, memory(B).total, most=49, starts=memory.starts
        ) == max(fitting)


@pytest.mark.parametrize("preset", PRESET_CONFIGS)
def test_flops_are_those_of_flop_counter_mode(preset):
    """It counts attention in full; 1 % is what it does not count as we do: the rotation, and the chunked
    loss."""
    c = tiny(preset, attention_backend="manual", n_embd=256, d_ff=512, head_dim=64)
    model, ids = ConfigurableGPT(c), torch.zeros(2, 32, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        model(ids, ids)[1].backward()
    assert counter.get_total_flops() / ids.numel() == pytest.approx(
        flops.flops_per_token(c, full_attention=True), rel=0.01
    )


@pytest.mark.parametrize("law", [HOFFMANN, BESIROGLU])
def test_the_optimum_is_the_lowest_point(law):
    N, D = law.optimum(1e21)
    assert pytest.approx(1e21) == 6 * N * D
    assert law.loss(N, D) < min(law.loss(1.02 * N, D / 1.02), law.loss(N / 1.02, 1.02 * D))


def test_besiroglu_asks_for_about_twenty_tokens_a_parameter():
    N, D = BESIROGLU.optimum(5.76e23)  # Chinchilla's budget; the paper's abstract
    assert 15 < D / N < 25


def test_the_budget_is_spent_and_the_order_is_by_loss():
    shapes = best_shapes(tiny(vocab_size=32000), 1e18)
    losses = [BESIROGLU.loss(s.params, s.tokens) for s in shapes]
    assert losses == sorted(losses)
    for s in shapes[:3]:
        assert s.params == parameters(s.config)
        assert s.tokens * flops.flops_per_token(s.config) == pytest.approx(1e18)


def test_every_gpu_has_a_peak():
    for name, gpu in GPUS.items():
        assert peak_flops_per_s(gpu.driver_name) and find_gpu(name) is find_gpu(gpu.driver_name) is gpu


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
         "--d_ff=64", "--vocab_size=512", "--block_size=64", "--gpu=A6000"]  # fmt: skip


@pytest.mark.parametrize(
    "flags, said",
    [
        (
            ["--gpus=7", "--use_fsdp", "--hybrid_shard_size=3", "--document_masking"],
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


def test_sizes_beyond_64_bits_are_one_line(capsys):
    with pytest.raises(SystemExit) as end:
        plan.main([*SMALL, "--block_size=100000000", "--attention_backend=manual"])
    assert end.value.code == 2 and "beyond 64 bits" in capsys.readouterr().err


def test_a_measured_run_without_its_hardware(tmp_path):
    start = {"event": "run_start", "config": {"train": {}, "model": {}}, "hardware": {},
             "model": {"architecture_name": "x", "params": 1, "params_non_embedding": 1, "flops_per_token": 10}}  # fmt: skip
    steps = [
        {"event": "train", "step": i, "loss": 2.0, "tokens": i, "tokens_per_s": 5.0} for i in range(1, 5)
    ]
    (tmp_path / "run_x.jsonl").write_text("".join(json.dumps(e) + "\n" for e in (start, *steps)))
    with pytest.raises(ValueError, match="on how many GPUs"):
        measured_mfu(str(tmp_path), 1.0)
    (tmp_path / "run_x.jsonl").write_text("".join(json.dumps(e) + "\n" for e in (
        start | {"hardware": {"world_size": 1, "device_name": "X1", "peak_flops_per_s": None}}, *steps)))  # fmt: skip
    with pytest.raises(ValueError, match="the peak of X1 is unknown"):
        measured_mfu(str(tmp_path), None)
    assert measured_mfu(str(tmp_path), 1e-10)[0] == pytest.approx(0.5)
    full = start | {"config": {"train": {"activation_checkpointing": "full"}, "model": {}}}
    (tmp_path / "run_x.jsonl").write_text("".join(json.dumps(e) + "\n" for e in (
        full | {"hardware": {"world_size": 1, "device_name": "X1", "peak_flops_per_s": 100.0}}, *steps)))  # fmt: skip
    assert measured_mfu(str(tmp_path), None)[0] == pytest.approx(0.5 * 4 / 3)  # as if nothing were recomputed


def test_what_is_recomputed_counts_once(capsys, monkeypatch):
    """A stated MFU is that of the log, recomputation in it; a measured one, or the range, falls with
    recomputation."""
    one_of = lambda rows, T, mode: next(r for r in rows if r["activation_checkpointing"] == mode)  # noqa: E731
    rows = {}
    for mode in ("none", "full"):
        monkeypatch.setattr("planning.plan.recommend", lambda rows, T, mode=mode: one_of(rows, T, mode))
        rows[mode] = [run_plan(capsys, *SMALL, *flags)["time"][0] for flags in (["--mfu=0.3"], [])]
    assert rows["none"][0] == rows["none"][1] == rows["full"][0]  # the range begins at 0.3
    assert rows["full"][1]["mfu"] == pytest.approx(0.3 * 3 / 4)
    assert rows["full"][1]["tokens_per_s"] == pytest.approx(rows["none"][1]["tokens_per_s"] * 3 / 4)


def test_the_tokens_of_a_dataset_by_name_and_by_path(capsys, dataset):
    p = run_plan(capsys, *SMALL, f"--dataset={dataset}")
    assert p["disk"]["dataset_tokens"] == read_meta(dataset)["splits"]["train"]["tokens"]
    for elsewhere in ("--dataset=nowhere", f"--dataset={dataset}:0.5,b:0.5"):
        assert run_plan(capsys, *SMALL, elsewhere)["disk"]["dataset_tokens"] is None
    (dataset / "meta.json").write_text("[]")
    with pytest.raises(SystemExit) as end:
        plan.main([*SMALL, f"--dataset={dataset}"])
    assert end.value.code == 2 and "meta.json" in capsys.readouterr().err


def test_a_measured_run_and_a_budget(capsys, run, tmp_path):
    assert run("a") == 0
    capsys.readouterr()
    tiny_gpu = ["--gpu=mine", "--peak_tflops=1", "--memory_gb=8"]
    p = run_plan(
        capsys, "config/quickstart.py", *tiny_gpu, f"--measured={tmp_path / 'a'}", "--budget=2gpu-hours"
    )
    assert p["budget_flops"] == pytest.approx(2 * 3600 * 1e12 * p["mfu"]) and p["shapes"]


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
