"""One truth: single, DDP, ZeRO-1, FSDP and hybrid sharding compute the same, and read each other's
checkpoints."""

import itertools
import json
import os
import resource
import shutil
from pathlib import Path

import pytest
import torch
from conftest import read_events, write_dataset
from ranks import train_all
from torch._dynamo.utils import counters
from torch.distributed.tensor import DTensor

from inference.hf import save_hf
from model_builder import ConfigurableGPT
from model_config import get_preset_config
from training import checkpoint
from training.config import load_config
from training.optim import build_optimizers, clip_gradients
from training.parallel import build_strategy
from training.world import World, on_ranks

pytestmark = pytest.mark.timeout(900)  # of which most are the fixtures
STRATEGIES = {  # of 1 and 2 processes; of 4, which are slow on two cores, in make test-faults
    1: {"single": []},
    2: {"ddp": [], "zero1": ["--use_zero1"], "fsdp": ["--use_fsdp"]},
    4: {
        "ddp": [],
        "zero1": ["--use_zero1"],
        "fsdp": ["--use_fsdp"],
        "hybrid": ["--use_fsdp", "--hybrid_shard_size=2"],
    },
}
if "SLOW" not in os.environ:
    del STRATEGIES[4]
MICRO_STEPS = 2 * max(STRATEGIES)  # of a step: two of each process, one of them without an exchange
WORLDS = [(size, name) for size, names in STRATEGIES.items() for name in names]

# Odd sizes: 97, 50 and 10 rows do not divide by 4
SHAPE = (
    "--arch_preset=qwen3 --n_layer=2 --n_embd=36 --n_head=2 --num_key_value_heads=1 --head_dim=10 --d_ff=50 --block_size=16 "
    f"--vocab_size=97 --batch_size=2 --gradient_accumulation_steps={MICRO_STEPS} --max_iters=20 --lr_decay_iters=20 "
    "--warmup_iters=2 --learning_rate=1e-3 --min_lr=1e-4 --eval_interval=10 --eval_tokens=160 --log_interval=1 "
    "--device=cpu --dtype=float32 --compile=False --seed=7"
).split()
VARIANTS = {
    "tied": ["--weight_tying=True"],
    "untied": ["--weight_tying=False"],
    "dropout, full recomputation": ["--dropout=0.1", "--activation_checkpointing=full"],
    "selective recomputation": ["--activation_checkpointing=selective"],
    "muon": ["--optimizer=muon"],
    "gpt2": ["--arch_preset=gpt2", "--num_key_value_heads=2", "--head_dim=18", "--weight_decay=0.5"],
}


def variants_at(size: int) -> dict[str, list[str]]:
    """Four ranks on two cores are slow: they leave out two variants, and so do two in make test."""
    some = size == 4 or (size == 2 and "SLOW" not in os.environ)
    return {
        v: flags for v, flags in VARIANTS.items() if not some or v not in ("gpt2", "selective recomputation")
    }


def first_stage(world: World, folder: Path) -> None:
    """All that begins from scratch, in one process group a world size: a process takes seconds to start."""
    held(world, folder)
    jobs = []
    for name, strategy in STRATEGIES[world.size].items():
        for variant, flags in variants_at(world.size).items():
            jobs.append([f"--out_dir={folder}/{world.size}-{name}-{variant}", *flags, *strategy])
        if world.size < 4:
            jobs.append(
                [f"--out_dir={folder}/{world.size}-{name}-hf", f"--init_from=hf:{folder}/hf", *strategy]
            )
        if world.size == 2:
            jobs.append([f"--out_dir={folder}/2-{name}-bf16 gradients", "--reduce_dtype=bfloat16", *strategy])
            for preset in ("gpt2", "qwen3"):
                bf16 = ["--dtype=bfloat16", f"--arch_preset={preset}", "--num_key_value_heads=2"]
                jobs.append([f"--out_dir={folder}/2-{name}-bf16 {preset}", *bf16, *strategy])
    train_all(world, [[*SHAPE, f"--dataset={folder}/dataset", *flags] for flags in jobs])


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """A folder with a run of each variant under each strategy: SIZE-STRATEGY-VARIANT."""
    folder = tmp_path_factory.mktemp("runs")
    write_dataset(folder / "dataset", train_tokens=6000)
    save_hf(ConfigurableGPT(load_config(SHAPE)[0], seed=3), folder / "hf")
    for size in STRATEGIES:
        on_ranks(size, first_stage, folder)
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


@pytest.mark.parametrize("size, name, variant", [(s, n, v) for s, n in WORLDS[1:] for v in variants_at(s)])
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
    ours, theirs = (
        whole_weights(runs / f"{where}-{variant}", 20) for where in (f"{size}-{name}", "1-single")
    )
    for p in theirs:
        torch.testing.assert_close(ours[p], theirs[p], rtol=1e-6, atol=1e-6)


