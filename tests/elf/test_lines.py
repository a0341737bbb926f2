"""Source lines read by arrays equal those that pyelftools reads row by row."""

from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from elftools.elf.elffile import ELFFile

from reloader.elf.lines import LineTable
from tests.support.data import compile_c

SOURCE = """int a(int i)
{
    return i * 3;
}

int b(int i)
{
    int sum = 0;
    for (int j = 0; j < i; j++)
        sum += a(j);
    return sum;
}
"""
FLAGS = [
    ("-g",),
    ("-g", "-O2"),
    ("-gdwarf-4", "-O2"),
    ("-gdwarf-3",),
    ("-g", "-gz"),
    ("-g", "-ffunction-sections", "-O2"),
    ("-g", "-O3", "-gno-as-loc-support"),
]


@pytest.mark.parametrize("flags", FLAGS, ids=" ".join)
def test_rows_are_those_of_pyelftools(tmp_path: Path, flags: tuple[str, ...]) -> None:
    file = compile_c(tmp_path, SOURCE, *flags).file
    table = LineTable.of(file)
    mask = (1 << 40) - 1
    files: list[str] = table.files
    ours: list[tuple[int, int, str, bool]] = sorted(
        (key & mask, line, files[int(at)].rsplit("/", 1)[-1], end)
        for key, line, at, end in zip(
            table.key.tolist(), table.line.tolist(), table.file.tolist(), table.end.tolist(),
            strict=True,
        )
    )  # fmt: skip
    theirs: list[tuple[int, int, str, bool]] = []
    info: Any = ELFFile(BytesIO(file.data.tobytes())).get_dwarf_info(
        relocate_dwarf_sections=True
    )
    for unit in info.iter_CUs():
        program: Any = info.line_program_for_CU(unit)
        first = 0 if program.header["version"] >= 5 else 1
        for entry in program.get_entries():
            state = entry.state
            if state is not None:
                name = program.header["file_entry"][state.file - first].name.decode()
                theirs.append(
                    (state.address, state.line, name.rsplit("/", 1)[-1], state.end_sequence)
                )
    assert len(theirs) > 5
    assert ours == sorted(theirs)


@pytest.mark.parametrize("flags", FLAGS, ids=" ".join)
def test_a_function_starts_on_its_line(tmp_path: Path, flags: tuple[str, ...]) -> None:
    file = compile_c(tmp_path, SOURCE, *flags).file
    table = LineTable.of(file)
    for name, lines in (("a", {1, 2, 3}), ("b", {6, 7, 8, 9})):
        row = file.symbol_names.index(name.encode())
        section, offset = int(file.symbol_sections[row]), int(file.symbols["st_value"][row])
        path, line = table.source(section, offset)
        assert path == str(tmp_path / "a.c")
        assert line in lines
        assert table.find(section, offset) == f"a.c:{line}"


def test_bytes_without_a_line_have_none(tmp_path: Path) -> None:
    file = compile_c(tmp_path, SOURCE, "-g").file
    table = LineTable.of(file)
    size = int(file.sections["sh_size"][1])
    assert table.find(1, size - 1) != ""
    assert table.find(1, size) == ""
    assert table.find(2, 0) == ""
    assert LineTable.of(file) is table


def test_an_object_without_lines_has_none(tmp_path: Path) -> None:
    file = compile_c(tmp_path, SOURCE).file
    assert LineTable.of(file).find(1, 0) == ""
