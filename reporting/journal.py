"""What happens in a run, said once: from here it goes to the run log, the terminal and the log backends.

    journal = Journal(config, world, out_dir, about, run_id)        # about: the fields of the event run_start
    journal.train(step, loss=2.1, grad_norm=0.3, lr=3e-4, dt_ms=120.0, skipped_steps=0, energy_j=None, device=device)
    journal.evaluation(step, {"train": 2.1, "val": 2.3})
    journal.end("done", step, trained_s)

Every rank calls it; that of rank 0 alone says anything.
"""

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from reporting import instruments
from reporting.backends import Backends
from reporting.dashboard import Dashboard
from reporting.meters import memory_gb
from reporting.progress import Progress
from reporting.run_log import RunLog
from training.config import TrainConfig
from training.evaluate import bits_per_byte
from training.world import World


class Journal:
    def __init__(
        self, config: TrainConfig, world: World, out_dir: Path, about: Mapping[str, Any], run_id: str
    ) -> None:
        """`run_id` names the run to the log backends, whatever session of it this is."""
        self.model, self.data, self.hardware = about["model"], about["data"], about["hardware"]
        self.tokens_per_step = self.model["tokens_per_step"]
        self.run_log = RunLog(out_dir, world.rank)
        self.run_log.write("run_start", **about)
        self.backends = Backends(config, about["config"], run_id, world.rank)
        show = Dashboard if config.dashboard and sys.stderr.isatty() else Progress
        self.progress = show(about["start_step"], config.max_iters, world.rank)
        self._graphs: int | None = None

    def say(self, line: str) -> None:
        """To the terminal alone."""
        self.progress.say(line)

    def introduce(self, summary: str, notes: Iterable[str]) -> None:
        """The run in a few lines; `summary` is the model's."""
        hardware, size = self.hardware, self.hardware["world_size"]
        self.say(f"{summary}\n{self.model['params']:,} parameters, {self.tokens_per_step:,} tokens a step")
        processes = f"{size} processes ({hardware['strategy']}), " if size > 1 else ""
        self.say(f"{processes}{hardware['device_name']}, {hardware['dtype']}; run log {self.run_log.path}")
        for s in self.data["sources"]:
            self.say(
                f"{s['dataset']}: {s['tokens']:,} tokens, weight {s['weight']:.4g}, {s['epochs']:.3g} epochs in all"
            )
        for note in notes:
            self.say(f"note: {note}")

    def evaluation(self, step: int, losses: Mapping[str, float]) -> None:
        """losses in nats a token, of "train" and "val"."""
        bpb = bits_per_byte(losses["val"], self.data["bytes_per_token"])
        result = {"train_loss": losses["train"], "val_loss": losses["val"], "val_bits_per_byte": bpb}
        self.run_log.write("eval", step=step, tokens=step * self.tokens_per_step, **result)
        self.backends.write("eval", step, **result)
        in_bytes = "" if bpb is None else f", {bpb:.4f} bits per byte"
        self.say(f"step {step}: train loss {losses['train']:.4f}, val loss {losses['val']:.4f}{in_bytes}")

    def sample(self, step: int, prompt: str, text: str) -> None:
        self.run_log.write("sample", step=step, prompt=prompt, text=text)
        self.backends.write("sample", step, text=text)
        self.say(f"sample: {prompt}{text}")

    def checkpoint(self, event: Mapping[str, Any]) -> None:
        """What became of one: an event of Checkpoints.events."""
        self.run_log.write("checkpoint", **event)
        if "failed" in event:
            self.say(f"warning: {event['failed']}; older checkpoints stay, the next is tried at its time")

    def train(
        self,
        step: int,
        *,
        loss: float,
        grad_norm: float,
        lr: float,
        dt_ms: float,
        skipped_steps: int,
        energy_j: float | None,
        device: torch.device,
    ) -> None:
        """The last steps up to `step`: dt_ms is the mean time of one."""
        graphs = instruments.compiled_graphs()
        if self._graphs is not None and graphs > self._graphs:
            self.say(
                "note: something was compiled again since the last line; TORCH_LOGS=recompiles says what"
            )
        self._graphs = graphs
        tokens_per_s = self.tokens_per_step / dt_ms * 1e3
        flops_per_s = (
            self.model["flops_per_token"] * tokens_per_s / self.hardware["world_size"]
        )  # of one device
        peak = self.hardware["peak_flops_per_s"]
        m = {
            "loss": loss,
            "lr": lr,
            "grad_norm": grad_norm,
            "tokens": step * self.tokens_per_step,
            "dt_ms": dt_ms,
            "tokens_per_s": tokens_per_s,
            "mfu": flops_per_s / peak if peak else None,
            "of_matmul_rate": flops_per_s / self.hardware["matmul_flops_per_s"],
            "compiled_graphs": graphs,
            "memory_gb": memory_gb(device),
            "skipped_steps": skipped_steps,
        } | ({} if energy_j is None else {"energy_j": energy_j})
        self.run_log.write("train", step=step, **m)
        self.progress.train(step, m)
        self.backends.write("train", step, **m)

    def end(self, reason: str, step: int, trained_s: float) -> None:
        self.run_log.write(
            "run_end", reason=reason, step=step, tokens=step * self.tokens_per_step, wall_s=trained_s
        )
        self.progress.close()
        self.backends.close()
