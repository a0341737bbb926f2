"""What debuggers are told of new code: its functions' names, and how to unwind out of them.

One small relocatable ELF file for each object of a transaction is handed to the agent, which
shows it by gdb's JIT interface and drops it when the code's pages are given back. The process
is searched for words that point into superseded code, so the file must hold none: symbols are
offsets in their section, and the section headers, which have its address, stand across words.
"""

from collections.abc import Iterator

import numpy as np

from reloader.elf.constants import SHF_ALLOC, SHT_NOBITS, STT_FUNC, STT_GNU_IFUNC
from reloader.elf.dtypes import EHDR, SHDR, SYM
from reloader.ids import I64, NO_ADDR, Region
from reloader.link.graph import LinkGraph
from reloader.link.layout import body_addr, fresh_blocks
from reloader.link.names import named_blocks
from reloader.live.plan import Plan
from reloader.live.program import Program
from reloader.live.target import Allocation, SymbolFile

_ET_REL = 1
_STB_LOCAL = 0
_PROGBITS, _SYMTAB, _STRTAB = 1, 2, 3
_EXEC = 4
_ACROSS = 4  # bytes that the section headers are off a word
_MOST = 4096  # functions in one file: one command has to have room for it
_SECTIONS = (b"", b".text", b".eh_frame", b".symtab", b".strtab", b".shstrtab")
_NAMES = b"\0.text\0.eh_frame\0.symtab\0.strtab\0.shstrtab\0"
Span = tuple[int, bytes]  # address of unwind records, and they


def tell_debuggers(program: Program, plan: Plan) -> None:
    """Let debuggers find the functions of a transaction that is live."""
    files = list(symbol_files(program, plan))
    if files:
        program.target.show_symbols(files)


def symbol_files(program: Program, plan: Plan) -> Iterator[SymbolFile]:
    """Return what describes each piece of code that a transaction has placed."""
    graph = plan.graph
    symbols, addr = graph.symbols, body_addr(graph)
    is_function = np.isin(symbols.type, (STT_FUNC, STT_GNU_IFUNC))
    rows = np.flatnonzero(is_function & (addr != np.uint64(NO_ADDR)))
    rows = rows[np.argsort(addr[rows], kind="stable")]
    starts = addr[rows]
    for item in plan.placed:
        if item.region != Region.CODE:
            continue
        place = item.allocation
        bounds = np.array([place.addr, place.addr + place.size], np.uint64)
        first, last = np.searchsorted(starts, bounds).tolist()
        unwind = unwind_records(program, graph, item.object)
        for at in range(first, last, _MOST):
            part = rows[at : min(last, at + _MOST)]
            offset = (starts[at : at + len(part)] - bounds[0]).astype(np.int64)
            content = symbol_file(graph, part, offset, place, unwind)
            yield SymbolFile(place, content)
            unwind = None


def unwind_records(program: Program, graph: LinkGraph, row: int) -> Span | None:
    """Return an object's part of the transaction's unwind records, if it has any."""
    blocks = graph.blocks
    own = named_blocks(graph, b".eh_frame") & fresh_blocks(graph) & (blocks.object == row)
    if not own.any():
        return None
    start = int(blocks.addr[own].min())
    size = int((blocks.addr[own] + blocks.size[own]).max()) - start
    return start, program.target.arena.view(start, size).tobytes()


def symbol_file(
    graph: LinkGraph, rows: I64, offset: I64, code: Allocation, unwind: Span | None
) -> bytes:
    """Return a relocatable ELF file.

    Args:
        graph: Whose symbols.
        rows: Those to be in it.
        offset: (r,) of each from the start of the code.
        code: Where they are.
        unwind: What describes their frames.
    """
    names = [graph.symbols.name[row] for row in rows.tolist()]
    lengths = np.array([len(name) + 1 for name in names])
    table = np.zeros(len(rows) + 1, SYM)
    table["st_name"][1:] = 1 + np.cumsum(lengths) - lengths
    binding = graph.symbols.binding[rows]
    order = np.argsort(binding != _STB_LOCAL, kind="stable")  # as the format demands
    table["st_info"][1:] = binding << 4 | STT_FUNC
    table["st_shndx"][1:] = 1
    table["st_value"][1:] = offset
    table["st_size"][1:] = graph.symbols.size[rows]
    table[1:] = table[1:][order]
    strings = b"\0" + b"".join(name + b"\0" for name in names)
    local_count = 1 + int((binding == _STB_LOCAL).sum())
    address, records = unwind or (0, b"")
    contents = [records, table.tobytes(), strings, _NAMES]
    ends = EHDR.itemsize + np.cumsum([len(content) for content in contents])
    end = int(ends[-1])
    headers = np.zeros(6, SHDR)
    headers["sh_name"] = [_NAMES.find(b"\0" + name + b"\0") + 1 for name in _SECTIONS]
    headers["sh_type"] = [0, SHT_NOBITS, _PROGBITS, _SYMTAB, _STRTAB, _STRTAB]
    headers["sh_flags"] = [0, SHF_ALLOC | _EXEC, SHF_ALLOC, 0, 0, 0]
    headers["sh_addr"][1:3] = [code.addr, address]
    headers["sh_offset"][1:] = [EHDR.itemsize, EHDR.itemsize, *ends[:-1]]
    headers["sh_size"][1:] = [code.size, *(len(content) for content in contents)]
    headers["sh_link"][3], headers["sh_info"][3] = 4, local_count
    headers["sh_addralign"][1:] = [16, 8, 1, 1, 1]
    headers["sh_entsize"][3] = SYM.itemsize
    filling = (_ACROSS - end) % 8
    begin = file_header(end + filling, len(headers), graph.objects[0].machine)
    return b"".join([begin, *contents, bytes(filling), headers.tobytes()])


def file_header(section_headers: int, count: int, machine: int) -> bytes:
    """Return the first bytes of a file whose section headers are at an offset."""
    header = np.zeros(1, EHDR)
    header["e_ident"][0, :7] = [0x7F, *b"ELF", 2, 1, 1]
    header["e_type"], header["e_machine"], header["e_version"] = _ET_REL, machine, 1
    header["e_shoff"], header["e_ehsize"] = section_headers, EHDR.itemsize
    header["e_shentsize"], header["e_shnum"] = SHDR.itemsize, count
    header["e_shstrndx"] = count - 1
    return header.tobytes()
