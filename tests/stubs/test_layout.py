"""agent.h and stubs/layout.py describe the same bytes."""

import re
from pathlib import Path

import numpy as np
import pytest

from stubs import layout
from tests.support.live import compile_text, hear, running

AGENT = Path(layout.__file__).parent / "agent"
NUMBERS = {
    "RELOADER_MAGIC": layout.MAGIC, "RELOADER_VERSION": layout.VERSION,
    "RELOADER_PAGE": layout.PAGE, "RELOADER_CONTROL_SIZE": layout.CONTROL_SIZE,
    "RELOADER_TEXT_OFFSET": layout.TEXT_OFFSET, "RELOADER_TEXT_SIZE": layout.TEXT_SIZE,
    "RELOADER_REPLY_OFFSET": layout.REPLY_OFFSET, "RELOADER_REPLY_SIZE": layout.REPLY_SIZE,
    "RELOADER_SLOT_COUNT": layout.SLOT_COUNT, "RELOADER_STUB_SIZE": layout.STUB_SIZE,
    "RELOADER_RING_SIZE": layout.RING_SIZE, "RELOADER_SLOT_UNWIND": layout.SLOT_UNWIND,
    "RELOADER_SLOT_FIRST": layout.SLOT_FIRST, "RELOADER_CODE": layout.CODE,
    "RELOADER_RODATA": layout.RODATA, "RELOADER_DATA": layout.DATA,
    "RELOADER_SLOTS": layout.SLOTS, "RELOADER_CONTROL": layout.CONTROL_REGION,
    "RELOADER_REGION_COUNT": layout.REGION_COUNT, "RELOADER_PING": layout.OP_PING,
    "RELOADER_RESOLVE": layout.OP_RESOLVE, "RELOADER_CALL": layout.OP_CALL,
    "RELOADER_DISCARD": layout.OP_DISCARD, "RELOADER_SYNC_CORE": layout.OP_SYNC_CORE,
    "RELOADER_CLOSE": layout.OP_CLOSE, "RELOADER_PTRACER": layout.OP_PTRACER,
    "RELOADER_HOOK_UNWIND": layout.OP_HOOK_UNWIND,
    "RELOADER_THREAD_WRITE": layout.OP_THREAD_WRITE,
    "RELOADER_THREAD_OFFSETS": layout.OP_THREAD_OFFSETS,
    "RELOADER_THREAD_ATEXITS": layout.OP_THREAD_ATEXITS,
    "RELOADER_CALL_CATCHING": layout.OP_CALL_CATCHING,
    "RELOADER_THREAD_MOST": layout.THREAD_MOST, "RELOADER_THREAD_UNIT": layout.THREAD_UNIT,
    "RELOADER_TRACK_WRITES": layout.OP_TRACK_WRITES, "RELOADER_IDLE": layout.STATE_IDLE,
    "RELOADER_BUSY": layout.STATE_BUSY, "RELOADER_NO_MEMFD": layout.STATUS_NO_MEMFD,
    "RELOADER_NO_SPACE": layout.STATUS_NO_SPACE, "RELOADER_NO_MAP": layout.STATUS_NO_MAP,
    "RELOADER_NO_THREAD": layout.STATUS_NO_THREAD, "RELOADER_TWICE": layout.STATUS_TWICE,
    "RELOADER_FILE_LIMIT": layout.STATUS_FILE_LIMIT,
    "RELOADER_OCAML_ATTACH": layout.OP_OCAML_ATTACH,
    "RELOADER_OCAML_RUN": layout.OP_OCAML_RUN,
    "RELOADER_OCAML_RETIRE": layout.OP_OCAML_RETIRE,
    "RELOADER_OCAML_HOLD": layout.OP_OCAML_HOLD,
    "RELOADER_CAML_TEXT_OFFSET": layout.CAML_TEXT_OFFSET,
    "RELOADER_CAML_TEXT_SIZE": layout.CAML_TEXT_SIZE,
}  # fmt: skip


def c_values(expressions: list[str]) -> list[int]:
    lines = "".join(f'printf("%llu\\n", (unsigned long long)({e}));' for e in expressions)
    # the header's text, not its name: a changed header is another program
    header = "#include <stddef.h>\n#include <stdio.h>\n" + (AGENT / "agent.h").read_text()
    source = f"{header}int main(void) {{ {lines} return 0; }}\n"
    with running([compile_text(source, "layout")]) as child:
        return [int(hear(child)) for _ in expressions]


@pytest.mark.parametrize("name", sorted(layout.STRUCTS))
def test_every_struct_has_the_compilers_size_and_offsets(name: str) -> None:
    dtype = layout.STRUCTS[name]
    assert dtype.fields is not None
    fields = [(field, row[0], row[1]) for field, row in dtype.fields.items()]
    asked = [f"sizeof(struct {name})"]
    asked += [f"offsetof(struct {name}, {field})" for field, _, _ in fields]
    asked += [f"sizeof(((struct {name} *)0)->{field})" for field, _, _ in fields]
    offsets = [offset for _, _, offset in fields]
    sizes = [np.dtype(kind).itemsize for _, kind, _ in fields]
    assert c_values(asked) == [dtype.itemsize, *offsets, *sizes]


def test_every_number_is_the_same() -> None:
    assert c_values(list(NUMBERS)) == list(NUMBERS.values())


def test_every_struct_of_the_header_is_compared() -> None:
    header = (AGENT / "agent.h").read_text()
    named = set(re.findall(r"^struct (reloader_\w+) \{", header, re.MULTILINE))
    assert named - {"reloader_unwind_directory"} == set(layout.STRUCTS)


def test_the_ocaml_symbols_are_in_the_headers_order() -> None:
    header = (AGENT / "ocaml.h").read_text()
    names = re.findall(r"^  NAME\((\w+),", header, re.MULTILINE)
    assert [name.encode() for name in names] == list(layout.CAML_SYMBOLS)
