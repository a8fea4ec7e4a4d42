"""The house of the design: imports go strictly down, and nothing executable is loaded."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# Rooms from the ground up; modules of the root stand beside the rooms. A file imports from rooms below its own, and inside
# its own room never in a circle.
FLOORS = [
    ["base"],
    ["hardware"],
    ["model_config"],
    ["operators"],
    ["model_components"],
    ["model_builder"],
    ["tokens"],
    ["tokenization"],
    ["training"],
    ["adapters"],
    ["inference", "reporting"],
    ["serving", "analysis", "planning"],
    ["train", "sample", "serve", "compare_architectures", "plan", "scripts", "benchmarks", "recipes", "data"],
]
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
FILES = [
    f.relative_to(ROOT)
    for f in sorted(ROOT.rglob("*.py"))
    if f.relative_to(ROOT).parts[0] not in (".venv", "tests", "config")
    and not f.relative_to(ROOT).parts[0].startswith("out")
]


def room_of(module: str) -> str:
    return module.partition(".")[0]


def module_of(file: Path) -> str:
    return ".".join(file.with_suffix("").parts)


def imports_of(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse((ROOT / file).read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


MODULES = {module_of(f) for f in FILES}
MODEL_FILES = [f for f in FILES if room_of(module_of(f)).startswith(("model_", "operators"))]


def imported_modules(file: Path) -> set[str]:
    return {name for name in imports_of(file) if name in MODULES} - {module_of(file)}


def test_the_compiler_is_not_loaded_by_who_does_not_compile():
    """It is most of what a program would wait for before its first word. And the mark that stands in for it is the
    one that torch sets."""
    import torch

    assert torch.compiler.assume_constant_result(lambda: 0)._dynamo_marked_constant is True
    code = "import sys, sample, plan, train; print('torch._dynamo' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr


def test_the_table_has_every_room():
    assert {room_of(module) for module in MODULES} <= set(FLOOR_OF)


@pytest.mark.parametrize("file", FILES, ids=str)
def test_imports_go_strictly_down(file):
    own = room_of(module_of(file))
    for name in imported_modules(file):
        room = room_of(name)
        above = FLOOR_OF[room] >= FLOOR_OF[own]
        assert room == own or not above, (
            f"{file} (floor {FLOOR_OF[own]}) imports {name} (floor {FLOOR_OF[room]})"
        )


def test_no_import_goes_in_a_circle():
    """Inside a room too: there is an order in which each file imports only what came before it."""
    waiting = {module_of(f): imported_modules(f) for f in FILES}
    while waiting:
        ready = {module for module, needs in waiting.items() if not needs & waiting.keys()}
        assert ready, f"a circle among {sorted(waiting)}"
        waiting = {module: needs for module, needs in waiting.items() if module not in ready}


@pytest.mark.parametrize("file", MODEL_FILES, ids=str)
def test_the_model_knows_no_training(file):
    below = {"base", "hardware", "operators", "model_config", "model_components"}
    assert {room_of(name) for name in imported_modules(file)} <= below


@pytest.mark.parametrize(
    "module", ["model_config", "tokenization.command"]
)  # the latter starts in every tokenizing process
def test_no_torch_where_none_is_needed(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_configs_import_nothing():
    for file in (ROOT / "config").glob("*.py"):
        assert not imports_of(file.relative_to(ROOT)), file


def test_nothing_executable_is_loaded():
    unsafe = re.compile(
        r"\bpickle\b(?!s)|torch\.load\(|trust_remote_code|weights_only|(?<![.\w])(?:eval|exec)\(|\bshelve\b|\bmarshal\b"
    )
    hits = {
        str(f): m.group()
        for f in FILES
        if (m := unsafe.search(re.sub(r'"""[\s\S]*?"""|#.*', "", (ROOT / f).read_text())))
    }
    # The config file that the user names; our rival in a benchmark, which reads what the benchmark itself has
    # written a moment before. nanoGPT's meta.pkl goes through tokens/plain_values.py, which knows values only
    assert hits == {
        "training/config.py": "exec(",
        "benchmarks/checkpoint.py": "torch.load(",
    }


def test_no_file_hides_a_module_that_it_imports():
    for file in FILES:
        tops = {name.partition(".")[0] for name in imports_of(file)}
        if file.parent != Path() and file.parts[0] in (
            "data",
            "benchmarks",
            "scripts",
        ):  # scripts: their folder comes first on sys.path
            hidden = {f.stem for f in (ROOT / file.parent).glob("*.py")} & (
                tops | set(sys.stdlib_module_names)
            )
            assert not hidden, f"{file.parent} hides {hidden}"
