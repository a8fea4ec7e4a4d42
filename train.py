"""Trains a language model from scratch.

    python train.py config/quickstart.py
    python train.py config/full_qwen3_0.6b.py --max_iters=10 --compile=False
    torchrun --standalone --nproc_per_node=2 train.py config/full_qwen3_1.5b.py --use_zero1=True
    python train.py config/full_qwen3_1.5b.py --print_config     # the resolved configuration as JSON, and exit

A config file sets fields of ModelArchitectureConfig (model_config.py) and TrainConfig (training/config.py); flags overrule it.
The run folder, `out_dir`, receives a log of JSON lines and checkpoints; the same command again goes on from the newest.
Exit codes: 0 done, 2 wrong input, 75 stopped by a signal after saving, 1 anything else.
"""

import contextlib
import json
import logging
import secrets
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from inference.samples import TextSampler
from model_builder import ConfigurableGPT
from model_config import ModelArchitectureConfig
from training import checkpoint, dist, flops, instruments, metrics
from training.attention import choose_kernel
from training.config import TrainConfig, load_config, user_errors
from training.dashboard import Dashboard, check_rich
from training.data import Dataset, dropout_seed, parse_mixture, tokenizer_files
from training.evaluate import bits_per_byte, evaluate
from training.fp8 import check_fp8
from training.optim import StepGuard, learning_rate_at, set_learning_rate, state_bytes
from training.parallel import assign_shard, build_strategy

ROOT = Path(__file__).resolve().parent
EXIT_STOPPED = 75


def main(argv: Sequence[str]) -> int:
    logging.basicConfig(format="%(message)s")
    if "--help" in argv or "-h" in argv:
        print(__doc__)
        return 0
    with user_errors():
        print_config = "--print_config" in argv
        model_config, config = load_config([a for a in argv if a != "--print_config"])
        derived = derived_figures(model_config, config)
    if print_config:
        print(json.dumps({"model": asdict(model_config), "train": asdict(config), "derived": derived}, indent=2))
        return 0

    with user_errors():
        world = dist.World.from_environment()
        stop = dist.StopSignals()
        dist.keep_freed_memory()
        device = dist.select_device(config.device, world)
    with world.connected(device, config.dist_timeout_s):
        return train(model_config, config, derived, world, device, stop, argv)


def derived_figures(model_config: ModelArchitectureConfig, config: TrainConfig) -> dict[str, int]:
    try:
        with torch.device("meta"):
            model = ConfigurableGPT(model_config)
    except (RuntimeError, TypeError, OverflowError) as error:  # torch on sizes beyond 64 bits
        raise ValueError(f"a model of this size cannot be: {str(error).splitlines()[0]}") from error
    return {
        "params": model.get_num_params(),
        "params_non_embedding": model.get_num_params_non_embedding(),
        "flops_per_token": flops.flops_per_token(model_config),
        "tokens_per_step": config.tokens_per_step(model_config.block_size),
    }


