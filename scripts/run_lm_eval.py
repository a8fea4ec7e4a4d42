"""lm-evaluation-harness on an exported model.

    pip install "lm_eval[hf]"
    python scripts/export_hf.py --out_dir=out --to=exported
    python scripts/run_lm_eval.py --model=exported --tasks=hellaswag,arc_easy,lambada_openai --out=results.json

Task names and few-shot counts are the harness's own; its data comes from the hub, or with
--include_path=DIR from task files of yours."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from base import cli, fields
from base.errors import InputError, MissingPackage, writing
from base.fields import knob
from base.files import write_atomically
from hardware.device import select_device, select_dtype
from inference.models import find_model


@dataclass(kw_only=True)
class EvalConfig:
    model: str = knob("", "a folder of Hugging Face's layout, or a hub id")
    tasks: str = knob(
        "hellaswag,arc_easy,arc_challenge,piqa,winogrande,lambada_openai", "separated by commas"
    )
    num_fewshot: int | None = knob(None, "none: each task's own", bounds="[0, inf)")
    limit: int | None = knob(None, "examples of a task; none: all", bounds="[1, inf)")
    batch_size: int = knob(8, "examples at a time", bounds="[1, inf)")
    device: str = knob("auto", "auto, cpu, cuda, cuda:N or mps")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = knob("auto", "of the weights")
    include_path: str | None = knob(None, "a folder of more task files")
    out: str | None = knob(None, "the harness's results as JSON")

    def __post_init__(self) -> None:
        fields.check(self)
        if not self.model:
            raise InputError("--model=DIR_OR_ID is missing")


def main(argv: Sequence[str]) -> int:
    return cli.run(argv, __doc__, EvalConfig, evaluate)


def evaluate(config: EvalConfig) -> None:
    device = select_device(config.device)
    dtype = select_dtype(config.dtype, device)
    try:
        import lm_eval
        import lm_eval.models.huggingface  # needs what the extra [hf] brings
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise MissingPackage(
            f'lm-evaluation-harness is missing ({error}): pip install "lm_eval[hf]"'
        ) from None
    if config.include_path is not None and not Path(config.include_path).is_dir():
        raise InputError(f"include_path={config.include_path} is not a folder")
    if config.out is not None and not Path(config.out).absolute().parent.is_dir():
        raise InputError(
            f"{Path(config.out).absolute().parent} is not a folder: make it, or choose another --out"
        )
    found = find_model(model=config.model)
    manager = TaskManager(include_path=config.include_path)
    tasks = [task.strip() for task in config.tasks.split(",")]
    if unknown := [task for task in tasks if not manager.match_tasks([task])]:
        raise InputError(
            f"tasks={unknown[0]!r} is not known to lm_eval {lm_eval.__version__}: see `lm_eval ls tasks`"
        )
    name = str(dtype).removeprefix("torch.")
    results: dict[str, Any] = lm_eval.simple_evaluate(
        model="hf",
        model_args={"pretrained": str(found.path), "dtype": name},
        tasks=tasks,
        num_fewshot=config.num_fewshot,
        limit=config.limit,
        batch_size=config.batch_size,
        device=str(device),
        task_manager=manager,
        log_samples=False,
    )
    print(lm_eval.utils.make_table(results))
    if config.out is not None:
        content = json.dumps(results, indent=2, default=str) + "\n"
        with writing(config.out):
            write_atomically(config.out, content.encode())


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
