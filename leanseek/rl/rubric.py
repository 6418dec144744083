"""Rubric: how good a reply is beyond being right, as a weighted list of checks that need no judge."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from leanseek.envs.environment import Environment
from leanseek.errors import ConfigError, nearest
from leanseek.evals.attempts import Attempt, is_sound

Check = Callable[[Attempt, Environment | None], bool]


def graded(attempt: Attempt, rubric: Mapping[str, float], environment: Environment | None = None) -> float:
    """Return the sum of the weights of the checks that a right reply passes; a wrong one gets nothing.

    Points for style alone would be the easiest reward to hack, so they count for right answers only.

    Args:
        attempt: the reply.
        rubric: a key of CHECKS -> weight.
        environment: the problem's; `sound` needs it.
    """
    if not attempt.correct:
        return 0.0
    return sum(weight for name, weight in rubric.items() if CHECKS[name](attempt, environment))


def check_rubric(rubric: Mapping[str, float]) -> None:
    """Refuse a check that does not exist.

    Raises:
        ConfigError: there is one.
    """
    for name in rubric:
        if name not in CHECKS:
            have = ", ".join(CHECKS)
            raise ConfigError(f"grpo.rubric has no check {name!r}{nearest(name, CHECKS)}; have {have}")


def _lines(attempt: Attempt) -> list[str]:
    return [line.strip() for line in (attempt.reply.reasoning_content or "").split("\n") if line.strip()]


def _sound(attempt: Attempt, environment: Environment | None) -> bool:
    return environment is not None and is_sound(environment, attempt) is True


def _fresh(attempt: Attempt, environment: Environment | None) -> bool:
    lines = _lines(attempt)
    return len(set(lines)) == len(lines)


def _brief(attempt: Attempt, environment: Environment | None) -> bool:
    return len(attempt.reply.content.strip().split("\n")) == 1


def _ended(attempt: Attempt, environment: Environment | None) -> bool:
    return attempt.output.finish_reason == "stop"


def _leads(attempt: Attempt, environment: Environment | None) -> bool:
    lines = _lines(attempt)
    return bool(lines) and attempt.reply.content.strip() in lines[-1]


# sound: every line of the thinking is right. fresh: no line of it says what another said. brief: the answer is one
# line. ended: the reply ended by itself. leads: the thinking's last line has the answer.
CHECKS: dict[str, Check] = {"sound": _sound, "fresh": _fresh, "brief": _brief, "ended": _ended, "leads": _leads}
