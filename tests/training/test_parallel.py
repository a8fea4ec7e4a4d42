"""One truth: single, DDP, ZeRO-1, FSDP and hybrid sharding compute the same, and read each other's checkpoints."""

import itertools
import json
import resource
import shutil
from pathlib import Path

import pytest
import torch
from conftest import read_events, write_dataset
from ranks import spawn, train_all
from torch.distributed.tensor import DTensor

from inference.hf import save_hf
from model_builder import ConfigurableGPT
from model_config import get_preset_config
from training import checkpoint
from training.config import load_config
from training.dist import World
from training.parallel import Strategy, build_strategy

STRATEGIES = {
    1: {"single": []},
    2: {"ddp": [], "zero1": ["--use_zero1"], "fsdp": ["--use_fsdp"]},
    4: {
        "ddp": [],
        "zero1": ["--use_zero1"],
        "fsdp": ["--use_fsdp"],
        "hybrid": ["--use_fsdp", "--hybrid_shard_size=2"],
    },
}
WORLDS = [(size, name) for size, names in STRATEGIES.items() for name in names]

# Odd sizes: 97, 50 and 10 rows do not divide by 4
SHAPE = (
    "--arch_preset=qwen3 --n_layer=2 --n_embd=36 --n_head=2 --num_key_value_heads=1 --head_dim=10 --d_ff=50 --block_size=16 "
    "--vocab_size=97 --batch_size=2 --gradient_accumulation_steps=8 --max_iters=20 --lr_decay_iters=20 --warmup_iters=2 "
    "--learning_rate=1e-3 --min_lr=1e-4 --eval_interval=10 --eval_iters=5 --log_interval=1 --device=cpu --dtype=float32 "
    "--compile=False --seed=7"
).split()
VARIANTS = {
    "tied": ["--weight_tying=True"],
    "untied": ["--weight_tying=False"],
    "dropout, full recomputation": ["--dropout=0.1", "--activation_checkpointing=full"],
    "selective recomputation": ["--activation_checkpointing=selective"],
    "muon": ["--optimizer=muon"],
    "gpt2": ["--arch_preset=gpt2", "--num_key_value_heads=2", "--head_dim=18", "--weight_decay=0.5"],
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """A folder with a run of each variant under each strategy: SIZE-STRATEGY-VARIANT."""
    folder = tmp_path_factory.mktemp("runs")
    dataset = write_dataset(folder / "dataset", train_tokens=6000)
    for size, names in STRATEGIES.items():
        jobs = [
            [*SHAPE, f"--dataset={dataset}", f"--out_dir={folder}/{size}-{name}-{variant}", *flags, *names[name]]
            for name, (variant, flags) in itertools.product(names, VARIANTS.items())
        ]
        spawn(size, train_all, jobs)
    return folder


def losses_and_norms(out_dir: Path) -> tuple[list[float], list[float]]:
    train, evals = read_events(out_dir, "train"), read_events(out_dir, "eval")
    assert len(train) == 20 and [e["step"] for e in evals] == [0, 10, 20]
    losses = [e["loss"] for e in train] + [e[k] for e in evals for k in ("train_loss", "val_loss")]
    return losses, [e["grad_norm"] for e in train]


def whole_weights(out_dir: Path, step: int) -> dict[str, torch.Tensor]:
    config = checkpoint.load_state(checkpoint.checkpoint_path(out_dir, step))[1]["model"]
    model = ConfigurableGPT(load_config([f"--{k}={v}" for k, v in config.items()])[0])
    checkpoint.load_weights(checkpoint.checkpoint_path(out_dir, step), model)
    return dict(model.named_parameters())


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("size, name", WORLDS[1:])
def test_every_strategy_computes_what_one_process_does(runs, size, name, variant):
    (ours, norms), (theirs, their_norms) = (
        losses_and_norms(runs / f"{where}-{variant}") for where in (f"{size}-{name}", "1-single")
    )
    # Muon orthogonalises in bf16
    tolerance = 1e-3 if variant == "muon" else 1e-6
    assert ours == pytest.approx(theirs, rel=tolerance)
    if variant == "muon":
        return
    assert norms == pytest.approx(their_norms, rel=5e-6)
    if variant == "gpt2":  # a key's bias has no gradient but rounding, which Adam makes as large as any other
        return
    ours, theirs = (whole_weights(runs / f"{where}-{variant}", 20) for where in (f"{size}-{name}", "1-single"))
    for p in theirs:
        torch.testing.assert_close(ours[p], theirs[p], rtol=1e-6, atol=1e-6)


def start_from_step_10(runs: Path, source: str, target: Path) -> Path:
    """A run folder with nothing but the checkpoint of step 10 of another run."""
    shutil.copytree(checkpoint.checkpoint_path(runs / source, 10), checkpoint.checkpoint_path(target, 10))
    return target


@pytest.fixture(scope="module")
def continued(runs) -> Path:
    """Every run of the tied variant, gone on from step 10 under every strategy: SOURCE-to-TARGET, and its evaluation alone."""
    folder = runs / "continued"
    for size, names in STRATEGIES.items():
        jobs = []
        for name, (s, source) in itertools.product(names, WORLDS):
            there = start_from_step_10(runs, f"{s}-{source}-tied", folder / f"{s}-{source}-to-{size}-{name}")
            common = [*SHAPE, f"--dataset={runs}/dataset", f"--out_dir={there}", *VARIANTS["tied"], *names[name]]
            jobs += [[*common, "--eval_only"], [*common, "--max_iters=12"]]
        spawn(size, train_all, jobs)
    return folder


@pytest.mark.parametrize("target", WORLDS)
@pytest.mark.parametrize("source", WORLDS)
def test_any_checkpoint_goes_on_under_any_strategy(runs, continued, source, target):
    of_source, here = runs / "{}-{}-tied".format(*source), continued / "{}-{}-to-{}-{}".format(*source, *target)
    evals = [e for e in read_events(of_source, "eval") if e["step"] == 10]
    found = read_events(here, "eval")
    assert [e["step"] for e in found] == [10, 12]
    for split in ("train_loss", "val_loss"):
        assert found[0][split] == pytest.approx(evals[0][split], rel=1e-6)
    steps = {e["step"]: e["loss"] for e in read_events(of_source, "train")}
    train = read_events(here, "train")
    assert [e["step"] for e in train] == [11, 12] and train[1]["tokens"] == 12 * 2 * 8 * 16
    assert [e["loss"] for e in train] == pytest.approx([steps[11], steps[12]], rel=1e-6)


@pytest.mark.parametrize("variant", ["dropout, full recomputation", "muon"])
def test_going_on_at_the_same_size_is_bit_exact(runs, variant):
    for size, names in STRATEGIES.items():
        jobs = []
        for name, flags in names.items():
            there = start_from_step_10(runs, f"{size}-{name}-{variant}", runs / f"parts-{size}-{name}-{variant}")
            jobs.append([*SHAPE, f"--dataset={runs}/dataset", f"--out_dir={there}", *VARIANTS[variant], *flags])
        spawn(size, train_all, jobs)
        for name in names:
            whole, parts = runs / f"{size}-{name}-{variant}", runs / f"parts-{size}-{name}-{variant}"
            then = {e["step"]: (e["loss"], e["grad_norm"]) for e in read_events(whole, "train")}
            now = {e["step"]: (e["loss"], e["grad_norm"]) for e in read_events(parts, "train")}
            assert now == {step: then[step] for step in range(11, 21)}
            digests = [
                {f: r["sha256"] for f, r in checkpoint.load_manifest(checkpoint.checkpoint_path(run, 20)).items()}
                for run in (whole, parts)
            ]
            tensors = [f for f in digests[0] if f.endswith(".safetensors")]
            assert len(tensors) == 2 * size and all(digests[0][f] == digests[1][f] for f in tensors)


def held(world: World, folder: Path) -> None:
    """Writes what this rank holds in bytes, of weights and of optimizer state, after a step under each strategy."""
    shape = {"n_layer": 2, "n_embd": 64, "n_head": 4, "num_key_value_heads": 2, "head_dim": 16, "d_ff": 192}
    model_config = get_preset_config("qwen3", **shape, block_size=8, vocab_size=512)
    for name, flags in STRATEGIES[world.size].items():
        config = load_config([*flags, "--compile=False"])[1]
        strategy = build_strategy(config, world, torch.device("cpu"), torch.float32)
        with torch.device("meta"):
            model = ConfigurableGPT(model_config)
        forward = strategy.wrap(model, seed=0)
        optimizers = strategy.optimizers(model, config)
        x = torch.arange(8)[None]
        forward(x, x)[1].backward()
        strategy.clip(model, 1.0)
        optimizers[0].step()
        bytes_of = {"weights": 0, "state": 0}
        for key, tensor in strategy.tensors(model, optimizers).items():
            local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
            bytes_of["state" if "/" in key else "weights"] += local.nbytes
        (folder / f"{world.size}-{name}-{world.rank}.json").write_text(json.dumps({**bytes_of, "name": strategy.name}))


def test_what_a_rank_holds(tmp_path):
    """Optimizer state and fp32 weights are an N-th each, to 5 %; in hybrid sharding by the ranks of a group."""
    for size in STRATEGIES:
        spawn(size, held, tmp_path)
    of = {f.stem: json.loads(f.read_text()) for f in tmp_path.glob("*.json")}
    whole = of["1-single-0"]
    for size, name in WORLDS:
        parts = {"zero1": size, "fsdp": size, "hybrid": 2}.get(name, 1)
        for rank in range(size):
            for what in ("weights", "state"):
                assert of[f"{size}-{name}-{rank}"][what] == pytest.approx(whole[what] / parts, rel=0.05)
    assert of["4-hybrid-0"]["name"] == "fsdp 2x2" and of["4-zero1-0"]["name"] == "zero1" and whole["name"] == "single"


def test_gradients_may_travel_in_bf16(tmp_path):
    dataset = write_dataset(tmp_path / "dataset")
    jobs = [
        [*SHAPE, f"--dataset={dataset}", f"--out_dir={tmp_path}/{name}-{dtype}", f"--reduce_dtype={dtype}", *flags]
        for name, flags in STRATEGIES[2].items()
        for dtype in ("float32", "bfloat16")
    ]
    spawn(2, train_all, jobs)
    for name in STRATEGIES[2]:
        exact, rounded = (losses_and_norms(tmp_path / f"{name}-{dtype}") for dtype in ("float32", "bfloat16"))
        assert rounded[0] == pytest.approx(exact[0], rel=2e-3) and rounded[1] != exact[1]


def test_recomputation_saves_memory():
    """Bytes that the forward pass keeps for the backward pass."""
    kept = {}
    for mode in ("none", "selective", "full"):
        config = load_config([f"--activation_checkpointing={mode}"])[1]
        with torch.device("meta"):
            model = ConfigurableGPT(load_config(SHAPE)[0])
        forward = build_strategy(config, World(), torch.device("cpu"), torch.float32).wrap(model, seed=0)
        saved: dict[int, int] = {}
        own = {p.data_ptr() for p in model.parameters()}

        def pack(t: torch.Tensor, saved: dict = saved, own: set = own) -> torch.Tensor:
            if t.data_ptr() not in own:
                saved[t.data_ptr()] = t.nbytes
            return t

        x = torch.zeros(2, 16, dtype=torch.long)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            _, loss = forward(x, x)
        loss.backward()
        kept[mode] = sum(saved.values())
    assert kept["none"] > 1.5 * kept["full"] > 0 and kept["none"] > kept["selective"]


@pytest.mark.parametrize("mode", ["none", "selective", "full"])
def test_blocks_are_compiled_whole_whatever_is_recomputed(mode, monkeypatch):
    import torch._dynamo
    from torch._dynamo.utils import counters

    plain = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **options: plain(self, backend="eager", **options))
    torch._dynamo.reset()
    counters.clear()
    model_config, config = load_config([*SHAPE, f"--activation_checkpointing={mode}"])
    with torch.device("meta"):
        model = ConfigurableGPT(model_config)
    strategy = Strategy(config, World(size=2), torch.device("cpu"), torch.float32)  # of two: block by block
    forward = strategy.wrap(model, seed=0, compile=True)
    x = torch.zeros(2, 16, dtype=torch.long)
    forward(x, x)[1].backward()
    assert counters["stats"]["unique_graphs"] >= 1 and not counters["graph_break"]
    assert all(p.grad is not None for p in model.parameters())


