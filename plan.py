"""Before a run: will it fit, how long does it take, what does it cost.

    python plan.py config/full_qwen3_1.5b.py --gpus=2 --gpu=A6000
    python plan.py config/full_qwen3_1.5b.py --gpus=8 --gpu=B200 --mfu=0.4 --tokens=6e9 --price_per_gpu_hour=4
    python plan.py config/full_qwen3_1.5b.py --gpus=8 --gpu=H100 --measured=out-qwen3-1.5b     # the MFU of a run's log
    python plan.py config/full_qwen3_1.5b.py --gpu=H200 --budget=1e21        # or --budget=500gpu-hours --mfu=0.4
    python plan.py config/full_llama3_8b.py --gpus=4 --gpu=mine --peak_tflops=400 --memory_gb=96 --json

Flags of train.py change the configuration. Memory is that of eager execution on CUDA; to it are added
--fragmentation (0.05 of it) and --context_gb (1). --json prints the same numbers as JSON. docs/PLAN.md says
what is counted and what is assumed."""

import json
import logging
import sys
from collections.abc import Sequence

from base import cli, fields
from base.errors import InputError, input_errors
from model_config import ModelArchitectureConfig
from planning.options import PlanOptions
from planning.plan import make_plan
from planning.report import report
from training.config import TrainConfig, load_config_and


def main(argv: Sequence[str]) -> int:
    logging.basicConfig(format="%(message)s")
    with cli.reader_may_leave(), input_errors():
        if cli.wants_help(argv):
            print(cli.help_text(__doc__, PlanOptions, ModelArchitectureConfig, TrainConfig))
            return 0
        c, train, options = parse(argv)
        plan = make_plan(c, train, options)
        print(json.dumps(plan, indent=2) if options.json else "\n".join(report(plan)))
    return 0


def parse(argv: Sequence[str]) -> tuple[ModelArchitectureConfig, TrainConfig, PlanOptions]:
    """Flags of plan.py for itself, all others for the configuration."""
    c, train, options = load_config_and(argv, PlanOptions)
    if all(word.partition("=")[0].removeprefix("--") in fields.names(PlanOptions) for word in argv):
        raise InputError("which run? python plan.py config/full_qwen3_1.5b.py --gpus=8 --gpu=B200")
    return c, train, options


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
