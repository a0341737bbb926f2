"""What debuggers are told of new code: its functions' names, and how to unwind out of them.

One small relocatable ELF file for each object of a transaction is handed to the agent, which
shows it by gdb's JIT interface and drops it when the code's pages are given back. The process
is searched for words that point into superseded code, so the file must hold none: symbols are
offsets in their section, and the section headers, which have its address, stand across words.
"""

from collections.abc import Iterator
from typing import Final

import numpy as np

from reloader.elf.constants import (
    ET_REL,
    SHF_ALLOC,
    SHF_EXECINSTR,
    SHT_NOBITS,
    SHT_STRTAB,
    SHT_SYMTAB,
    STT_FUNC,
    STT_GNU_IFUNC,
)
from reloader.elf.dtypes import EHDR, SHDR, SYM
from reloader.errors.base import ReloaderError
from reloader.ids import I64, NO_ADDR, U64, Addr, Region
from reloader.link.graph import LinkGraph
from reloader.link.layout import body_addr, fresh_blocks
from reloader.link.names import named_blocks
from reloader.live.plan import Plan
from reloader.live.program import Program
from reloader.live.target import Allocation, SymbolFile

_STB_LOCAL: Final = 0
_PROGBITS: Final = 1
_ACROSS: Final = 4  # bytes that the section headers are off a word
_MOST: Final = 2048  # functions in one file: one command has to have room for it
_MOST_UNWIND: Final = 256 << 10  # and bytes of unwind records
_NAMES: Final = b"\0.text\0.eh_frame\0.symtab\0.strtab\0.shstrtab\0"
_NAME_OFFSETS: Final = (0, 1, 7, 17, 25, 33)
Span = tuple[int, bytes]  # address of unwind records, and they
NO_RECORDS: Final[Span] = (0, b"")
Table = tuple[bytes, bytes, int]  # symbols, their names, how many are local


def tell_debuggers(program: Program, plan: Plan) -> list[str]:
    """Let debuggers find the functions of a transaction that is live.

    Returns:
        Why they do not, for the report: that is no reason for a reload to have failed.
    """
    files = list(symbol_files(program, plan))
    try:
        if files:
            program.target.show_symbols(files)
    except ReloaderError as error:
        return [f"debuggers do not know the new functions: {error}"]
    return []


def symbol_files(program: Program, plan: Plan) -> Iterator[SymbolFile]:
    """Return what describes each piece of code that a transaction has placed."""
    graph = plan.graph
    symbols, addr = graph.symbols, body_addr(graph)
    is_function = np.isin(symbols.type, (STT_FUNC, STT_GNU_IFUNC))
    rows = np.flatnonzero(is_function & (addr != np.uint64(NO_ADDR)))
    rows = rows[np.argsort(addr[rows], kind="stable")]
    starts = addr[rows]
    frames = np.flatnonzero(named_blocks(graph, b".eh_frame") & fresh_blocks(graph))
    for item in plan.placed:
        if item.region != Region.CODE:
            continue
        place = item.allocation
        bounds = np.array([place.addr, place.addr + place.size], np.uint64)
        first, last = np.searchsorted(starts, bounds).tolist()
        own = frames[graph.blocks.object[frames] == item.object]
        unwind = unwind_records(program, graph, own)
        for at in range(first, last, _MOST):
            part = rows[at : min(last, at + _MOST)]
            table = symbol_table(graph, part, starts[at : at + len(part)] - bounds[0])
            yield SymbolFile(place, symbol_file(place, table, unwind, graph.objects[0].machine))
            unwind = NO_RECORDS


def unwind_records(program: Program, graph: LinkGraph, own: I64) -> Span:
    """Return the unwind records in some blocks of the same allocation."""
    addr, size = graph.blocks.addr[own], graph.blocks.size[own]
    start = int(addr.min(initial=NO_ADDR))
    length = int((addr + size).max(initial=start)) - start
    if not 0 < length <= _MOST_UNWIND:
        return NO_RECORDS
    return start, program.target.arena.view(Addr(start), length).tobytes()


def symbol_table(graph: LinkGraph, rows: I64, offset: U64) -> Table:
    """Return functions as ELF has them.

    Args:
        graph: Whose symbols.
        rows: Those to be in it.
        offset: (r,) of each from the start of the code.
    """
    binding = graph.symbols.binding[rows]
    order = np.argsort(binding != _STB_LOCAL, kind="stable")  # as the format demands
    rows, binding = rows[order], binding[order]
    names: list[bytes] = [graph.symbols.name[row] for row in rows.tolist()]
    lengths = np.array([len(name) + 1 for name in names])
    table = np.zeros(len(rows) + 1, SYM)
    table["st_name"][1:] = 1 + np.cumsum(lengths) - lengths
    table["st_info"][1:] = binding << 4 | STT_FUNC
    table["st_shndx"][1:] = 1
    table["st_value"][1:] = offset[order]
    table["st_size"][1:] = graph.symbols.size[rows]
    strings = b"\0" + b"".join(name + b"\0" for name in names)
    return table.tobytes(), strings, 1 + int((binding == _STB_LOCAL).sum())


def symbol_file(code: Allocation, table: Table, unwind: Span, machine: int) -> bytes:
    """Return a relocatable ELF file: the code without its bytes, its symbols, its frames."""
    symbols, strings, local_count = table
    address, records = unwind
    contents = [records, symbols, strings, _NAMES]
    sizes = [len(content) for content in contents]
    *ends, end = (EHDR.itemsize + np.cumsum(sizes)).tolist()
    headers = np.zeros(6, SHDR)
    headers["sh_name"] = _NAME_OFFSETS
    headers["sh_type"] = [0, SHT_NOBITS, _PROGBITS, SHT_SYMTAB, SHT_STRTAB, SHT_STRTAB]
    headers["sh_flags"][1:3] = [SHF_ALLOC | SHF_EXECINSTR, SHF_ALLOC]
    headers["sh_addr"][1:3] = [code.addr, address]
    headers["sh_offset"][1:] = [EHDR.itemsize, EHDR.itemsize, *ends]
    headers["sh_size"][1:] = [code.size, *sizes]
    headers["sh_link"][3], headers["sh_info"][3] = 4, local_count
    headers["sh_addralign"][1:] = [16, 8, 1, 1, 1]
    headers["sh_entsize"][3] = SYM.itemsize
    filling = (_ACROSS - end) % 8
    begin = file_header(end + filling, len(headers), machine)
    return b"".join([begin, *contents, bytes(filling), headers.tobytes()])


def file_header(section_headers: int, count: int, machine: int) -> bytes:
    """Return the first bytes of a file whose section headers are at an offset."""
    header = np.zeros(1, EHDR)
    header["e_ident"][0, :7] = [0x7F, *b"ELF", 2, 1, 1]
    header["e_type"], header["e_machine"], header["e_version"] = ET_REL, machine, 1
    header["e_shoff"], header["e_ehsize"] = section_headers, EHDR.itemsize
    header["e_shentsize"], header["e_shnum"] = SHDR.itemsize, count
    header["e_shstrndx"] = count - 1
    return header.tobytes()
