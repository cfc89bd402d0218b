"""MuJoCo's own stopwatch, which is stopped while we simulate.

The Python package has every simulator step read the clock 32 times (cartpole, of four evaluations a step, 98) for
statistics (`MjData.timer`) that nobody here looks at. For small models that is much of a step: cartpole takes 0.57 and
cup 0.74 of the time without it, cheetah 0.86 and walker 0.88. What is simulated is the same to the bit.

The clock is a function that MuJoCo's C library holds for the whole process, so it is stopped for the whole process.
`mujoco.set_mjcb_time(None)` would put the package's own clock back, hence ctypes.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

_stopped: int | None = None
"""The address of the package's clock while there is none in its place."""


def stop() -> None:
    """Let simulator steps read no clock from now on, in all of this process. Where MuJoCo's library has no such clock,
    nothing happens."""
    global _stopped
    clock = _clock()
    if clock is not None and clock.value is not None:
        _stopped, clock.value = clock.value, None


def start() -> None:
    """Put back what `stop` took away: MuJoCo as it is without us."""
    clock = _clock()
    if clock is not None and clock.value is None:
        clock.value = _stopped


def _clock() -> ctypes.c_void_p | None:
    """Return the library's variable `mjcb_time`, which holds the address of the clock."""
    import mujoco  # only now: imported first, it would choose the GL back end

    for library in sorted(Path(mujoco.__file__).parent.glob("libmujoco*")):
        try:
            return ctypes.c_void_p.in_dll(ctypes.CDLL(str(library)), "mjcb_time")
        except (OSError, ValueError):  # another library of that name, or one without the variable
            continue
    return None
