from __future__ import annotations

import ctypes
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from planet import gl
from planet.gl import Device, MissingGL, check_backend, choose_backend, preferred

VARIABLES = ("MUJOCO_GL", "PYOPENGL_PLATFORM", "MUJOCO_EGL_DEVICE_ID", "CUDA_VISIBLE_DEVICES")
VARIABLES += ("DISABLE_RENDER_THREAD_OFFLOADING", "DISPLAY", "WAYLAND_DISPLAY")


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A process that has chosen nothing and imported no dm_control, with both software libraries."""
    for name in VARIABLES:
        monkeypatch.setenv(name, "")  # so that what the code under test sets is undone afterwards
        monkeypatch.delenv(name)
    monkeypatch.delitem(sys.modules, "dm_control._render", raising=False)
    monkeypatch.setattr(gl, "_EGL", fake_egl([Device(0, 1, None)]))
    present(monkeypatch, "EGL", "OpenGL", "GL", "OSMesa")
    return monkeypatch


def present(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    library = ctypes.CDLL(None)
    monkeypatch.setattr(gl, "load_library", lambda name, *files: library if name in names else None)


def fake_egl(devices: list[Device], broken: tuple[int, ...] = ()) -> Any:
    class FakeEGL:
        def __init__(self, library: ctypes.CDLL) -> None: ...

        def devices(self) -> list[Device]:
            return devices

        def starts(self, device: Device) -> bool:
            return device.index not in broken

    return FakeEGL


FOUR_GPUS = [Device(0, 10, 2), Device(1, 11, 0), Device(2, 12, 3), Device(3, 13, 1), Device(4, 14, None)]


def test_egl_comes_first_and_everything_dm_control_reads_is_set(fresh: pytest.MonkeyPatch) -> None:
    assert choose_backend() == "egl"

    assert os.environ["MUJOCO_GL"] == os.environ["PYOPENGL_PLATFORM"] == "egl"
    assert os.environ["MUJOCO_EGL_DEVICE_ID"] == "0"
    assert choose_backend() == "egl"  # and again, now that it is set


def test_checking_says_the_same_and_sets_nothing(fresh: pytest.MonkeyPatch) -> None:
    before = dict(os.environ)
    assert check_backend() == "egl"
    assert dict(os.environ) == before

    present(fresh)
    with pytest.raises(MissingGL, match="no OpenGL for off-screen pictures"):
        check_backend()


def test_osmesa_takes_over_where_egl_lacks_something(fresh: pytest.MonkeyPatch) -> None:
    for libraries in (("OSMesa",), ("EGL", "OSMesa")):
        for name in VARIABLES:
            fresh.delenv(name, raising=False)
        present(fresh, *libraries)
        assert choose_backend() == "osmesa"
        assert os.environ["PYOPENGL_PLATFORM"] == "osmesa"


def test_osmesa_takes_over_where_no_egl_device_starts(fresh: pytest.MonkeyPatch) -> None:
    for devices in ([], [Device(0, 1, None)]):
        for name in VARIABLES:
            fresh.delenv(name, raising=False)
        fresh.setattr(gl, "_EGL", fake_egl(devices, broken=(0,)))
        assert choose_backend() == "osmesa"
        assert "MUJOCO_EGL_DEVICE_ID" not in os.environ


@pytest.mark.parametrize("asked", ["egl", "osmesa"])
def test_a_back_end_that_was_asked_for_is_respected(asked: str, fresh: pytest.MonkeyPatch) -> None:
    fresh.setenv("MUJOCO_GL", asked)
    fresh.setenv("PYOPENGL_PLATFORM", "other")  # would make dm_control fail

    assert choose_backend() == asked
    assert os.environ["PYOPENGL_PLATFORM"] == asked


def test_glfw_is_only_used_when_asked_for_and_needs_a_display(fresh: pytest.MonkeyPatch) -> None:
    fresh.setenv("MUJOCO_GL", "glfw")
    with pytest.raises(MissingGL, match="no display .*xvfb-run"):
        choose_backend()

    fresh.setenv("DISPLAY", ":0")
    assert choose_backend() == "glfw"


def test_no_library_at_all_says_what_each_lacks_and_what_to_type(fresh: pytest.MonkeyPatch) -> None:
    present(fresh)
    with pytest.raises(MissingGL) as caught:
        choose_backend()

    message = str(caught.value)
    assert "libEGL.so.1 is missing (package libegl1)" in message
    assert "libOSMesa.so is missing (package libosmesa6)" in message
    assert message.endswith("as root: apt-get install -y libegl1 libgl1 libopengl0 libgl1-mesa-dri libosmesa6")


@pytest.mark.parametrize(
    ("asked", "libraries", "expected"),
    [
        ("egl", ("OSMesa",), "no OpenGL for MUJOCO_GL=egl: EGL: libEGL.so.1 is missing"),
        ("egl", ("EGL", "OSMesa"), "neither libOpenGL.so.0 nor libGL.so.1"),
        ("osmesa", ("EGL", "GL"), "no OpenGL for MUJOCO_GL=osmesa: OSMesa"),
    ],
)
def test_a_back_end_that_was_asked_for_is_not_replaced(
    asked: str, libraries: tuple[str, ...], expected: str, fresh: pytest.MonkeyPatch
) -> None:
    fresh.setenv("MUJOCO_GL", asked)
    present(fresh, *libraries)
    with pytest.raises(MissingGL, match=expected):
        choose_backend()


def test_an_egl_without_a_driver_is_named(fresh: pytest.MonkeyPatch) -> None:
    fresh.setattr(gl, "_EGL", fake_egl([Device(0, 1, None), Device(1, 2, None)], broken=(0, 1)))
    present(fresh, "EGL", "GL")
    with pytest.raises(MissingGL, match=r"none of 2 devices starts \(package libgl1-mesa-dri"):
        choose_backend()


@pytest.mark.parametrize("value", ["off", "vulkan", "0"])
def test_a_value_that_cannot_draw_is_an_error(value: str, fresh: pytest.MonkeyPatch) -> None:
    fresh.setenv("MUJOCO_GL", value)
    with pytest.raises(ValueError, match=rf"MUJOCO_GL must be one of egl, osmesa, glfw \(or unset\), got '{value}'"):
        choose_backend()


def test_the_gpu_that_cuda_sees_first_draws(fresh: pytest.MonkeyPatch) -> None:
    for visible, expected in (
        (None, "1"),
        ("2", "0"),
        ("3,0", "2"),
        ("0", "1"),
        ("", "4"),
        ("-1", "4"),
        ("NoDevFiles", "4"),
        ("GPU-1a2b", "1"),
    ):
        fresh.delenv("MUJOCO_EGL_DEVICE_ID", raising=False)
        fresh.setattr(gl, "_EGL", fake_egl(FOUR_GPUS))
        fresh.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if visible is not None:
            fresh.setenv("CUDA_VISIBLE_DEVICES", visible)
        choose_backend()
        assert os.environ["MUJOCO_EGL_DEVICE_ID"] == expected, visible


def test_a_gpu_that_does_not_start_is_passed_over(fresh: pytest.MonkeyPatch) -> None:
    fresh.setattr(gl, "_EGL", fake_egl(FOUR_GPUS, broken=(1, 3)))
    assert choose_backend() == "egl"
    assert os.environ["MUJOCO_EGL_DEVICE_ID"] == "0"


def test_a_device_that_was_asked_for_is_respected(fresh: pytest.MonkeyPatch) -> None:
    fresh.setenv("MUJOCO_EGL_DEVICE_ID", "4")
    fresh.setattr(gl, "_EGL", fake_egl(FOUR_GPUS))
    choose_backend()
    assert os.environ["MUJOCO_EGL_DEVICE_ID"] == "4"


def test_every_device_is_tried_once() -> None:
    for visible in (None, "", "1", "2,0", "7", "MIG-x,1"):
        assert sorted(device.index for device in preferred(FOUR_GPUS, visible)) == [0, 1, 2, 3, 4]
    assert [device.index for device in preferred(FOUR_GPUS, "3,1")] == [2, 3, 1, 0, 4]


def test_a_dm_control_already_imported_decides(fresh: pytest.MonkeyPatch) -> None:
    class Rendering:
        BACKEND: str = "osmesa"

    fresh.setitem(sys.modules, "dm_control._render", Rendering)  # type: ignore[arg-type]
    assert choose_backend() == "osmesa"

    Rendering.BACKEND = "off"
    with pytest.raises(MissingGL, match="which draws nothing"):
        choose_backend()

    Rendering.BACKEND = "glfw"  # what dm_control takes where MUJOCO_GL is not set
    with pytest.raises(MissingGL, match=r"call planet\.gl\.choose_backend\(\) before the first import of dm_control"):
        choose_backend()
    fresh.setenv("DISPLAY", ":0")
    assert choose_backend() == "glfw"


def test_load_library_finds_what_is_there_only() -> None:
    assert gl.load_library("c", "libc.so.6") is not None
    assert gl.load_library("planet-has-no-such-library", "libplanet-none.so.1") is None


DRAW = """
import os
from planet.gl import choose_backend
name = choose_backend()
import dm_control._render
print(name, dm_control._render.BACKEND, os.environ.get("MUJOCO_EGL_DEVICE_ID", ""))
"""


@pytest.mark.parametrize("asked", ["", "egl", "osmesa"])
def test_dm_control_follows_the_choice_on_this_machine(asked: str, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    if asked:
        environment["MUJOCO_GL"] = asked
    done = subprocess.run([sys.executable, "-c", DRAW], env=environment, capture_output=True, text=True)

    assert done.returncode == 0, done.stderr
    chosen, dm_control, device = done.stdout.rstrip("\n").split(" ")
    assert chosen == dm_control == (asked or chosen)
    assert device.isdecimal() == (chosen == "egl")


TRITON_AFTER_A_PICTURE = """
from planet.config import EnvConfig
from planet.envs import make_env
from planet.tasks import TASKS
env = make_env(TASKS["cartpole_swingup"], EnvConfig())
before = env.reset(0)
import torch
torch.optim.Adam([torch.nn.Parameter(torch.zeros(3))])  # loads Triton
assert "triton" in sys.modules and (env.reset(0) == before).all()
"""


@pytest.mark.parametrize("backend", ["egl", "osmesa"])
def test_triton_and_the_driver_of_pictures_live_in_one_process(backend: str) -> None:
    """Each brings an LLVM; in the wrong order the process ends with a segmentation fault."""
    if importlib.util.find_spec("triton") is None:  # asked without loading it into this process
        pytest.skip("Triton is not installed")
    done = subprocess.run(
        [sys.executable, "-c", "import sys\n" + TRITON_AFTER_A_PICTURE],
        env={**os.environ, "MUJOCO_GL": backend}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if "MissingGL" in done.stderr:
        pytest.skip(f"{backend} is not installed")
    assert done.returncode == 0, done.stderr
