"""Endpoint: a server that speaks OpenAI's protocol, as a teacher: problems in, scored replies out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from leanseek.engine.request import Output
from leanseek.envs.environment import Environment, Problem
from leanseek.evals.attempts import Attempt, score
from leanseek.rl.client import PAUSES_S, Client
from leanseek.sections.distillation import TracesSettings


class Endpoint:
    """A teacher behind a URL.

    Args:
        url: of the server.
        settings: how it is asked.
        environments: by name, which score its replies.
        pauses_s: before each further try.
    Raises:
        ServerError: it does not answer, or names no model.
    """

    def __init__(
        self,
        url: str,
        settings: TracesSettings,
        environments: Mapping[str, Environment],
        pauses_s: Sequence[float] = PAUSES_S,
    ) -> None:
        self._client = Client(url, settings.model, pauses_s)
        self._settings, self._environments = settings, environments
        self.model, self.shown = self._client.model, self._client.shown

    def reply(self, problems: Sequence[Problem], first: int) -> list[Attempt]:
        """Return `samples` scored replies to each problem, side by side; so many requests at once as the settings say.

        Raises:
            ServerError: a request failed for good; replies to other problems of the call are lost.
        """
        work = [problem for problem in problems for _ in range(self._settings.samples)]
        with ThreadPoolExecutor(self._settings.at_once) as pool:
            pending = [pool.submit(self._attempt, problem) for problem in work]
            try:
                return [one.result() for one in pending]
            except BaseException:
                for one in pending:
                    one.cancel()
                raise

    def _attempt(self, problem: Problem) -> Attempt:
        environment, settings = self._environments[problem.environment], self._settings
        messages = environment.start(problem).messages
        reply, finish = self._client.chat(
            messages, temperature=settings.temperature, max_tokens=settings.max_new_tokens
        )
        rewards, error = score(environment, problem, reply)
        correct, formed = rewards.get("correct", 0.0) >= 1.0, rewards.get("format", 0.0) >= 1.0
        # Its tokens are not known, and the text's bytes tell replies apart and compare their lengths as well.
        said = f"{reply.reasoning_content}\n{reply.content}"
        output = Output("", 0, list(said.encode()), said, finish_reason="stop" if finish == "stop" else "length")
        return Attempt(problem, [], reply, output, rewards, correct, formed, error)
