"""A unit is read once its compilation is over, and what is damaged for good is refused."""

import os
import time
from pathlib import Path

import pytest

from reloader.errors.ocaml import UnitUnreadableError
from reloader.hosts.caml.compiler import find_compiler
from reloader.hosts.caml.inspector import Inspector, UnitFiles
from reloader.hosts.caml.units import UnitInfo
from reloader.hosts.caml.written import PATIENCE_S, read_when_written
from tests.support.ocaml import Compiler, build


class Finishing(Inspector):
    """An inspector at whose first refusal the compiler finishes its file."""

    path: Path
    whole: bytes
    refused = 0

    def unit(self, files: UnitFiles) -> UnitInfo:
        try:
            return super().unit(files)
        except UnitUnreadableError:
            self.refused += 1
            self.path.write_bytes(self.whole)
            raise


@pytest.fixture
def inspector(compiler: Compiler, tmp_path: Path) -> Finishing:
    build(compiler, tmp_path, "counter")
    made = Finishing(find_compiler(" ".join(compiler.command)))
    made.path = tmp_path / "counter.cmx"
    made.whole = made.path.read_bytes()
    return made


def test_half_a_cmx_is_waited_for(inspector: Finishing) -> None:
    obj = inspector.path.with_suffix(".o")
    with inspector:
        inspector.path.write_bytes(inspector.whole[: len(inspector.whole) // 2])
        os.utime(obj)
        assert read_when_written(inspector, obj, "").name == "Counter"
    assert inspector.refused == 1


def test_half_a_cmx_of_an_old_object_is_refused(inspector: Finishing) -> None:
    obj = inspector.path.with_suffix(".o")
    with inspector:
        inspector.path.write_bytes(inspector.whole[: len(inspector.whole) // 2])
        then = time.time() - 10 * PATIENCE_S
        os.utime(obj, (then, then))
        with pytest.raises(UnitUnreadableError, match=r"Nothing was changed\. Build it again"):
            read_when_written(inspector, obj, "")


def test_a_cmx_older_than_the_typed_tree_is_not_believed_at_once(inspector: Finishing) -> None:
    obj = inspector.path.with_suffix(".o")
    with inspector:
        before = inspector.path.stat().st_mtime - 5
        os.utime(inspector.path, (before, before))
        os.utime(obj)
        began = obj.stat().st_mtime
        read_when_written(inspector, obj, "")
    assert time.time() >= began + PATIENCE_S
