"""How a program ends: one line and 2 for wrong input, one line and 1 for what the machine refuses, a traceback for
our own faults."""

import errno
import logging

import pytest

from base.errors import InputError, MachineError, MissingFile, input_errors, reading, refusal
from base.text import PlainFormatter, in_markdown, printable, table


def ended(error: BaseException, capsys) -> tuple[int, str]:
    with pytest.raises(SystemExit) as end, input_errors():
        raise error
    return end.value.code, capsys.readouterr().err


@pytest.mark.parametrize("error, code, said", [
    (InputError("no such thing\nat all"), 2, "no such thing at all"),
    (MachineError("step 3 could not be written"), 1, "step 3 could not be written"),
    (OSError(errno.ENOSPC, "No space left on device", "out/x"), 1, "out/x: No space left on device: free space"),
    (OSError(errno.EMFILE, "Too many open files"), 1, "Too many open files: raise the limit of open files, ulimit -n"),
    (MemoryError(), 1, "out of memory (MemoryError)"),
    (RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory: 9"), 1, "out of memory"),
    (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), 1, "out of memory"),
    (KeyboardInterrupt(), 130, ""),
])  # fmt: skip
def test_one_line_and_an_exit_code(error, code, said, capsys):
    found, err = ended(error, capsys)
    assert found == code and said in err and err.count("\n") == 1


@pytest.mark.parametrize(
    "error", [RuntimeError("shapes differ"), ValueError("x"), OSError(errno.EINVAL, "odd"), KeyError(1)]
)
def test_our_own_faults_keep_their_traceback(error):
    assert refusal(error) is None
    with pytest.raises(type(error)), input_errors():
        raise error


def test_control_characters_of_a_message_are_visible(capsys):
    _, err = ended(InputError("out-\x1b[31mred\x9b2J\u202eevil is missing"), capsys)
    assert err.isascii() and r"\x1b[31mred\x9b2J\u202eevil" in err


def test_too_many_open_files_are_not_a_question_of_permissions(tmp_path):
    with pytest.raises(InputError, match=r"Too many open files\): raise the limit"), reading(tmp_path):
        raise OSError(errno.EMFILE, "Too many open files")
    with pytest.raises(MissingFile), reading(tmp_path):
        raise FileNotFoundError(errno.ENOENT, "none")


def test_log_lines_are_plain():
    record = logging.LogRecord("n", logging.WARNING, "", 0, "left out: %s", ("a\x07\u2028b",), None)
    assert PlainFormatter("%(message)s").format(record) == r"left out: a\x07\u2028b"


def test_text_keeps_what_people_write():
    text = "tab\tline\n日本語 é 👩‍👧"
    assert printable(text) == text


def test_a_name_cannot_leave_its_cell_or_begin_html():
    rows = [["run", "loss"], ["a|b <script>", "1"]]
    line = table(rows, [True, False], markdown=True).splitlines()[-1]
    assert r"a\|b &lt;script>" in line and in_markdown("<b>") == "&lt;b>"
    assert "a|b <script>" in table(rows, [True, False])