def start_from_step_10(runs: Path, source: str, target: Path) -> Path:
    """A run folder with nothing but the checkpoint of step 10 of another run."""
    shutil.copytree(checkpoint.checkpoint_path(runs / source, 10), checkpoint.checkpoint_path(target, 10))
    return target


BIT_EXACT = ("dropout, full recomputation", "muon")


@pytest.fixture(scope="module")
def continued(runs) -> Path:
    """Every run of the tied variant, resumed from step 10 under every strategy: SOURCE-to-TARGET. And runs
    resumed to their end under their own: parts-SIZE-STRATEGY-VARIANT."""
    folder = runs / "continued"
    for size, names in STRATEGIES.items():
        jobs = []
        for name, (s, source) in itertools.product(names, WORLDS):
            there = start_from_step_10(runs, f"{s}-{source}-tied", folder / f"{s}-{source}-to-{size}-{name}")
            common = [
                *SHAPE,
                f"--dataset={runs}/dataset",
                f"--out_dir={there}",
                *VARIANTS["tied"],
                *names[name],
            ]
            jobs.append([*common, "--max_iters=12"])
        for name, variant in itertools.product(names, BIT_EXACT):
            there = start_from_step_10(
                runs, f"{size}-{name}-{variant}", folder / f"parts-{size}-{name}-{variant}"
            )
            jobs.append(
                [*SHAPE, f"--dataset={runs}/dataset", f"--out_dir={there}", *VARIANTS[variant], *names[name]]
            )
        on_ranks(size, train_all, jobs)
    return folder


@pytest.mark.parametrize("target", WORLDS)
@pytest.mark.parametrize("source", WORLDS)
def test_any_checkpoint_resumes_under_any_strategy(runs, continued, source, target):
    of_source, here = (
        runs / "{}-{}-tied".format(*source),
        continued / "{}-{}-to-{}-{}".format(*source, *target),
    )
    steps = {e["step"]: e["loss"] for e in read_events(of_source, "train")}
    train = read_events(here, "train")
    assert [e["step"] for e in train] == [11, 12] and train[1]["tokens"] == 12 * 2 * MICRO_STEPS * 16
    assert [e["loss"] for e in train] == pytest.approx([steps[11], steps[12]], rel=1e-6)
    (end,), (reference,) = (read_events(run, "eval") for run in (here, continued / "1-single-to-1-single"))
    assert end["step"] == 12
    for split in ("train_loss", "val_loss"):
        assert end[split] == pytest.approx(reference[split], rel=1e-6)


@pytest.mark.parametrize("variant", BIT_EXACT)
@pytest.mark.parametrize("size, name", WORLDS)
def test_resuming_at_the_same_size_is_bit_exact(runs, continued, size, name, variant):
    whole, parts = runs / f"{size}-{name}-{variant}", continued / f"parts-{size}-{name}-{variant}"
    then = {e["step"]: (e["loss"], e["grad_norm"]) for e in read_events(whole, "train")}
    now = {e["step"]: (e["loss"], e["grad_norm"]) for e in read_events(parts, "train")}
    assert now == {step: then[step] for step in range(11, 21)}
    digests = [
        {f: r["sha256"] for f, r in checkpoint.read_manifest(checkpoint.checkpoint_path(run, 20)).items()}
        for run in (whole, parts)
    ]
    tensors = [f for f in digests[0] if f.endswith(".safetensors")]
    assert len(tensors) == 2 * size and all(digests[0][f] == digests[1][f] for f in tensors)


def held(world: World, folder: Path) -> None:
    """Writes what this rank holds in bytes, of weights and of optimizer state, after a step under each
    strategy."""
    shape = {"n_layer": 2, "n_embd": 64, "n_head": 4, "num_key_value_heads": 2, "head_dim": 16, "d_ff": 192}
    model_config = get_preset_config("qwen3", **shape, block_size=8, vocab_size=512)
    for name, flags in STRATEGIES[world.size].items():
        config = load_config([*flags, "--compile=False"])[1]
        strategy = build_strategy(config, world, torch.device("cpu"), torch.float32)
        with torch.device("meta"):
            model = ConfigurableGPT(model_config)
        forward = strategy.wrap(model, seed=0)
        optimizers = build_optimizers(model, config, torch.device("cpu"))
        x = torch.arange(8)[None]
        gradients = set()
        for micro_step in range(4):  # two of one step, two of the next
            with strategy.gradient_sync(model, last=micro_step % 2 == 1):
                forward(x, x)[1].backward()
            if name == "ddp":
                gradients |= {p.grad.untyped_storage().data_ptr() for p in model.parameters()}
            if micro_step % 2 == 1:
                clip_gradients(model, 1.0)
                optimizers[0].step()
                optimizers[0].zero_grad(set_to_none=strategy.frees_gradients)
        bytes_of = {"weights": 0, "state": 0, "gradient storages": len(gradients)}
        for key, tensor in strategy.tensors(model, optimizers).items():
            local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
            bytes_of["state" if "/" in key else "weights"] += local.nbytes
        (folder / f"{world.size}-{name}-{world.rank}.json").write_text(
            json.dumps({**bytes_of, "name": strategy.name})
        )


