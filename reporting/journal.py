"""What happens in a run, said once: from here it goes to the run log, the terminal and the log backends.

    journal = Journal(run, ["train.py", …])      # opens the run log
    journal.introduce(notes)
    journal.train(result)                        # the step that run.step() has just made
    journal.evaluation({"train": 2.1, "val": 2.3})
    journal.end("done")

Every rank calls it; that of rank 0 alone says anything.
"""

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from base.provenance import git_state, versions
from hardware.device import memory_gb
from reporting import instruments
from reporting.backends import Backends
from reporting.dashboard import Dashboard
from reporting.progress import Progress
from reporting.run_log import RunLog
from training.evaluate import bits_per_byte
from training.run import Run
from training.sizes import derived_figures
from training.step import StepResult

BUSY = 4.0  # times its own processor time: a step that waits so long for a CPU is worth a word


class Journal:
    def __init__(self, run: Run, command: Sequence[str]) -> None:
        """`command` is what started this session of the run."""
        self.run, config, world = run, run.config, run.world
        name = run.model_config.get_architecture_name()
        self.model = {"architecture_name": name, **derived_figures(run.model_config, config)}
        self.hardware = instruments.hardware(run.device, run.dtype, config.fp8 != "none") | {
            "world_size": world.size,
            "strategy": run.strategy.name,
            "attention_backend": run.attention_backend,
            "attention_ms": run.attention_ms,
        }
        self.run_log = RunLog(run.out_dir, world.rank)
        self.run_log.write(
            "run_start",
            run_id=run.state.wandb_run_id,
            session=run.state.session,
            command=list(command),
            config=run.resolved,
            model=self.model,
            data=run.state.data,
            measurement=run.state.measurement,
            hardware=self.hardware,
            versions=versions(),
            git=git_state(),
            start_step=run.start_step,
        )
        self.backends = Backends(config, run.resolved, run.state.wandb_run_id, run.start_step, world.rank)
        show = Dashboard if config.dashboard and sys.stderr.isatty() else Progress
        self.progress = show(run.start_step, config.max_iters, world.rank)
        self._graphs: int | None = None
        self._busy = False  # whether that was said

    def say(self, line: str) -> None:
        """To the terminal alone."""
        self.progress.say(line)

    def introduce(self, notes: Iterable[str]) -> None:
        """The run in a few lines, and what its user should know."""
        run, hardware, size = self.run, self.hardware, self.hardware["world_size"]
        self.say(run.model_config.summary())
        self.say(f"{self.model['params']:,} parameters, {run.tokens_per_step:,} tokens a step")
        processes = f"{size} processes ({hardware['strategy']}), " if size > 1 else ""
        self.say(f"{processes}{hardware['device_name']}, {hardware['dtype']}; run log {self.run_log.path}")
        for s in run.state.data["sources"]:
            seen = f"weight {s['weight']:.4g}, {s['epochs']:.3g} epochs in all"
            self.say(f"{s['dataset']}: {s['tokens']:,} tokens, {seen}")
        for note in notes:
            self.say(f"note: {note}")
        if run.source is not None:
            self.say(f"resumed from {run.source}; --init_from=scratch starts over")

    def evaluation(self, losses: Mapping[str, float]) -> None:
        """losses in nats a token, of "train" and "val"."""
        state = self.run.state
        bpb = bits_per_byte(losses["val"], state.data["bytes_per_token"])
        result = {"train_loss": losses["train"], "val_loss": losses["val"], "val_bits_per_byte": bpb}
        self.run_log.write("eval", step=state.step, tokens=state.tokens, **result)
        self.backends.write("eval", state.step, **result)
        in_bytes = "" if bpb is None else f", {bpb:.4f} bits per byte"
        self.say(
            f"step {state.step}: train loss {losses['train']:.4f}, val loss {losses['val']:.4f}{in_bytes}"
        )

    def sample(self, prompt: str, text: str) -> None:
        step = self.run.state.step
        self.run_log.write("sample", step=step, prompt=prompt, text=text)
        self.backends.write("sample", step, text=text)
        self.say(f"sample: {prompt}{text}")

    def checkpoints(self) -> None:
        """What became of the saves since the last call."""
        for event in self.run.checkpoints.events():
            self.run_log.write("checkpoint", **event)
            if "failed" in event:
                self.say(f"warning: {event['failed']}; older checkpoints stay, the next is tried at its time")

    def train(self, result: StepResult) -> None:
        """The steps since the last call, the last of which gave `result`."""
        run, state = self.run, self.run.state
        graphs = instruments.compiled_graphs()
        if self._graphs is not None and graphs > self._graphs:
            self.say(
                "note: something was compiled again since the last line; TORCH_LOGS=recompiles says what"
            )
        self._graphs = graphs
        self._note_if_busy()
        dt_ms, energy_j = run.timer.lap_ms(), run.energy()
        tokens_per_s = run.tokens_per_step / dt_ms * 1e3
        flops_per_s = (
            self.model["flops_per_token"] * tokens_per_s / self.hardware["world_size"]
        )  # of one device
        peak = self.hardware["peak_flops_per_s"]
        m: dict[str, Any] = {
            "loss": result.loss,
            "lr": result.lr,
            "grad_norm": result.grad_norm,
            "tokens": state.tokens,
            "dt_ms": dt_ms,
            "tokens_per_s": tokens_per_s,
            "mfu": flops_per_s / peak if peak else None,
            "compiled_graphs": graphs,
            "memory_gb": memory_gb(run.device),
            "skipped_steps": run.train_step.guard.skipped(),
        }
        m |= {"z_loss": result.z_loss} if run.model_config.z_loss else {}
        m |= {} if energy_j is None else {"energy_j": energy_j}
        self.run_log.write("train", step=state.step, **m)
        self.progress.train(state.step, m)
        self.backends.write("train", state.step, **m)

    def _note_if_busy(self) -> None:
        """Says once that steps wait for a CPU, which on few cores with as many threads makes them ten times as long:
        all wait for the thread that does not run."""
        waited, threads = self.run.timer.waited(), torch.get_num_threads()
        if self.run.device.type != "cpu" or self._busy or waited < BUSY:
            return
        self._busy = True
        fewer = (
            f"; with fewer than {threads} threads, OMP_NUM_THREADS=1, it may be faster" if threads > 1 else ""
        )
        self.say(f"note: a step takes {waited:.0f} times its own processor time: the machine is busy{fewer}")

    def end(self, reason: str) -> None:
        state, wall_s = self.run.state, self.run.timer.trained_s
        self.run_log.write("run_end", reason=reason, step=state.step, tokens=state.tokens, wall_s=wall_s)
        self.progress.close()
        self.backends.close()
