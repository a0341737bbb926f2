"""`make demo`: programs run, their sources are edited, they behave anew, their state stays.

Every claim that is printed is checked; the first that does not hold ends the demo with status
1.
"""

import signal
import subprocess
import sys
from pathlib import Path

import guests
from show import HERE, DemoError, Show, expect, playing, say


def play(show: Show) -> None:
    """The story of the C program."""
    show.report("beside orbit")
    show.tick(r"\[\.*[<>]\.*\] turns 2")

    show.save("1-draw.c", "draw.c")
    show.report("draw.o live: draw")
    before = show.tick(r"(\d+) \[\.*[oO]\.*\] turns (\d+)")

    show.save("2-move.c", "move.c")
    show.report("move.o live: move")
    after = show.tick(r"(\d+) .* turns (\d+)")
    expect("ticks go on", int(after[1]) > int(before[1]), wanted=True)
    expect("turns go on", int(after[2]) >= int(before[2]), wanted=True)

    say("\na new static variable, and nobody is stopped for it:")
    show.save("3-draw.c", "draw.c")
    show.report("draw.o live: draw")
    show.tick(r"turns (\d+), frames 1\b")

    say("\na typo: the build fails, the program goes on")
    show.save("4-draw-typo.c", "draw.c")
    show.report("error: expected")
    show.report("untouched")
    show.tick("frames")
    show.restore("3-draw.c", "draw.c")

    say("\na variable that grew: refused, with both layouts")
    show.save("5-move-bigger.c", "move.c")
    show.report("turns has 4 bytes in the program, 8 in the new object")
    show.report("Nothing was changed")
    show.tick("frames")

    owner = show.ask("owner", "draw")[0]
    expect("owner's generation", owner["generation"], 3)
    expect("owner's object", Path(owner["object"]).name, "draw.o")
    history = show.ask("history")
    outcomes = [row["outcome"] for row in history if row["outcome"] in {"live", "refused"}]
    expect("history", outcomes, ["refused", "live", "live", "live"])
    memory = show.ask("memory")
    expect("memory is accounted for", memory["live_size"] > 0, wanted=True)
    show.end()


def main() -> int:
    """Play the demo; return the exit status."""
    try:
        if guests.is_possible():
            guests.run()
        with playing(HERE / "orbit", HERE / "edits", "*.c") as show:
            play(show)
    except (DemoError, subprocess.CalledProcessError):
        return 1
    except KeyboardInterrupt:  # what was started has been ended by then
        say("\ninterrupted")
        return 128 + signal.SIGINT
    say("\nAll of the above was checked while it ran.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
