"""Film: a battery scene's recorded poses, rendered off screen, as an animated WebP with a line of text below."""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from leanseek.envs.worlds.battery_scene import BatteryScene
from leanseek.errors import TaskError

WIDTH, HEIGHT = 400, 300
# Scenes are shown a little slower than they happen, and no longer than this many pictures.
SLOWNESS, MOST_PICTURES = 1.25, 240
HOLD_MS = 1500
# Where the arm and the legs, which are drawn and not simulated, are joined to the body; the arm's two lengths.
SHOULDER, UPPER, FORE, HIP = (-0.02, -0.21, 1.33), 0.44, 0.46, 0.86
STRIDE_M = 0.35
GREY, DARK = (0.86, 0.87, 0.9, 1.0), (0.3, 0.33, 0.38, 1.0)


def film(scene: BatteryScene, captions: Sequence[tuple[float, str]] = ()) -> bytes:
    """Return a film of a scene, as the bytes of an animated WebP.

    Args:
        scene: that recorded its poses.
        captions: from which second on which line is shown.
    Raises:
        TaskError: no picture can be drawn on this machine, or Pillow is not installed.
    """
    try:
        from PIL import Image, ImageDraw  # noqa: PLC0415 - an extra
    except ImportError:
        raise TaskError("a film needs the package pillow: pip install 'leanseek[worlds]'") from None
    frames = scene.frames or []
    every = max(1, math.ceil(len(frames) / MOST_PICTURES))
    pictures, times = [], []
    painter = _Painter(scene)
    try:
        walked, before = 0.0, None
        for i, (seconds, qpos) in enumerate(frames):
            place = (float(qpos[0]), float(qpos[1]))
            walked += 0.0 if before is None else math.dist(place, before)
            before = place
            if i % every:
                continue
            picture = Image.fromarray(painter.paint(qpos, walked))
            line = next((text for start, text in reversed(captions) if start <= seconds), "")
            draw = ImageDraw.Draw(picture)
            draw.rectangle((0, HEIGHT - 18, WIDTH, HEIGHT), fill=(20, 24, 32))
            draw.text((6, HEIGHT - 15), f"{seconds:4.1f} s  {line}", fill=(235, 238, 245))
            pictures.append(picture)
            times.append(seconds)
    finally:
        painter.close()
    if not pictures:
        raise TaskError("a film needs a scene that recorded its poses")
    lasts = [round(1000 * SLOWNESS * (b - a)) for a, b in itertools.pairwise(times)] + [HOLD_MS]
    written = io.BytesIO()
    pictures[0].save(
        written, "WEBP", save_all=True, append_images=pictures[1:], duration=lasts, loop=0, quality=55, method=2
    )
    return written.getvalue()


class _Painter:
    """Draws poses of the scene's model."""

    def __init__(self, scene: BatteryScene) -> None:
        try:
            import mujoco  # noqa: PLC0415 - an extra

            self._mujoco: Any = mujoco
            self.data = mujoco.MjData(scene.model)
            self.renderer = mujoco.Renderer(scene.model, HEIGHT, WIDTH)
        except Exception as error:  # whatever the machine's graphics libraries have to say
            raise TaskError(
                f"no picture can be drawn here ({type(error).__name__}: {error}); libegl1 or libosmesa6 with "
                "MUJOCO_GL=osmesa draws without a screen"
            ) from None
        self.model = scene.model

    def paint(self, qpos: Any, walked: float) -> Any:
        """Return a picture of a pose, (height, width, 3) bytes.

        Args:
            qpos: the pose.
            walked: metres so far, for the legs.
        """
        self.data.qpos[:] = qpos
        self._mujoco.mj_forward(self.model, self.data)
        self.renderer.update_scene(self.data, camera="side")
        self._limbs(walked)
        return self.renderer.render()

    def close(self) -> None:
        """Free what the graphics library holds."""
        self.renderer.close()

    def _limbs(self, walked: float) -> None:
        """Draw an arm from the shoulder to the simulated hand, and legs that step as the robot moves."""
        robot = self.model.body("robot").id
        turn, at = self.data.xmat[robot].reshape(3, 3), self.data.xpos[robot]

        def out(point: Sequence[float]) -> list[float]:
            return [float(v) for v in turn @ list(point) + at]

        hand_world = self.data.xpos[self.model.body("hand").id]
        hand = [float(v) for v in turn.T @ (hand_world - at)]
        hand[2] += 0.085
        self._bone(out(SHOULDER), out(elbow := _elbow(SHOULDER, hand)), 0.04, GREY)
        self._bone(out(elbow), out(hand), 0.034, DARK)
        for side, phase in ((0.09, 0.0), (-0.09, math.pi)):
            swing = 0.16 * math.sin(2 * math.pi * walked / (2 * STRIDE_M) + phase)
            knee, foot = (0.06 + swing / 2, side, 0.47), (swing, side, 0.06)
            self._bone(out((-0.02, side, HIP)), out(knee), 0.06, GREY)
            self._bone(out(knee), out(foot), 0.05, GREY)
            self._bone(out(foot), out((foot[0] + 0.12, side, 0.04)), 0.04, DARK)
        left = (-0.02, 0.21, 1.33)
        self._bone(out(left), out((-0.03, 0.25, 1.08)), 0.04, GREY)
        self._bone(out((-0.03, 0.25, 1.08)), out((0.05, 0.25, 0.86)), 0.034, DARK)

    def _bone(self, start: Sequence[float], end: Sequence[float], radius: float, colour: Sequence[float]) -> None:
        scene = self.renderer.scene
        if scene.ngeom >= scene.maxgeom:
            return
        geom = scene.geoms[scene.ngeom]
        capsule = self._mujoco.mjtGeom.mjGEOM_CAPSULE
        self._mujoco.mjv_initGeom(
            geom, capsule, np.zeros(3), np.zeros(3), np.eye(3).ravel(), np.array(colour, np.float32)
        )
        self._mujoco.mjv_connector(geom, capsule, radius, np.array(start), np.array(end))
        scene.ngeom += 1


def _elbow(shoulder: Sequence[float], hand: Sequence[float]) -> tuple[float, float, float]:
    """Return where an arm of two lengths bends, downwards and outwards."""
    way = [b - a for a, b in zip(shoulder, hand, strict=True)]
    length = max(1e-6, math.hypot(*way))
    reach = min(length, 0.999 * (UPPER + FORE))
    along = (UPPER**2 - FORE**2 + reach**2) / (2 * reach)
    aside = math.sqrt(max(0.0, UPPER**2 - along**2))
    unit = [v / length for v in way]
    down = [0.0, -0.5, -1.0]
    dot = sum(a * b for a, b in zip(unit, down, strict=True))
    normal = [d - dot * u for d, u in zip(down, unit, strict=True)]
    size = max(1e-6, math.hypot(*normal))
    x, y, z = (s + along * u + aside * n / size for s, u, n in zip(shoulder, unit, normal, strict=True))
    return x, y, z