def memory_of_a_shard(world: World, folder: Path) -> None:
    """Peak of resident memory while a model is built, in bytes, beyond what there was before."""
    before = peak_bytes()
    config = load_config(["--use_fsdp"])[1]
    with torch.device("meta"):
        model = ConfigurableGPT(get_preset_config("qwen3", n_layer=16, block_size=64, vocab_size=2048))
    build_strategy(config, world, torch.device("cpu"), torch.float32).wrap(model, seed=0)
    (folder / str(world.rank)).write_text(str(peak_bytes() - before))


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def test_a_model_is_never_whole_on_one_rank(tmp_path):
    with torch.device("meta"):
        model = ConfigurableGPT(get_preset_config("qwen3", n_layer=16, block_size=64, vocab_size=2048))
    whole = 4 * model.get_num_params()
    largest = max(4 * p.numel() for p in model.parameters())
    assert largest < whole / 15 and whole > 1e9
    spawn(4, memory_of_a_shard, tmp_path)
    for rank in range(4):
        assert int((tmp_path / str(rank)).read_text()) < whole / 4 + 3 * largest


def from_hf(world: World, folder: Path) -> None:
    jobs = [
        [
            *SHAPE,
            f"--dataset={folder}/dataset",
            f"--out_dir={folder}/{world.size}-{name}",
            f"--init_from=hf:{folder}/hf",
            *flags,
        ]
        for name, flags in STRATEGIES[world.size].items()
    ]
    train_all(world, jobs)


def test_weights_from_hugging_face_become_shards(tmp_path):
    write_dataset(tmp_path / "dataset")
    save_hf(ConfigurableGPT(load_config(SHAPE)[0], seed=3), tmp_path / "hf")
    for size in (1, 2):
        spawn(size, from_hf, tmp_path)
    first = {out_dir.name: losses_and_norms(out_dir)[0] for out_dir in tmp_path.glob("*-*") if out_dir.is_dir()}
    assert len(first) == 4
    for losses in first.values():
        assert losses == pytest.approx(first["1-single"], rel=1e-6)
