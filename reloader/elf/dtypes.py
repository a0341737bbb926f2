"""ELF64 records as numpy dtypes, field names from the ELF specification (gABI chapter 4)."""

from typing import Final

import numpy as np

EHDR: Final = np.dtype(
    [
        ("e_ident", "u1", 16), ("e_type", "<u2"), ("e_machine", "<u2"), ("e_version", "<u4"),
        ("e_entry", "<u8"), ("e_phoff", "<u8"), ("e_shoff", "<u8"), ("e_flags", "<u4"),
        ("e_ehsize", "<u2"), ("e_phentsize", "<u2"), ("e_phnum", "<u2"), ("e_shentsize", "<u2"),
        ("e_shnum", "<u2"), ("e_shstrndx", "<u2"),
    ]
)  # fmt: skip
SHDR: Final = np.dtype(
    [
        ("sh_name", "<u4"), ("sh_type", "<u4"), ("sh_flags", "<u8"), ("sh_addr", "<u8"),
        ("sh_offset", "<u8"), ("sh_size", "<u8"), ("sh_link", "<u4"), ("sh_info", "<u4"),
        ("sh_addralign", "<u8"), ("sh_entsize", "<u8"),
    ]
)  # fmt: skip
SYM: Final = np.dtype(
    [
        ("st_name", "<u4"), ("st_info", "u1"), ("st_other", "u1"), ("st_shndx", "<u2"),
        ("st_value", "<u8"), ("st_size", "<u8"),
    ]
)  # fmt: skip
RELA: Final = np.dtype(
    [("r_offset", "<u8"), ("r_type", "<u4"), ("r_sym", "<u4"), ("r_addend", "<i8")]
)
PHDR: Final = np.dtype(
    [
        ("p_type", "<u4"), ("p_flags", "<u4"), ("p_offset", "<u8"), ("p_vaddr", "<u8"),
        ("p_paddr", "<u8"), ("p_filesz", "<u8"), ("p_memsz", "<u8"), ("p_align", "<u8"),
    ]
)  # fmt: skip
