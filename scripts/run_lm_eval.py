"""lm-evaluation-harness on an exported model.

    pip install "lm_eval[hf]"
    python scripts/export_hf.py --out_dir=out --to=exported
    python scripts/run_lm_eval.py --model=exported --tasks=hellaswag,arc_easy,lambada_openai --out=results.json

Task names and few-shot counts are the harness's own; its data comes from the hub, or with
--include_path=DIR from task files of yours."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from base import cli, fields
from base.errors import InputError, MissingPackage, one_line, writing
from base.fields import knob
from base.files import json_bytes, writable_folder, write_atomically
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
    check_place(config.out)
    found = find_model(model=config.model)
    tasks = [task.strip() for task in config.tasks.split(",")]
    with harness_errors("its tasks cannot be read", "check --include_path"):
        manager = TaskManager(include_path=config.include_path)
        unknown = [task for task in tasks if not manager.match_tasks([task])]
    if unknown:
        raise InputError(
            f"tasks={unknown[0]!r} is not known to lm_eval {lm_eval.__version__}: see `lm_eval ls tasks`"
        )
    name = str(dtype).removeprefix("torch.")
    with harness_errors(f"{config.tasks} cannot be evaluated", "check the tasks, their data and the network"):
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
        with writing(config.out):
            write_atomically(config.out, as_json(results))


def check_place(out: str | None) -> None:
    """Raises InputError where no file can be written, before hours are spent on its content."""
    if out is not None:
        parent = writable_folder(str(Path(out).absolute().parent), "the folder of --out")
        if not parent.is_dir():
            raise InputError(f"{parent} is not a folder: make it, or choose another --out")
        if Path(out).is_dir():
            raise InputError(f"--out={out} is a folder: name a file in it")


@contextlib.contextmanager
def harness_errors(what: str, what_to_do: str) -> Iterator[None]:
    """Around calls of lm-evaluation-harness, which runs task files and fetches data: whatever it raises becomes an
    InputError."""
    try:
        yield
    except Exception as error:
        reason = f"{type(error).__name__}: {one_line(error)}"[:300]
        raise InputError(f"lm_eval: {what} ({reason}): {what_to_do}") from error


def as_json(results: Any) -> bytes:
    """The harness's results, in which keys and values of any type may be."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {str(key): plain(inner) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [plain(inner) for inner in value]
        return value if value is None or isinstance(value, str | int | float) else str(value)

    return json_bytes(plain(results))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