def train(
    model_config: ModelArchitectureConfig,
    config: TrainConfig,
    derived: dict[str, int],
    world: dist.World,
    device: torch.device,
    stop: dist.StopSignals,
    argv: Sequence[str],
) -> int:
    """The whole run of one process; returns its exit code."""
    resolved = {"model": asdict(model_config), "train": asdict(config)}
    tokens_per_step = derived["tokens_per_step"]
    # Build. Whatever is wrong with the input ends here, before a file is touched.
    with user_errors():
        dtype = dist.select_dtype(config.dtype, device)
        check_fp8(config, model_config, device)
        if config.dashboard:
            check_rich()
        strategy = build_strategy(config, world, device, dtype)
        out_dir = metrics.writable_folder(config.out_dir)
        prepare_embedded(config.dataset, world)
        dataset = Dataset(config, model_config, world, ROOT / "data")
        data, loader = dataset.record(config.max_iters), dataset.loader
        sampler = TextSampler(config, dataset.folders[0], model_config.vocab_size) if config.sample_prompt else None

        source = None if config.init_from == "scratch" else checkpoint.find_checkpoint(config.out_dir, world=world)
        if source is None and config.init_from == "resume":
            raise ValueError(f"init_from='resume', but {config.out_dir}/checkpoints holds none: pass --init_from=auto")
        from_hf = source is None and config.init_from.startswith("hf:")
        state: dict[str, Any] = {"step": 0, "trained_s": 0.0, "energy_j": 0.0, "best": None, "guard": None}
        state["wandb_run_id"] = secrets.token_hex(4)
        if source is not None:
            saved_state, saved_config = checkpoint.load_state(source)
            checkpoint.check_resumable(source, saved_state, saved_config, resolved, data["fingerprint"])
            state |= saved_state
        instruments.check_profile(config.profile, config.max_iters - state["step"])
        compile_problem = dist.compile_problem(device) if config.compile else None
        kernel, kernels_ms = choose_kernel(model_config, config, device, dtype, world, state.get("attention_backend"))
        with torch.device("meta"):
            model = ConfigurableGPT(replace(model_config, attention_backend=kernel))
        seed = config.seed if source is None and not from_hf else None
        forward = strategy.wrap(model, seed, compile=config.compile and compile_problem is None)
        if from_hf:
            from inference.hf import load_hf

            load_hf(config.init_from.removeprefix("hf:"), model_config, into=model, assign=assign_shard)
        optimizers = strategy.optimizers(model, config)
        scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
        if source is not None:
            checkpoint.load_weights(source, model)
            checkpoint.load_optimizers(source, model, optimizers)
            scaler.load_state_dict(state["grad_scaler"])
        space_note = None
        if not config.eval_only:
            space_note = checkpoint.check_space(out_dir, state_bytes(optimizers), config.keep_last)

    notes = model_config.notes() + config.notes() + dataset.notes + ([space_note] if space_note else [])
    if world.size == 1 and (config.use_zero1 or config.use_fsdp):
        notes.append(f"{'use_zero1' if config.use_zero1 else 'use_fsdp'}=True shards over processes; here there is one")
    if config.document_masking and device.type == "cuda" and model_config.attention_backend not in ("auto", "manual"):
        notes.append(f"attention_backend={model_config.attention_backend!r} gives way to flex attention: document_masking=True")
    if config.dashboard and not sys.stderr.isatty():
        notes.append("dashboard=True gives way to lines: the output is no terminal")
    if compile_problem:
        notes.append(f"compile=True is switched off: {compile_problem}")
    if world.rank == 0:
        out_dir.mkdir(parents=True, exist_ok=True)
        if source is None and not config.eval_only and (aside := checkpoint.set_aside_checkpoints(out_dir)):
            notes.append(f"the checkpoints of an earlier run are now in {aside}")
        for file in tokenizer_files(dataset.folders[0]):
            shutil.copy(file, out_dir)
    hardware = {
        "device": device.type,
        "device_name": dist.device_name(device),
        "world_size": world.size,
        "strategy": strategy.name,
        "dtype": str(dtype).removeprefix("torch."),
        "peak_flops_per_s": flops.peak_flops_per_s(dist.device_name(device)),
        "matmul_flops_per_s": instruments.matmul_flops_per_s(device, dtype),
        "attention_backend": kernel,
        "attention_ms": kernels_ms,  # of a forward and backward pass of one layer; {} where nothing had to be chosen
    }
    run_log = metrics.RunLog(out_dir, world.rank)
    run_log.write(
        "run_start",
        command=[Path(sys.argv[0]).name, *argv],
        config=resolved,
        model={"architecture_name": model_config.get_architecture_name(), **derived},
        data=data,
        hardware=hardware,
        versions=metrics.versions(),
        git=metrics.git_state(),
        start_step=state["step"],
    )
    backends = metrics.Backends(config, resolved, state["wandb_run_id"], world.rank)
    show = Dashboard if config.dashboard and sys.stderr.isatty() else metrics.Progress
    progress = show(state["step"], config.max_iters, world.rank)
    progress.say(f"{model_config.summary()}\n{derived['params']:,} parameters, {tokens_per_step:,} tokens a step")
    if kernel != model_config.attention_backend:
        progress.say(f"attention_backend={kernel!r}; ms a layer: {kernels_ms or 'measured when the run began'}")
    processes = f"{world.size} processes ({strategy.name}), " if world.size > 1 else ""
    progress.say(f"{processes}{hardware['device_name']}, {hardware['dtype']}; run log {run_log.path}")
    for s in data["sources"]:
        progress.say(f"{s['dataset']}: {s['tokens']:,} tokens, weight {s['weight']:.4g}, {s['epochs']:.3g} epochs in all")
    for note in notes:
        progress.say(f"note: {note}")
    if source is not None:
        progress.say(f"going on from {source}; --init_from=scratch starts over")

    # The loop: evaluate, save, stop, step, log.
    autocast = torch.autocast(device.type, dtype) if dtype != torch.float32 else contextlib.nullcontext()
    start_step = step = state["step"]
    saved_step = step if source is not None else None
    checkpoints = checkpoint.Checkpoints(out_dir, world, config, state["best"], saved_step)
    guard = StepGuard(config, device, state["guard"])
    batches = loader.prefetched(step, device)
    timer, energy = metrics.StepTimer(state["trained_s"]), metrics.EnergyMeter(device, world, state["energy_j"])
    profile = instruments.StepProfile(config.profile if world.rank == 0 else 0, out_dir / "profile", device)
    graphs = None
    checkpoint_interval = config.checkpoint_interval or config.eval_interval
    stopping = dist.StopVote(world, stop)
    reason = "done"
    try:
        while True:
            last = step >= config.max_iters
            losses: dict[str, float | None] = {}

            eval_due = config.eval_only or (step != saved_step and (last or step % config.eval_interval == 0))
            if not stopping() and eval_due:
                for split in ("train", "val"):
                    losses[split] = evaluate(model, dataset.evaluation_batches(split), device, autocast, world, stopping)
                if not stopping.agreed:
                    bpb = bits_per_byte(losses["val"], data["bytes_per_token"])
                    result = {"train_loss": losses["train"], "val_loss": losses["val"], "val_bits_per_byte": bpb}
                    run_log.write("eval", step=step, tokens=step * tokens_per_step, **result)
                    backends.write("eval", step, **result)
                    in_bytes = "" if bpb is None else f", {bpb:.4f} bits per byte"
                    progress.say(f"step {step}: train loss {losses['train']:.4f}, val loss {losses['val']:.4f}{in_bytes}")
                    if sampler is not None:
                        text = sampler(model, autocast)
                        run_log.write("sample", step=step, prompt=config.sample_prompt, text=text)
                        backends.write("sample", step, text=text)
                        progress.say(f"sample: {config.sample_prompt}{text}")

            ending = last or bool(stopping.agreed)
            save_due = ending or (step > start_step and step % checkpoint_interval == 0)
            if save_due and step != saved_step and not config.eval_only:
                state = {
                    "step": step,
                    "tokens": step * tokens_per_step,
                    "trained_s": timer.trained_s,
                    "energy_j": energy(),
                    "val_loss": losses.get("val"),
                    "grad_scaler": scaler.state_dict(),
                    "guard": guard.state(),
                    "wandb_run_id": state["wandb_run_id"],
                    "attention_backend": kernel if model_config.attention_backend == "auto" else None,
                    "data": data,
                }
                checkpoints.save(strategy.tensors(model, optimizers), state, resolved, wait=ending)
                saved_step = step
            for event in checkpoints.events():
                run_log.write("checkpoint", **event)
                if "failed" in event:
                    progress.say(f"warning: {event['failed']}; older checkpoints stay, the next is tried at its time")

            if stopping.agreed:
                reason = f"signal {stopping.agreed}"
            if ending or config.eval_only:
                break

            timer.start()
            lr = learning_rate_at(step, config)
            set_learning_rate(optimizers, lr)
            step_loss = torch.zeros((), device=device)
            for micro_step in loader.own_micro_steps:
                batch = next(batches)
                if model_config.dropout:
                    torch.manual_seed(dropout_seed(config.seed, step, micro_step))
                with strategy.gradient_sync(model, last=micro_step == loader.own_micro_steps[-1]):
                    with autocast:
                        _, loss = forward(*batch)
                    # Every window is full, so the mean over micro-batches is the mean over the step's tokens. Ranks' gradients
                    # are averaged, their losses summed.
                    loss = loss / config.gradient_accumulation_steps
                    scaler.scale(loss * world.size).backward()
                step_loss += loss.detach()
            for optimizer in optimizers:
                scaler.unscale_(optimizer)
            grad_norm = strategy.clip(model, config.grad_clip or float("inf"))
            guard.step(optimizers, guard.check(grad_norm))
            for optimizer in optimizers:
                optimizer.zero_grad(set_to_none=strategy.frees_gradients)
            scaler.update()
            step += 1

            logging_step = step % config.log_interval == 0 or step in (start_step + 1, config.max_iters)
            if logging_step:
                loss_now, norm_now = world.sum(step_loss).item(), grad_norm.item()  # waits for the device: the clock is right
            timer.stop(steps=1)
            if (table := profile.step()) is not None:
                progress.say(table)
            if logging_step:
                dt_ms = timer.lap_ms()
                tokens_per_s = tokens_per_step / dt_ms * 1e3
                flops_per_s = derived["flops_per_token"] * tokens_per_s / world.size
                peak = hardware["peak_flops_per_s"]
                if graphs is not None and instruments.compiled_graphs() > graphs:
                    progress.say("note: something was compiled again since the last line; TORCH_LOGS=recompiles says what")
                graphs = instruments.compiled_graphs()
                guarded = guard.state()
                m = {
                    "loss": loss_now,
                    "lr": lr,
                    "grad_norm": norm_now,
                    "tokens": step * tokens_per_step,
                    "dt_ms": dt_ms,
                    "tokens_per_s": tokens_per_s,
                    "mfu": flops_per_s / peak if peak else None,
                    "of_matmul_rate": flops_per_s / hardware["matmul_flops_per_s"],
                    "compiled_graphs": graphs,
                    "memory_gb": metrics.memory_gb(device),
                    "skipped_steps": int(guarded["skipped"]),
                }
                if (energy_j := energy()) is not None:
                    m["energy_j"] = energy_j
                run_log.write("train", step=step, **m)
                progress.train(step, m)
                backends.write("train", step, **m)
                if guarded["bad_in_a_row"] >= config.max_bad_steps:
                    reason = f"error: {guarded['bad_in_a_row']:.0f} steps in a row were skipped, gradient norm {norm_now:.3g}"
                    checkpoints.finish()  # an asynchronous one must not be cut off
                    break
    except BaseException as error:
        reason = f"error: {type(error).__name__}: {error}"
        raise
    finally:
        run_log.write("run_end", reason=reason, step=step, tokens=step * tokens_per_step, wall_s=timer.trained_s)
        batches.close()
        progress.close()
        backends.close()
    if reason == "done":
        if step == start_step and not config.eval_only:
            progress.say(
                f"{out_dir} is at step {step} of {config.max_iters}: nothing to train; --init_from=scratch starts over"
            )
        return 0
    if reason.startswith("error"):
        progress.say(f"{reason}; the checkpoints in {out_dir} are from before: look at the data, lower learning_rate, go on")
        return 1
    progress.say(f"stopped by {reason} at step {step}; the same command goes on from there")
    return EXIT_STOPPED


def prepare_embedded(dataset: str, world: dist.World) -> None:
    """The corpus that is always there is prepared on first use."""
    if "python_stdlib" in parse_mixture(dataset, ROOT / "data")[0]:
        if world.rank == 0 and not (ROOT / "data" / "python_stdlib" / "meta.json").is_file():
            from tokenization import embedded

            print("preparing data/python_stdlib", flush=True)
            embedded.prepare(ROOT / "data" / "python_stdlib")
        world.barrier()


if __name__ == "__main__":
    dist.exit_with(main, sys.argv[1:])
