"""FP8 in the blocks: emulated here (rounded to FP8, multiplied in fp32), since the machines of the tests
have no such GPU."""

import sys

import pytest
import torch
from conftest import TINY_FLAGS, read_events
from ranks import train_all

import training.run
from base.errors import MissingPackage
from model_builder import ConfigurableGPT, init_weights
from model_config import get_preset_config
from training import fp8
from training.config import TrainConfig
from training.world import on_ranks

SMALL = dict(
    n_layer=2, n_embd=64, n_head=4, num_key_value_heads=2, head_dim=16, d_ff=128, vocab_size=97, block_size=32
)
CPU = torch.device("cpu")


def configs(recipe="rowwise", batch_size=2, **fields):
    return TrainConfig(fp8=recipe, batch_size=batch_size), get_preset_config("qwen3", **SMALL | fields)


def check(device=CPU, recipe="rowwise", batch_size=2, **fields):
    fp8.check_fp8(*configs(recipe, batch_size, **fields), device)


def test_what_cannot_run_is_said(monkeypatch):
    check(recipe="none", n_embd=60)
    with pytest.raises(
        ValueError, match="fp8='rowwise' needs an NVIDIA GPU of Ada, Hopper or newer, not cpu"
    ):
        check()
    for capability, runs in (((8, 0), False), ((8, 9), True), ((9, 0), True)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, c=capability: c)
        if runs:
            check(torch.device("cuda"))
        else:
            with pytest.raises(ValueError, match="not cuda"):
                check(torch.device("cuda"))
    for fields in ({"d_ff": 100}, {"n_embd": 72}, {"block_size": 15, "batch_size": 3}):
        with pytest.raises(ValueError, match="is not a multiple of 16"):
            fp8.check_sizes(*configs(**fields))
    monkeypatch.setattr(fp8, "has_fp8", lambda device: True)
    monkeypatch.setitem(sys.modules, "torchao.float8", None)
    with pytest.raises(MissingPackage, match="pip install torchao"):
        check()


@pytest.mark.parametrize("recipe", ["tensorwise", "rowwise"])
def test_loss_and_gradients_are_near_and_names_are_the_same(recipe):
    config = get_preset_config("qwen3", **SMALL)
    with torch.device("meta"):
        model = ConfigurableGPT(config)
    fp8.convert_blocks(model, recipe, CPU)
    model.to_empty(device="cpu")
    init_weights(model, 0)
    plain = ConfigurableGPT(config, seed=0)
    assert [n for n, _ in model.named_parameters()] == [n for n, _ in plain.named_parameters()]
    ids = torch.randint(97, (2, 32), generator=torch.Generator().manual_seed(0))
    losses = [m(ids, ids)[1] for m in (model, plain)]
    for loss in losses:
        loss.backward()
    assert 0 < abs(losses[0] - losses[1]).item() < 5e-3  # rounded, but only that
    for (name, p), q in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert p.dtype == torch.float32
        assert (p.grad - q.grad).norm() < 0.2 * q.grad.norm(), name


FLAGS = [
    "--arch_preset=qwen3",
    "--n_embd=64",
    "--num_key_value_heads=2",
    "--head_dim=16",
    "--n_head=4",
    "--d_ff=128",
]


def test_a_run_in_fp8(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(training.run, "check_fp8", lambda *a: None)
    assert run("whole", *FLAGS, "--fp8=tensorwise") == 0
    for steps in (3, 6):
        assert run("parts", *FLAGS, "--fp8=tensorwise", f"--max_iters={steps}", "--lr_decay_iters=6") == 0
    assert run("plain", *FLAGS) == 0
    whole, parts, plain = (
        [e["loss"] for e in read_events(tmp_path / name, "train")] for name in ("whole", "parts", "plain")
    )
    assert parts == whole != plain
    assert whole == pytest.approx(plain, abs=2e-2)


def train_emulated(world, jobs):
    training.run.check_fp8 = lambda *a: None
    train_all(world, jobs)


def test_every_strategy_trains_in_fp8(run, dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(training.run, "check_fp8", lambda *a: None)
    assert run("single", *FLAGS, "--fp8=rowwise") == 0
    strategies = {
        "ddp": [],
        "zero1": ["--use_zero1"],
        "fsdp": ["--use_fsdp", "--activation_checkpointing=selective"],
    }
    common = [*TINY_FLAGS, *FLAGS, "--fp8=rowwise", f"--dataset={dataset}"]
    on_ranks(
        2,
        train_emulated,
        [[*common, *flags, f"--out_dir={tmp_path / name}"] for name, flags in strategies.items()],
    )
    expected = [e["loss"] for e in read_events(tmp_path / "single", "train")]
    for name in strategies:
        assert [e["loss"] for e in read_events(tmp_path / name, "train")] == pytest.approx(
            expected, abs=1e-3
        ), name
