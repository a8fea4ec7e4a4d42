"""Which files of a folder are read, and what is said of the others."""

import os
from collections import Counter

import pytest
from preparing import custom
from source_formats import jsonl, parquet

from base.errors import InputError, MissingFile
from tokenization.searching import find_files, format_of, parse_ext

pytest_plugins = ["preparing_fixtures"]


@pytest.fixture
def put(tmp_path):
    """put("a/b.txt", …) writes files of no matter what and returns their folder."""

    def put(*names, content=b"x\n"):
        for name in names:
            path = tmp_path / "in" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return tmp_path / "in"

    return put


def names_of(found, root):
    return [str(file.relative_to(root)) for file in found.files]


READ = [
    "a.JSONL", "a.Parquet", "b.JSON.GZ", "c.ndjson", "d.csv", "e.MD", "f.html", "g.py", "h.TXT.ZST", "i.json", "j.rst.xz",
]  # fmt: skip
LEFT_OUT = {
    ".git/config.txt": "hidden name", "sub/.ipynb_checkpoints/e-checkpoint.md": "hidden name", "._e.md": "hidden name",
    ".hidden.txt": "hidden name", "picture.PNG": ".png", "sub/b.tar.gz": ".tar.gz", "a.parquet.gz": ".parquet.gz",
    "Makefile": "without a suffix",
}  # fmt: skip


def test_a_folder_is_read_and_what_is_not_is_counted(put):
    root = put(*READ, *LEFT_OUT)
    found = find_files([root])
    assert names_of(found, root) == sorted(READ)
    assert found.left_out == Counter(LEFT_OUT.values())
    words = found.in_words()
    assert words.startswith("11 files were read: ") and "; 8 left out: 4 hidden names, " in words
    for part in ("1 .jsonl", "1 .json.gz", "1 .txt.zst", "1 .png", "1 .tar.gz", "1 without a suffix"):
        assert part in words


def test_ext_names_more_texts(put):
    root = put("a.txt", "b.tex", "c.TEX.gz", "d.rs", "e.bin")
    assert names_of(find_files([root], parse_ext(["tex, .RS"])), root) == [
        "a.txt",
        "b.tex",
        "c.TEX.gz",
        "d.rs",
    ]
    assert parse_ext(["py,.c", "h"]) == (".py", ".c", ".h")
    for wrong in ("", "a b", "../x", "tar.gz", "gz", ".zip"):
        with pytest.raises(InputError, match="--ext="):
            parse_ext([wrong])
    with pytest.raises(InputError, match=r"b\.tex is of no known format.*--ext=SUFFIX"):
        find_files([root / "b.tex"])
    assert format_of(root / "b.tex", [".tex"]) == "text"


def test_what_is_named_is_read_whatever_its_name(put):
    root = put(".hidden/a.txt", ".b.txt", "README.md", content=b"---\nlicense: mit\n---\n")
    found = find_files([root / ".hidden", root / ".b.txt", root / "README.md", root])
    assert names_of(found, root) == [".b.txt", ".hidden/a.txt", "README.md"]
    assert found.left_out == Counter(
        {"hidden name": 1}
    )  # the folder, of which the search from above knows nothing


def test_dataset_cards(put):
    root = put("data/train/x.jsonl", "data/README.md", "docs/README.md", "other/readme.md", "code/README.md")
    put("other/readme.md", content=b"---\r\nlicense: mit\r\n---\r\n")
    put("code/table.parquet")
    found = find_files([root])
    assert names_of(found, root) == ["code/table.parquet", "data/train/x.jsonl", "docs/README.md"]
    assert found.left_out == Counter({"dataset card": 3})


