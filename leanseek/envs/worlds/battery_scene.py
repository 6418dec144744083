"""Battery scene: a robot, its bay, two packs and a station in MuJoCo, and the controllers that carry skills out."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import Any, Literal

from leanseek.errors import TaskError
from leanseek.variables import draw_without_screen

Pack = Literal["old", "fresh"]

# How fast the robot walks, turns and moves its hand, and the longest way that it walks at once.
WALK_M_S, TURN_RAD_S, HAND_M_S, HAND_RAD_S = 1.5, 2.0, 0.8, 2.0
# Steps of 5 ms between two set points of a movement, and how many let a movement settle.
STRIDE, SETTLE = 4, 24
# Places of the hand, in metres, in the robot's frame: above the bay, in front of it, over a tray, and as it is carried.
BAY_X, FRONT_X, TRAY_X, TRAY_Y, CARRY_Z, READY_X = 0.19, 0.375, 0.62, 0.25, 0.16, 0.40
# Set points of the fingers; closed is past each other, so that they press with all they have.
OPEN, CLOSED = 0.0, -0.02
# Height at which a pack slides into the bay, a hair above its floor.
BAY_Z = 1.002
# How far above the tray a pack is let go.
PUT_M = 0.003
# Stiffness and damping of the hand's servo along x (battery_swap.xml), through which a force is commanded.
HAND_KP, HAND_KV = 12_000.0, 400.0
# The hand gives way to its own damping up to this speed, and no further: so fast does it push.
PUSH_M_S = 0.12
# A pack that is this far from the hand is not in it; one this low has fallen; one this tilted (cosine) has tipped over.
GRASP_M, FALLEN_M, UPRIGHT = 0.04, 0.9, 0.9
# The plug's travel at which its contacts bend, how far the latch's pin rises, and how far it must.
BENT_M, LATCH_M, LATCHED_M = 0.0115, 0.032, 0.026
# Ends of the hand's pose along y and about z: beyond them a request is cut off, as the joints would.
REACH_Y, REACH_YAW = 0.42, 0.7
PUSH_STEPS = 200


@dataclass(frozen=True)
class Setup:
    """How a scene begins, in metres, radians and newtons.

    Args:
        start: where the robot stands: x, y and heading; the station wants it at (0, 0, 0).
        fresh: how far the fresh pack lies from its tray's middle: along y, and turned.
        bias: how far the arm errs in front of the bay: along y, and turned.
        spring_n: what the contacts at the bay's end push back with, at first touch.
        drawn: whether the old pack already is out of the bay, on its tray.
    """

    start: tuple[float, float, float]
    fresh: tuple[float, float]
    bias: tuple[float, float]
    spring_n: float
    drawn: bool = False


class BatteryScene:
    """One scene under way. Skills return nothing: what happened is read off the bodies afterwards.

    Args:
        setup: how it begins.
        record: whether poses are kept for a film.
    Raises:
        TaskError: MuJoCo is not installed.
    """

    def __init__(self, setup: Setup, *, record: bool = False) -> None:
        self._mujoco, self.model, self._index = _load()
        self.data = self._mujoco.MjData(self.model)
        self.setup = setup
        self.bent = False
        # Every 40 ms or so of the scene: (seconds, qpos).
        self.frames: list[tuple[float, Any]] | None = [] if record else None
        self._begin()

    def copy(self) -> BatteryScene:
        """Return the scene as it now is, to go on by itself; to the last bit as this one would."""
        copied = copy.copy(self)
        copied.data = copy.copy(self.data)
        copied.frames = None if self.frames is None else list(self.frames)
        return copied

    @property
    def seconds(self) -> float:
        """Time that passed in the scene."""
        return float(self.data.time)

    def _begin(self) -> None:
        setup = self.setup
        for name, value in zip(("base_x", "base_y", "base_yaw"), setup.start, strict=True):
            self._qpos(name, value)
            self._set(name, value)
        x, y, yaw = setup.start
        if setup.drawn:
            self._place("old", TRAY_X, TRAY_Y, 0.98, 0.0)
        else:
            ahead = BAY_X + 0.004  # against the pin: the spring holds it there
            self._place("old", x + ahead * math.cos(yaw), y + ahead * math.sin(yaw), 1.0, yaw)
            self._qpos("latch", LATCH_M)
            self._set("latch", LATCH_M)
        self._place("fresh", TRAY_X, -TRAY_Y + setup.fresh[0], 0.98, setup.fresh[1])
        for name, value in (("hand_x", READY_X), ("hand_z", CARRY_Z)):
            self._qpos(name, value)
            self._set(name, value)
        self.data.qfrc_applied[self._index["dof", "plug"]] = setup.spring_n
        self._step(STRIDE)

    # What a controller may know: poses by joint sensors and camera.

    def base(self) -> tuple[float, float, float]:
        """Return where the robot stands: x, y and heading."""
        qpos = self.data.qpos
        return tuple(float(qpos[self._index["qpos", n]]) for n in ("base_x", "base_y", "base_yaw"))  # type: ignore[return-value]

    def on_tray(self, pack: Pack) -> tuple[float, float]:
        """Return how far a pack is from the middle of its tray: along y, and turned."""
        _, y, _, yaw = self._pose(pack)
        return y - (TRAY_Y if pack == "old" else -TRAY_Y), yaw

    def in_bay(self, pack: Pack) -> tuple[float, float, float]:
        """Return how a pack stands to the bay: metres still to go, offset along y, and turn, in the robot's frame."""
        bx, by, byaw = self.base()
        x, y, _, yaw = self._pose(pack)
        dx, dy = x - bx, y - by
        ahead = math.cos(byaw) * dx + math.sin(byaw) * dy
        left = -math.sin(byaw) * dx + math.cos(byaw) * dy
        return ahead - (BAY_X + 0.004), left, _wrapped(yaw - byaw)

    def height(self, pack: Pack) -> float:
        """Return the height of a pack's middle."""
        return self._pose(pack)[2]

    def held(self) -> Pack | None:
        """Return the pack that both fingers touch."""
        touched: dict[str, set[str]] = {"old": set(), "fresh": set()}
        names = self._index["geoms"]
        for contact in self.data.contact:
            pair = {names[contact.geom1], names[contact.geom2]}
            for pack, fingers in touched.items():
                if f"{pack}_fin" in pair:
                    fingers |= pair & {"finger_left", "finger_right"}
        found: tuple[Pack, ...] = ("old", "fresh")
        return next((pack for pack in found if len(touched[pack]) == 2), None)

    def fallen(self) -> Pack | None:
        """Return a pack that lies on the floor or is tipped over."""
        packs: tuple[Pack, ...] = ("old", "fresh")
        for pack in packs:
            body = self._index["body", pack]
            if self.data.xpos[body][2] < FALLEN_M or self.data.xmat[body][8] < UPRIGHT:
                return pack
        return None

    def latched(self) -> bool:
        """Whether the latch's pin stands in front of a pack that is in the bay."""
        up = self.data.qpos[self._index["qpos", "latch"]] > LATCHED_M
        return bool(up) and any(abs(self.in_bay(pack)[0]) < 0.006 for pack in ("old", "fresh"))

    def pin_up(self) -> bool:
        """Whether the latch's pin is up."""
        return bool(self.data.qpos[self._index["qpos", "latch"]] > LATCHED_M)

    # Skills.

    def walk(self, x: float, y: float, heading: float) -> None:
        """Walk straight to a place, then turn; the hand stays where it is, seen from the robot."""
        now = self._targets("base_x", "base_y", "base_yaw")
        seconds = max(math.hypot(x - now[0], y - now[1]) / WALK_M_S, abs(heading - now[2]) / TURN_RAD_S, 0.1)
        self._move(seconds, base_x=x, base_y=y, base_yaw=heading)

    def unlatch(self) -> None:
        """Draw the pin down."""
        self._move(0.1, latch=-LATCH_M)  # past its end, for the pack presses on it
        self._step(STRIDE)
        self._set("latch", 0.0)

    def latch(self) -> None:
        """Let go of a pack that is held, step back with the hand, and drive the pin up; a pack in its way stops it."""
        self._move(0.1, latch=LATCH_M)
        self._step(STRIDE)
        if self.pin_up():
            self._open()

    def pull(self, metres: float) -> None:
        """Take the pack in the bay by its fin and draw it out so far."""
        if self.held() is None:
            place = self.in_bay("old")[0] if abs(self.in_bay("old")[0]) < 0.1 else self.in_bay("fresh")[0]
            self._over(BAY_X + 0.004 + place, 0.0, 0.0)
            self._close()
        self._hand(hand_x=BAY_X + 0.004 + metres, settle=SETTLE)

    def release(self) -> None:
        """Carry what is held to the old pack's tray, put it down, and open the hand."""
        x, y, yaw = self._seen(TRAY_X, TRAY_Y)
        self._hand(hand_z=CARRY_Z)
        self._hand(hand_x=x, hand_y=y, hand_yaw=yaw)
        self._hand(hand_z=-0.02 + PUT_M, settle=SETTLE)
        self._open()

    def grasp(self, dy: float, angle: float) -> None:
        """Reach over the fresh pack's tray, so far from its middle and so turned, close the fingers and lift."""
        x, y, yaw = self._seen(TRAY_X, -TRAY_Y + dy)
        self._over(x, y, yaw + angle, down=-0.02)
        self._close()
        self._hand(hand_z=CARRY_Z, settle=STRIDE)

    def align(self, dy: float, angle: float) -> None:
        """Bring what is held in front of the bay, moved and turned by so much from where the hand now is there."""
        z = self._targets("hand_z")[0]
        if z > 0.02:  # it comes from the tray
            # The arm errs in front of the bay by as much as its calibration is off.
            self._hand(hand_x=FRONT_X, hand_y=self.setup.bias[0], hand_yaw=self.setup.bias[1])
            self._hand(hand_z=0.005, settle=STRIDE)
            held = self.held()
            if held is not None:  # it sags a little in the fingers: the camera sees how much
                self._hand(hand_z=self._targets("hand_z")[0] + BAY_Z - self.height(held))
        y, yaw = self._targets("hand_y", "hand_yaw")
        self._hand(hand_y=y + dy, hand_yaw=yaw + angle, settle=SETTLE)

    def insert(self, newtons: float) -> None:
        """Push what is held into the bay with so much force, until it stops."""
        start = self.seconds
        hand_x, velocity = self._index["qpos", "hand_x"], self._index["dof", "hand_x"]
        for count in range(PUSH_STEPS):
            # A force through a position servo: the set point runs ahead of the hand, and its damping is made up for.
            ease = min(1.0, (self.seconds - start) / 0.1)
            speed = min(max(-float(self.data.qvel[velocity]), 0.0), PUSH_M_S)
            ahead = (newtons * ease + HAND_KV * speed) / HAND_KP
            self._set("hand_x", max(0.05, float(self.data.qpos[hand_x]) - ahead))
            self._step(2)
            if count > 20 and abs(self.data.qvel[velocity]) < 0.002:
                break
        self.bent = self.bent or bool(self.data.qpos[self._index["qpos", "plug"]] < -BENT_M)
        self._set("hand_x", float(self.data.qpos[hand_x]) - newtons / HAND_KP)

    # How the skills move joints.

    def _seen(self, x: float, y: float) -> tuple[float, float, float]:
        """Return a place of the station in the robot's frame, and the station's direction."""
        bx, by, yaw = self.base()
        dx, dy = x - bx, y - by
        return math.cos(yaw) * dx + math.sin(yaw) * dy, -math.sin(yaw) * dx + math.cos(yaw) * dy, -yaw

    def _over(self, x: float, y: float, yaw: float, down: float = 0.0) -> None:
        self._open_wide()
        self._hand(hand_z=CARRY_Z)
        self._hand(hand_x=x, hand_y=y, hand_yaw=yaw)
        self._hand(hand_z=down, settle=STRIDE)

    def _close(self) -> None:
        self._set("finger_left", CLOSED)
        self._set("finger_right", CLOSED)
        self._step(SETTLE)

    def _open_wide(self) -> None:
        self._set("finger_left", OPEN)
        self._set("finger_right", OPEN)
        self._step(STRIDE)

    def _open(self) -> None:
        self._open_wide()
        self._step(STRIDE)
        self._hand(hand_z=CARRY_Z)

    def _hand(self, *, settle: int = 0, **targets: float) -> None:
        targets = {
            name: min(max(value, low), high)
            for name, value in targets.items()
            for low, high in [self._index["range", name]]
        }
        now = self._targets(*targets)
        seconds = 0.06
        for (name, value), at in zip(targets.items(), now, strict=True):
            seconds = max(seconds, abs(value - at) / (HAND_RAD_S if name == "hand_yaw" else HAND_M_S))
        self._move(seconds, **targets)
        if settle:
            self._step(settle)

    def _move(self, seconds: float, **targets: float) -> None:
        """Lead set points to their targets, evenly after a smooth start and before a smooth end."""
        start = dict(zip(targets, self._targets(*targets), strict=True))
        strides = max(1, round(seconds / (STRIDE * 0.005)))
        for i in range(1, strides + 1):
            share = i / strides
            share = share * share * (3 - 2 * share)
            for name, value in targets.items():
                self._set(name, start[name] + share * (value - start[name]))
            self._step(STRIDE)

    def _step(self, steps: int) -> None:
        self._mujoco.mj_step(self.model, self.data, steps)
        if self.frames is not None and (not self.frames or self.seconds - self.frames[-1][0] >= 0.04):
            self.frames.append((self.seconds, self.data.qpos.copy()))

    def _set(self, name: str, value: float) -> None:
        self.data.ctrl[self._index["ctrl", name]] = value

    def _targets(self, *names: str) -> list[float]:
        return [float(self.data.ctrl[self._index["ctrl", name]]) for name in names]

    def _qpos(self, name: str, value: float) -> None:
        self.data.qpos[self._index["qpos", name]] = value

    def _place(self, pack: Pack, x: float, y: float, z: float, yaw: float) -> None:
        at = self._index["qpos", pack]
        self.data.qpos[at : at + 7] = (x, y, z, math.cos(yaw / 2), 0, 0, math.sin(yaw / 2))

    def _pose(self, pack: Pack) -> tuple[float, float, float, float]:
        at = self._index["qpos", pack]
        x, y, z, qw, qx, qy, qz = (float(v) for v in self.data.qpos[at : at + 7])
        return x, y, z, math.atan2(2 * (qw * qz + qx * qy), 1 - 2 * (qy * qy + qz * qz))


def _wrapped(angle: float) -> float:
    return math.atan2(math.sin(angle), math.cos(angle))


@lru_cache(maxsize=1)
def _load() -> tuple[Any, Any, dict[Any, Any]]:
    """Return MuJoCo, the compiled model (which nothing changes: threads share it), and where its parts are."""
    draw_without_screen()
    try:
        import mujoco  # noqa: PLC0415 - an extra
    except ImportError:
        raise TaskError("battery_swap needs the package mujoco: pip install 'leanseek[worlds]'") from None
    text = (resources.files("leanseek.envs.worlds") / "battery_swap.xml").read_text(encoding="utf-8")
    model = mujoco.MjModel.from_xml_string(text)
    index: dict[Any, Any] = {"geoms": [model.geom(i).name for i in range(model.ngeom)]}
    for i in range(model.njnt):
        joint = model.joint(i)
        index["qpos", joint.name], index["dof", joint.name] = int(joint.qposadr[0]), int(joint.dofadr[0])
        index["range", joint.name] = tuple(float(v) for v in joint.range)
    for i in range(model.nu):
        index["ctrl", model.actuator(i).name] = i
    for pack in ("old", "fresh"):
        index["body", pack] = model.body(pack).id
    return mujoco, model, index
