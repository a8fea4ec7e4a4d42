"""The process in which chat templates are rendered: a template is a program of somebody else's, and may loop
for ever or ask for all memory. Started by inference/rendering.py; needs nothing but jinja2.

A request is {"source", "variables", "cpu_s", "max_characters"}, an answer {"text"} or {"error"},
each as JSON after its length in 8 bytes.

The environment is that of transformers' apply_chat_template, which templates are written for.
Source: https://huggingface.co/docs/transformers/chat_templating_writing, and the behaviour of 5.23."""

import contextlib
import functools
import json
import os
import resource
import signal
import sys
from datetime import datetime
from typing import Any, BinaryIO

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.sandbox
import jinja2.utils

MAX_BYTES = 1 << 30  # of address space


class Generation(jinja2.ext.Extension):
    """{% generation %} … {% endgeneration %} marks what the assistant says; it renders as its body."""

    tags = {"generation"}

    def parse(self, parser: Any) -> jinja2.nodes.CallBlock:
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_mark"), [], [], body).set_lineno(line)

    def _mark(self, caller: Any) -> str:
        return caller()


class Dict:
    """`dict` of a template, which has no attributes but this one."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict:
        return dict.fromkeys(*args)


class Namespace(jinja2.utils.Namespace):
    """`namespace` of a template, whose names begin with no underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # a template may name an attribute `self`
        self, *rest = args
        values = dict(*rest, **kwargs)
        for name in values:
            _check_name(name)
        jinja2.utils.Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"{name!r} of a namespace begins with an underscore: rename it")


def environment() -> jinja2.sandbox.ImmutableSandboxedEnvironment:
    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def tojson(
        x: Any,
        ensure_ascii: bool = False,
        indent: Any = None,
        separators: Any = None,
        sort_keys: bool = False,
    ) -> str:
        return json.dumps(
            x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
        )

    made = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    made.filters["tojson"] = tojson
    made.globals |= {
        "raise_exception": raise_exception,
        "strftime_now": lambda format: datetime.now().strftime(format),
        "dict": Dict(),
        "namespace": Namespace,
    }
    return made


@functools.lru_cache(maxsize=8)
def compiled(source: str) -> jinja2.Template:
    return environment().from_string(source)


def answer_to(request: dict[str, Any]) -> dict[str, Any]:
    # The clock of the processor, so that a busy machine ends nobody; at its end the process dies, whatever
    # it is inside of
    signal.setitimer(signal.ITIMER_PROF, request["cpu_s"])
    try:
        parts, n = [], 0
        for part in compiled(request["source"]).generate(request["variables"]):
            n += len(part)
            if n > request["max_characters"]:
                return {"error": f"it renders more than {request['max_characters']:,} characters"}
            parts.append(part)
        return {"text": "".join(parts)}
    except MemoryError:
        return {"error": f"it needs more than {MAX_BYTES >> 30} GiB of memory"}
    except Exception as error:  # a template may fail in any way
        return {"error": str(error) or type(error).__name__}
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def serve(requests: BinaryIO, answers: BinaryIO) -> None:
    """Until the requests end, as they do when the parent is gone."""
    while head := requests.read(8):
        content = json.dumps(answer_to(json.loads(requests.read(int.from_bytes(head, "big"))))).encode()
        answers.write(len(content).to_bytes(8, "big") + content)
        answers.flush()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's
    with contextlib.suppress(ValueError, OSError):  # not every system has it
        resource.setrlimit(resource.RLIMIT_AS, (MAX_BYTES, MAX_BYTES))
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    serve(sys.stdin.buffer, answers)