def test_a_compressed_copy_beside_its_original(put):
    root = put("a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "b.txt.gz", "b.txt.zst", "sub/a.jsonl.gz")
    found = find_files([root])
    assert names_of(found, root) == ["a.jsonl", "b.txt.gz", "sub/a.jsonl.gz"]
    assert found.left_out == Counter({"compressed copy of a file beside it": 3})
    assert names_of(find_files([root / "a.jsonl", root / "a.jsonl.gz"]), root) == ["a.jsonl", "a.jsonl.gz"]


def test_linked_folders_are_read_and_loops_noticed(put, tmp_path):
    root = put("a.txt", "sub/b.txt")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/c.txt").write_text("c")
    (root / "link").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    for name in ("up", "sub/up", "sub/up2", "sub/self"):  # with two of them glob would go 2^40 ways
        (root / name).symlink_to(root if "self" not in name else root / "sub", target_is_directory=True)
    (root / "dangling.txt").symlink_to("nowhere")
    os.link(root / "a.txt", root / "hard.txt")
    os.mkfifo(root / "pipe.txt")
    for source in (str(root), f"{root}/**/*.txt", f"{root}/**"):
        found = find_files([source])
        assert names_of(found, root) == ["a.txt", "link/c.txt", "sub/b.txt"]
        assert found.left_out == Counter({"link to a folder that was read": 4, "neither file nor folder": 2})


def test_patterns(put, monkeypatch):
    root = put("a.txt", "b/c.txt", "b/d/e.txt", "b/d/f.md", "b/g.png", "[x].txt", "[y]/z.txt")
    for pattern, expected in {
        "*.txt": ["[x].txt", "a.txt"],
        "**/*.txt": ["[x].txt", "[y]/z.txt", "a.txt", "b/c.txt", "b/d/e.txt"],
        "b/**/e.txt": ["b/d/e.txt"],
        "**/d/**": ["b/d/e.txt", "b/d/f.md"],
        "**/d/?.md": ["b/d/f.md"],
        "[y]/**/*.txt": ["[y]/z.txt"],  # a folder of that name comes before a pattern
        "[x].txt": ["[x].txt"],  # a file of that name comes before a pattern
        "b*": ["b/c.txt", "b/d/e.txt", "b/d/f.md"],  # as the shell would have named it
        "*/*": ["[y]/z.txt", "b/c.txt", "b/d/e.txt", "b/d/f.md"],
    }.items():
        assert names_of(find_files([f"{root}/{pattern}"]), root) == expected, pattern
    assert find_files([f"{root}/*/*"]).left_out == Counter({".png": 1})
    monkeypatch.chdir(root)
    assert [str(file) for file in find_files(["**/e.txt"]).files] == ["b/d/e.txt"]


def test_a_folder_that_cannot_be_searched_is_named(put, monkeypatch):
    root = put("a.txt", "sub/b.txt")

    def listdir(path, real=os.listdir):
        if path.name == "sub":
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "listdir", listdir)
    with pytest.raises(InputError, match=r"in/sub cannot be read \(Permission denied\)"):
        find_files([root])


def test_nothing_but_what_is_left_out(put):
    root = put("cards/README.md", content=b"---\n---\n") / "cards"
    with pytest.raises(
        MissingFile, match=r"in/tex holds no \.jsonl.* file; it holds 2 \.tex, 1 \.png: --ext=SUFFIX"
    ):
        find_files([put("tex/a.tex", "tex/b.tex", "tex/c.png") / "tex"])
    with pytest.raises(MissingFile, match="hold nothing to read but 1 dataset card"):
        find_files([root])


def test_the_end_says_what_was_read(put, toy_folder, tmp_path, in_this_process, capsys):
    root = put("a/b.JSONL", content=jsonl([{"text": f"row {i}"} for i in range(50)]))
    put("c.parquet", content=parquet([{"text": f"text {i}"} for i in range(50)]))
    put("c.tex", "d.png", ".git/x.txt")
    flags = (
        f"--source={root}",
        f"--tokenizer={toy_folder}",
        f"--out_dir={tmp_path / 'out'}",
        "--val_fraction=0.1",
    )
    assert custom(*flags, "--workers=1", "--ext=tex") == 0
    printed = capsys.readouterr().out
    assert "3 files were read: 1 .jsonl, 1 .parquet, 1 .tex; 2 left out: 1 hidden name, 1 .png" in printed
    assert "  all: 101 documents" in printed
