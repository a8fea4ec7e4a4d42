"""Before a run: will it fit, how long does it take, what does it cost.

    python plan.py config/full_qwen3_1.5b.py --gpus=2 --gpu=A6000
    python plan.py config/full_qwen3_1.5b.py --gpus=8 --gpu=B200 --mfu=0.4 --tokens=6e9 --price_per_gpu_hour=4
    python plan.py config/full_qwen3_1.5b.py --gpus=8 --gpu=H100 --measured=out-qwen3-1.5b     # the MFU of a run's log
    python plan.py config/full_qwen3_1.5b.py --gpu=H200 --budget=1e21        # or --budget=500gpu-hours --mfu=0.4
    python plan.py config/full_llama3_8b.py --gpus=4 --gpu=mine --peak_tflops=400 --memory_gb=96 --json

Flags of train.py change the configuration. Memory is that of eager execution on CUDA, to which
--fragmentation and --context_gb are added. docs/PLAN.md says what is counted and what is assumed."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from analysis.runs import read_runs
from analysis.selection import find_runs
from base import cli, fields
from base.errors import InputError, input_errors
from base.text import log_to_terminal
from model_config import ModelArchitectureConfig
from planning.cost import measured_mfu
from planning.options import PlanOptions
from planning.plan import make_plan
from planning.report import report
from training.config import TrainConfig, load_config_and

ROOT = Path(__file__).resolve().parent
RECORDS = (PlanOptions, ModelArchitectureConfig, TrainConfig)


def main(argv: Sequence[str]) -> int:
    log_to_terminal()
    with cli.reader_may_leave(), input_errors():
        if cli.wants_help(argv):
            print(cli.help_text(__doc__, *RECORDS))
            return 0
        c, train, options = parse(argv)
        plan = make_plan(c, train, options, mfu_of(options), ROOT / "data")
        print(json.dumps(plan, indent=2) if options.json else "\n".join(report(plan)))
    return 0


def parse(argv: Sequence[str]) -> tuple[ModelArchitectureConfig, TrainConfig, PlanOptions]:
    """plan.py's own flags, and all others for the configuration."""
    c, train, options = load_config_and(argv, PlanOptions)
    hints = {name: hint for kind in RECORDS for name, hint in fields.types(kind).items()}
    words, flags = cli.parse_flags(argv, hints)
    if not words and flags.keys() <= set(fields.names(PlanOptions)):
        raise InputError("which run? python plan.py config/full_qwen3_1.5b.py --gpus=8 --gpu=B200")
    return c, train, options


def mfu_of(o: PlanOptions) -> tuple[float | None, str | None]:
    """The MFU that is stated, or that of the run that is named, and its source in words."""
    if o.mfu is not None:
        return o.mfu, "stated"
    if o.measured is None:
        return None, None
    run = read_runs(find_runs([o.measured], None)[0])[-1]
    stated_peak = None if o.peak_tflops is None else 1e12 * o.peak_tflops
    return measured_mfu(run.start, run.trains, f"--measured={o.measured}", stated_peak)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
