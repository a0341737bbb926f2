"""ELF numbers that the reader and the diff compare, spelled as in the ELF specification.

pyelftools keeps them in enum dictionaries keyed by name; taking them from there keeps one
source for the numbers.
"""

from typing import Final

from elftools.elf.constants import SH_FLAGS
from elftools.elf.enums import ENUM_E_MACHINE, ENUM_E_TYPE, ENUM_SH_TYPE_BASE

EM_X86_64: Final = int(ENUM_E_MACHINE["EM_X86_64"])
ET_REL: Final = int(ENUM_E_TYPE["ET_REL"])
ET_EXEC: Final = int(ENUM_E_TYPE["ET_EXEC"])
ET_DYN: Final = int(ENUM_E_TYPE["ET_DYN"])
ET_CORE: Final = int(ENUM_E_TYPE["ET_CORE"])

SHT_NULL: Final = int(ENUM_SH_TYPE_BASE["SHT_NULL"])
SHT_SYMTAB: Final = int(ENUM_SH_TYPE_BASE["SHT_SYMTAB"])
SHT_STRTAB: Final = int(ENUM_SH_TYPE_BASE["SHT_STRTAB"])
SHT_RELA: Final = int(ENUM_SH_TYPE_BASE["SHT_RELA"])
SHT_NOBITS: Final = int(ENUM_SH_TYPE_BASE["SHT_NOBITS"])
SHT_REL: Final = int(ENUM_SH_TYPE_BASE["SHT_REL"])
SHT_GROUP: Final = int(ENUM_SH_TYPE_BASE["SHT_GROUP"])
SHT_SYMTAB_SHNDX: Final = int(ENUM_SH_TYPE_BASE["SHT_SYMTAB_SHNDX"])
SHT_CREL: Final = 0x40000014  # not in pyelftools: generic-ABI draft, written by LLVM
SHT_LLVM_CREL: Final = 0x40000020  # the same under LLVM's number for older linkers

SHF_ALLOC: Final = int(SH_FLAGS.SHF_ALLOC)
SHF_EXECINSTR: Final = int(SH_FLAGS.SHF_EXECINSTR)
SHF_WRITE: Final = int(SH_FLAGS.SHF_WRITE)
SHF_MERGE: Final = int(SH_FLAGS.SHF_MERGE)
SHF_STRINGS: Final = int(SH_FLAGS.SHF_STRINGS)
SHF_TLS: Final = int(SH_FLAGS.SHF_TLS)
SHF_COMPRESSED: Final = int(SH_FLAGS.SHF_COMPRESSED)

SHN_UNDEF: Final = 0
SHN_LORESERVE: Final = 0xFF00
SHN_X86_64_LCOMMON: Final = 0xFF02  # large-model COMMON: one meaning with SHN_COMMON for us
SHN_ABS: Final = 0xFFF1
SHN_COMMON: Final = 0xFFF2
SHN_XINDEX: Final = 0xFFFF

STT_SECTION: Final = 3
STT_FUNC: Final = 2
STT_TLS: Final = 6
STT_GNU_IFUNC: Final = 10
GRP_COMDAT: Final = 1
