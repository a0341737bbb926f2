"""How the records of a debug information unit are laid out, prepared for reading them fast.

A type table wants a few attributes of every record and nothing of the rest, so runs of what is
not wanted become one step. A table is the same for most versions of an object: it is kept.
"""

from functools import lru_cache
from typing import Final, NamedTuple

from reloader.elf.scopes import BLOCKS, FIXED, LEB, OFFSETS, uleb
from elftools.dwarf.enums import ENUM_DW_FORM

SKIP, NUMBER, SIGNED, UNSIGNED, IMPLICIT, TRUE, STRING, STRP, LINE_STRP, STRX, REF, REF_LEB, \
    REF_ADDR, SIGNATURE, EXPR, LEB_SKIP = range(16)
