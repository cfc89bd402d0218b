"""The choice of what draws off-screen pictures: a GPU through EGL, software through EGL, or OSMesa.

dm_control and mujoco look at `MUJOCO_GL` while they are imported, so the choice comes first: `choose_backend()` knows
the libraries and the environment variables and imports neither. Software EGL and OSMesa are the same Mesa rasteriser
and give the same pixels; a GPU's differ a little.
"""

from __future__ import annotations

import contextlib
import ctypes
import ctypes.util
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass

APT_LINE = "apt-get install -y libegl1 libgl1 libopengl0 libgl1-mesa-dri libosmesa6"
"""What a bare Debian or Ubuntu needs for both back ends."""

NO_GPU = ("", "-1", "NoDevFiles")
"""First entries of `CUDA_VISIBLE_DEVICES` that leave no GPU; the last is Slurm's, for a job without one."""

BACKENDS = ("egl", "osmesa", "glfw")


class MissingGL(RuntimeError):
    """No library to draw pictures with; the message says which packages to install."""


def choose_backend() -> str:
    """Set `MUJOCO_GL` (and what goes with it) for this process and its children; return its value.

    A `MUJOCO_GL` that is already set is respected; so is a `MUJOCO_EGL_DEVICE_ID`. Of several GPUs, the one that
    CUDA sees first (`CUDA_VISIBLE_DEVICES`) draws. Calling it again changes nothing.

    Raises:
        MissingGL: the back end asked for, or every back end, lacks a library.
        ValueError: `MUJOCO_GL` names no back end that can draw.
    """
    os.environ.update(_decide())
    return os.environ["MUJOCO_GL"]


def check_backend() -> str:
    """Return what `choose_backend` would choose, or raise what it would raise, and set nothing.

    For a launcher, whose children must choose for themselves: they may see other GPUs.
    """
    return _decide()["MUJOCO_GL"]


def load_triton_first() -> None:
    """Load Triton's library, where there is one, before any OpenGL driver: each brings an LLVM, and a process in which
    the driver's is the first ends with a segmentation fault once torch (Adam is enough) loads Triton's.

    PyTorch for CUDA brings Triton along; torch 2.13 with Triton 3.7 and Mesa's llvmpipe (LLVM 15) was seen to crash.
    """
    if sys.platform == "linux" and importlib.util.find_spec("triton") is not None:
        with contextlib.suppress(ImportError, OSError):  # a broken Triton is torch's to report
            importlib.import_module("triton._C.libtriton")


def _decide() -> dict[str, str]:
    """The environment variables to set."""
    rendering = sys.modules.get("dm_control._render")
    if rendering is not None:
        if rendering.BACKEND not in BACKENDS:
            asked = os.environ.get("MUJOCO_GL")
            raise MissingGL(f"dm_control was imported with MUJOCO_GL={asked!r}, which draws nothing")
        if rendering.BACKEND == "glfw" and sys.platform == "linux" and not _has_display():
            raise MissingGL(
                "dm_control was imported before a back end was chosen and took GLFW, which needs a display; call "
                "planet.gl.choose_backend() before the first import of dm_control, or set MUJOCO_GL=egl"
            )
        return {"MUJOCO_GL": rendering.BACKEND}
    load_triton_first()
    asked = os.environ.get("MUJOCO_GL", "").lower()
    if asked and asked not in BACKENDS:
        raise ValueError(f"MUJOCO_GL must be one of {', '.join(BACKENDS)} (or unset), got {asked!r}")
    if sys.platform != "linux":
        return {"MUJOCO_GL": asked or "glfw"}
    problems: list[str] = []
    for name in (asked,) if asked else ("egl", "osmesa"):
        try:
            return {"MUJOCO_GL": name, **_VARIABLES[name]()}
        except MissingGL as problem:
            problems.append(str(problem))
    wanted = f"MUJOCO_GL={asked}" if asked else "off-screen pictures"
    raise MissingGL(f"no OpenGL for {wanted}: {'; '.join(problems)}. On Debian or Ubuntu, as root: {APT_LINE}")


def _egl() -> dict[str, str]:
    """Find a display that starts, and point dm_control at it where it would pick another."""
    library = load_library("EGL", "libEGL.so.1")
    if library is None:
        raise MissingGL("EGL: libEGL.so.1 is missing (package libegl1)")
    if load_library("OpenGL", "libOpenGL.so.0") is None and load_library("GL", "libGL.so.1") is None:
        raise MissingGL("EGL: neither libOpenGL.so.0 nor libGL.so.1 is there (package libopengl0 or libgl1)")
    variables = {"PYOPENGL_PLATFORM": "egl"}
    if "MUJOCO_EGL_DEVICE_ID" in os.environ:
        return variables  # the user's choice; dm_control checks it
    egl = _EGL(library)
    devices = egl.devices()
    for device in preferred(devices, os.environ.get("CUDA_VISIBLE_DEVICES")):
        if egl.starts(device):
            return variables | {"MUJOCO_EGL_DEVICE_ID": str(device.index)}
    raise MissingGL(f"EGL: none of {len(devices)} devices starts (package libgl1-mesa-dri, or the GPU's own driver)")


