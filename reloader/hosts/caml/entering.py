"""Entering the runtime of a program, as its configuration wants it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import numpy as np

from reloader.hosts.caml.runtime import Runtime
from reloader.hosts.caml.settings import OcamlConfig
from reloader.ids import U64
from reloader.live.program import Program

if TYPE_CHECKING:
    from reloader.live.process import Process


def enter_runtime(program: Program, config: OcamlConfig) -> Runtime:
    """Return the runtime of a program.

    Raises:
        AgentBusyError: The agent is still at what an earlier daemon has asked.
        ReloaderError: A part of it is not there.
    """

    def find(names: Sequence[bytes]) -> U64:
        known = program.index.find(names)
        return np.where(known.found, known.addr, np.uint64(0)).astype(np.uint64)

    runtime = Runtime.attach(cast("Process", program.target), find)
    runtime.limit_ms = round(config.limit_s * 1e3)
    runtime.patience_ms = round(config.initialiser_s * 1e3)
    return runtime
