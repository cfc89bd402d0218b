"""Pictures of a dm_control simulator: camera 0 at 64 x 64, equal to `physics.render(64, 64, camera_id=0)` but faster.

Imports mujoco, so import this only after `planet.gl.choose_backend`. Almost all the time of an environment step goes
into the picture, and in software GL most of that into a 2048 x 2048 shadow map. The modes:

- `exact`: one context with a 64 x 64 buffer for all pictures. With software GL, also: the floor, which shades
  nothing, is not drawn into the shadow map, and the map has no stencil plane. The pixels stay the same.
- `near`: also a 512 x 512 shadow map. Soft edges of shadows move by a few grey levels.
- `fast`: also round bodies of fewer facets (16 x 8 in place of 28 x 16).
"""

from __future__ import annotations

import importlib
import weakref
from typing import Any

import numpy as np
from dm_control import _render
from dm_control import mujoco as dm_mujoco
from dm_control.mujoco import wrapper
from jaxtyping import UInt8

from planet.config import Picture

mujoco: Any = importlib.import_module("mujoco")  # compiled modules, whose attributes a type checker cannot see
GL: Any = importlib.import_module("OpenGL.GL")
# PyOpenGL's own wrapper does not know the pixel type of a depth and stencil texture.
glTexImage2D: Any = importlib.import_module("OpenGL.raw.GL.VERSION.GL_1_0").glTexImage2D

SIZE = 64
_SHADOW_SIZE = {"near": 512, "fast": 512}


class Camera:
    """A GL context and a scene. Holds no state between pictures, so simulators of one task can share it."""

    def __init__(self, physics: dm_mujoco.Physics, picture: Picture) -> None:
        self._gl: Any = _render.Renderer(max_width=SIZE, max_height=SIZE)
        self._context = _make_context(physics.model, self._gl, picture)
        self._scene = mujoco.MjvScene(physics.model.ptr, maxgeom=1000)  # dm_control's own number
        self._option = mujoco.MjvOption()
        self._perturb = mujoco.MjvPerturb()
        self._fixed_camera = mujoco.MjvCamera()
        self._fixed_camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self._fixed_camera.fixedcamid = 0
        self._rect = mujoco.MjrRect(0, 0, SIZE, SIZE)
        self._buffer = np.empty((SIZE, SIZE, 3), np.uint8)
        with self._gl.make_current() as current:
            device = current.call(_device_name)
        self.renderer = f"{_render.BACKEND}, {device}"
        # Only where the rasteriser is the bottleneck; a GPU draws what dm_control would draw, call for call.
        self._hide_floor_from_light = is_software(device)
        if is_software(device):
            with self._gl.make_current() as current:
                current.call(_drop_stencil, self._context.ptr)

    def picture(self, physics: dm_mujoco.Physics) -> UInt8[np.ndarray, "3 64 64"]:
        """Return a new array: the simulator's present state, colour channel first, top row first."""
        mujoco.mjv_updateScene(
            physics.model.ptr, physics.data.ptr, self._option, self._perturb, self._fixed_camera,
            mujoco.mjtCatBit.mjCAT_ALL, self._scene,
        )  # fmt: skip
        if self._hide_floor_from_light:
            _hide_floor_from_light(self._scene)
        with self._gl.make_current() as current:
            current.call(self._draw)
        return np.ascontiguousarray(self._buffer[::-1].transpose(2, 0, 1))  # GL's first row is the bottom one

    def _draw(self) -> None:
        context = self._context.ptr
        mujoco.mjr_render(self._rect, self._scene, context)
        mujoco.mjr_readPixels(self._buffer, None, self._rect, context)


def shared(physics: dm_mujoco.Physics, key: tuple[str, str], picture: Picture) -> Camera:
    """Return the camera of all simulators with this key (whose models must look alike), made by the first.

    Ten evaluation environments then cost one GL context (with its 16 MB shadow map) and no context switches.
    The camera is freed when the last one lets go of it.
    """
    camera = _cameras.get((*key, picture))
    if camera is None:
        camera = _cameras[(*key, picture)] = Camera(physics, picture)
    return camera


_cameras: weakref.WeakValueDictionary[tuple[str, str, str], Camera] = weakref.WeakValueDictionary()


def is_software(device: str) -> bool:
    """Whether this GL_RENDERER string is one of Mesa's software rasterisers."""
    return any(name in device for name in ("llvmpipe", "softpipe", "swrast", "Software"))


def _make_context(model: wrapper.MjModel, gl_context: Any, picture: Picture) -> wrapper.MjrContext:
    """The model's drawing options count only while the context is made; the model is left as it was."""
    size, quality = model.vis.global_, model.vis.quality
    before = size.offwidth, size.offheight, quality.shadowsize, quality.numslices, quality.numstacks
    try:
        size.offwidth = size.offheight = SIZE
        if picture in _SHADOW_SIZE:
            quality.shadowsize = _SHADOW_SIZE[picture]
        if picture == "fast":
            quality.numslices, quality.numstacks = 16, 8
        return wrapper.MjrContext(model, gl_context)
    finally:
        size.offwidth, size.offheight, quality.shadowsize, quality.numslices, quality.numstacks = before


def _hide_floor_from_light(scene: Any) -> None:
    """Take the floor (geom 0 of every suite model) out of the shadow map: decoration is lit but casts no shadow."""
    for i in range(scene.ngeom):
        geom = scene.geoms[i]
        if geom.type == mujoco.mjtGeom.mjGEOM_PLANE and geom.objid == 0:
            geom.category = mujoco.mjtCatBit.mjCAT_DECOR
            return


def _device_name() -> str:
    return GL.glGetString(GL.GL_RENDERER).decode()


def _drop_stencil(context: Any) -> None:
    """Give the shadow map a texture of depth alone (24 bits, as before): software GL clears and fills it faster."""
    size = int(context.shadowSize)

    def allocate(internal: int, layout: int, kind: int) -> bool:
        glTexImage2D(GL.GL_TEXTURE_2D, 0, internal, size, size, 0, layout, kind, None)
        return GL.glCheckFramebufferStatus(GL.GL_FRAMEBUFFER) == GL.GL_FRAMEBUFFER_COMPLETE

    GL.glActiveTexture(GL.GL_TEXTURE1)  # the unit mujoco keeps the shadow map on
    GL.glBindTexture(GL.GL_TEXTURE_2D, int(context.shadowTex))
    GL.glBindFramebuffer(GL.GL_FRAMEBUFFER, int(context.shadowFBO))
    if not allocate(GL.GL_DEPTH_COMPONENT24, GL.GL_DEPTH_COMPONENT, GL.GL_UNSIGNED_INT):
        allocate(GL.GL_DEPTH24_STENCIL8, GL.GL_DEPTH_STENCIL, GL.GL_UNSIGNED_INT_24_8)  # as mujoco made it
    mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, context)