def _osmesa() -> dict[str, str]:
    if load_library("OSMesa", "libOSMesa.so.8", "libOSMesa.so.6") is None:
        raise MissingGL("OSMesa: libOSMesa.so is missing (package libosmesa6)")
    # One thread draws; the extra thread dm_control would start for OSMesa only gets in the way at exit.
    return {"PYOPENGL_PLATFORM": "osmesa", "DISABLE_RENDER_THREAD_OFFLOADING": "1"}


def _glfw() -> dict[str, str]:
    if not _has_display():
        raise MissingGL("GLFW: there is no display (run it under xvfb-run -a, or leave MUJOCO_GL unset)")
    return {}


def _has_display() -> bool:
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


_VARIABLES: dict[str, Callable[[], dict[str, str]]] = {"egl": _egl, "osmesa": _osmesa, "glfw": _glfw}


def load_library(name: str, *files: str) -> ctypes.CDLL | None:
    """Return the shared library found under its name or one of the file names, or None."""
    for candidate in (*files, ctypes.util.find_library(name)):
        if candidate:
            try:
                return ctypes.CDLL(candidate, mode=ctypes.RTLD_GLOBAL)
            except OSError:
                continue
    return None


@dataclass(frozen=True, slots=True)
class Device:
    """One entry of EGL's device list, whose index is what `MUJOCO_EGL_DEVICE_ID` means."""

    index: int
    handle: int
    cuda: int | None
    """CUDA's number of the same GPU; None: no NVIDIA device."""


def preferred(devices: list[Device], visible: str | None) -> list[Device]:
    """Return the devices in the order to try them, given `CUDA_VISIBLE_DEVICES` (None: not set).

    GPUs first, from the first visible one; if CUDA may see none, the others first. Identifiers that are no numbers
    (GPU-..., MIG-...) cannot be told from here: the driver's own order then stands.
    """
    gpus = sorted((d for d in devices if d.cuda is not None), key=lambda d: (d.cuda, d.index))
    others = [d for d in devices if d.cuda is None]
    if visible is None:
        return gpus + others
    names = [name.strip() for name in visible.split(",")]
    if names[0] in NO_GPU:
        return others + gpus
    numbers = [int(name) for name in names if name.isdecimal()]
    first = [gpu for number in numbers for gpu in gpus if gpu.cuda == number]
    return first + [gpu for gpu in gpus if gpu not in first] + others


class _EGL:
    """The few EGL calls that list devices and try them. Displays stay open: dm_control closes its own at exit."""

    _PLATFORM_DEVICE = 0x313F
    _CUDA_DEVICE = 0x323A

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        library.eglGetProcAddress.restype = ctypes.c_void_p
        library.eglGetProcAddress.argtypes = [ctypes.c_char_p]
        library.eglInitialize.argtypes = [ctypes.c_void_p] * 3

    def _extension(self, name: str, result: type, *arguments: type) -> Callable[..., int] | None:
        address = self._library.eglGetProcAddress(name.encode())
        return ctypes.CFUNCTYPE(result, *arguments)(address) if address else None

    def devices(self) -> list[Device]:
        """Return EGL's device list; empty where the driver cannot list devices."""
        pointer, integer = ctypes.c_void_p, ctypes.c_int
        query = self._extension("eglQueryDevicesEXT", ctypes.c_uint, integer, pointer, pointer)
        attribute = self._extension("eglQueryDeviceAttribEXT", ctypes.c_uint, pointer, integer, pointer)
        if query is None or attribute is None:
            return []
        handles, count = (ctypes.c_void_p * 64)(), ctypes.c_int(0)
        if not query(64, ctypes.addressof(handles), ctypes.addressof(count)):
            return []
        devices: list[Device] = []
        for index, handle in enumerate(handles[: count.value]):
            cuda = ctypes.c_ssize_t(-1)
            known = attribute(handle, self._CUDA_DEVICE, ctypes.addressof(cuda))
            devices.append(Device(index, handle or 0, int(cuda.value) if known else None))
        return devices

    def starts(self, device: Device) -> bool:
        """Whether a display can be opened on this device."""
        open_display = self._extension(
            "eglGetPlatformDisplayEXT", ctypes.c_void_p, ctypes.c_uint, ctypes.c_void_p, ctypes.c_void_p
        )
        if open_display is None:
            return False
        display = open_display(self._PLATFORM_DEVICE, device.handle, None)
        return bool(display) and bool(self._library.eglInitialize(display, None, None))
