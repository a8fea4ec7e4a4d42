"""The house of the design: imports go strictly down, and nothing executable is loaded."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FLOORS = {
    0: ["model_config", "model_matmul", "training.dist", "training.shards"],
    1: [
        "analysis.runs",
        "model_components",
        "model_loss",
        "training.config",
        "training.flops",
        "training.gpus",
        "tokenization.tokenizers",
    ],
    2: [
        "analysis.align",
        "analysis.sweep",
        "model_builder",
        "training.attention",
        "training.data",
        "training.fp8",
        "training.optim",
        "tokenization.engines",
        "tokenization.sources",
    ],
    3: [
        "analysis.curves",
        "analysis.report",
        "training.instruments",
        "training.metrics",
        "training.parallel",
        "training.scaling",
        "tokenization.pipeline",
        "tokenization.vocabulary",
        "inference.generate",
        "inference.scoring",
    ],
    4: [
        "analysis.page",
        "analysis.plot",
        "training.checkpoint",
        "training.dashboard",
        "training.evaluate",
        "training.memory",
        "inference.chat",
        "inference.hf",
        "inference.samples",
        "tokenization.embedded",
        "tokenization.command",
    ],
    5: ["inference.models", "training.journal"],
    6: ["train", "sample", "compare_architectures", "plan", "benchmarks.*", "data.*", "scripts.*"],
}
FLOOR_OF = {module: floor for floor, modules in FLOORS.items() for module in modules}
FILES = [
    f.relative_to(ROOT)
    for f in sorted(ROOT.rglob("*.py"))
    if f.relative_to(ROOT).parts[0] not in (".venv", "tests", "config") and not f.relative_to(ROOT).parts[0].startswith("out")
]


def module_of(file: Path) -> str:
    name = ".".join(file.with_suffix("").parts)
    return f"{file.parts[0]}.*" if file.parts[0] in ("data", "benchmarks", "scripts") else name


def imports_of(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse((ROOT / file).read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_the_table_has_every_room():
    assert {module_of(f) for f in FILES} == set(FLOOR_OF)


@pytest.mark.parametrize("file", FILES, ids=str)
def test_imports_go_strictly_down(file):
    floor = FLOOR_OF[module_of(file)]
    for name in imports_of(file) & set(FLOOR_OF):
        assert FLOOR_OF[name] < floor, f"{file} (floor {floor}) imports {name} (floor {FLOOR_OF[name]})"


@pytest.mark.parametrize("name", ["model_config", "model_matmul", "model_components", "model_loss", "model_builder"])
def test_the_model_knows_no_training(name):
    assert not [i for i in imports_of(Path(f"{name}.py")) if i.startswith(("training", "inference", "tokenization"))]


@pytest.mark.parametrize("module", ["model_config", "tokenization.command"])  # the latter starts in every tokenizing process
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
    hits = {str(f): m.group() for f in FILES if (m := unsafe.search(re.sub(r'"""[\s\S]*?"""|#.*', "", (ROOT / f).read_text())))}
    # The config file that the user names; the reader of nanoGPT's meta.pkl, which admits plain values only (test_shards.py);
    # our rival in a benchmark, which reads what the benchmark itself has written a moment before
    assert hits == {"training/config.py": "exec(", "training/shards.py": "pickle", "benchmarks/checkpoint.py": "torch.load("}


def test_no_file_hides_a_module_that_it_imports():
    for file in FILES:
        tops = {name.partition(".")[0] for name in imports_of(file)}
        if file.parent != Path() and file.parts[0] in (
            "data",
            "benchmarks",
            "scripts",
        ):  # scripts: their folder comes first on sys.path
            hidden = {f.stem for f in (ROOT / file.parent).glob("*.py")} & (tops | set(sys.stdlib_module_names))
            assert not hidden, f"{file.parent} hides {hidden}"