def test_what_a_rank_holds(runs):
    """Optimizer state and fp32 weights are an N-th each, to 5 %; in hybrid sharding by the ranks of a
    group."""
    of = {f.stem: json.loads(f.read_text()) for f in runs.glob("*.json")}
    whole = of["1-single-0"]
    for size, name in WORLDS:
        parts = {"zero1": size, "fsdp": size, "hybrid": 2}.get(name, 1)
        for rank in range(size):
            for what in ("weights", "state"):
                assert of[f"{size}-{name}-{rank}"][what] == pytest.approx(whole[what] / parts, rel=0.05)
    # DDP's gradients stay in its buckets, of 1 and 25 MB: none of a micro-step without exchange lies beside
    # them
    assert all(
        1 <= of[f"{size}-ddp-{rank}"]["gradient storages"] <= 2
        for size in STRATEGIES
        if size > 1
        for rank in range(size)
    )
    assert of["2-zero1-0"]["name"] == "zero1" and whole["name"] == "single"
    assert 4 not in STRATEGIES or of["4-hybrid-0"]["name"] == "fsdp 2x2"


@pytest.mark.parametrize("name", STRATEGIES[2])
def test_gradients_may_travel_in_bf16(runs, name):
    exact, rounded = (
        losses_and_norms(runs / f"2-{name}-{variant}") for variant in ("untied", "bf16 gradients")
    )
    assert rounded[0] == pytest.approx(exact[0], rel=2e-3) and rounded[1] != exact[1]


@pytest.mark.parametrize("preset", ["gpt2", "qwen3"])
def test_every_strategy_multiplies_in_bf16(runs, preset):
    losses = {name: losses_and_norms(runs / f"2-{name}-bf16 {preset}")[0] for name in STRATEGIES[2]}
    for name in STRATEGIES[2]:
        assert losses[name] == pytest.approx(losses["ddp"], rel=5e-3)


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


def test_recomputed_blocks_are_compiled_too(monkeypatch):
    """Block by block, as with several processes: one graph for all ten of them, the same gradients, less
    memory."""
    compile_module = torch.nn.Module.compile
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda self, **k: compile_module(self, backend="aot_eager", **k)
    )
    x, kept = torch.arange(16)[None], {}
    grads: dict[tuple[str, bool], list[torch.Tensor]] = {}
    for mode, compile in itertools.product(("none", "selective", "full"), (False, True)):
        torch._dynamo.reset()
        counters.clear()
        model = ConfigurableGPT(load_config([*SHAPE, "--n_layer=10"])[0], seed=0)
        config = load_config([f"--activation_checkpointing={mode}"])[1]
        build_strategy(config, World(), torch.device("cpu"), torch.float32)._prepare_blocks(model, compile)
        saved, own = {}, {p.data_ptr() for p in model.parameters()}

        def pack(t: torch.Tensor, saved: dict = saved, own: set = own) -> torch.Tensor:
            if t.data_ptr() not in own:
                saved[t.data_ptr()] = t.nbytes
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            _, loss = model(x, x)
        loss.backward()
        grads[mode, compile], kept[mode, compile] = [p.grad for p in model.parameters()], sum(saved.values())
        assert counters["stats"]["unique_graphs"] == int(compile)
    for compiled in grads.values():
        torch.testing.assert_close(compiled, grads["none", False], rtol=1e-4, atol=1e-6)
    assert kept["none", True] > 1.5 * kept["selective", True] > 3 * kept["full", True]


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
    on_ranks(2, memory_of_a_shard, tmp_path)
    for rank in range(2):
        assert int((tmp_path / str(rank)).read_text()) < whole / 2 + 3 * largest


@pytest.mark.parametrize("name", STRATEGIES[2])
def test_weights_from_hugging_face_become_shards(runs, name):
    first, ours = (losses_and_norms(runs / f"{where}-hf")[0] for where in ("1-single", f"2-{name}"))
    assert ours == pytest.approx(first, rel=1e-6)
    assert ours[0] != losses_and_norms(runs / f"2-{name}-untied")[0][0]
