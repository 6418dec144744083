"""A server as a teacher: what it is asked, what is made of its replies, and how it may fail."""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from leanseek.envs.environment import load_environment
from leanseek.errors import ServerError
from leanseek.rl.endpoint import Endpoint
from leanseek.sections.distillation import TracesSettings

TASK = load_environment("largest")


class Teacher(BaseHTTPRequestHandler):
    """Replies with the largest number of its prompt; `plan` says what goes wrong before."""

    def do_GET(self):
        self.answer(200, {"data": [{"id": "wise"}]})

    def do_POST(self):
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with server.lock:
            server.asked.append((body, self.headers.get("authorization")))
            server.busy += 1
            server.most = max(server.most, server.busy)
            wrong = server.plan.pop(0) if server.plan else None
        time.sleep(0.02)
        with server.lock:
            server.busy -= 1
        if isinstance(wrong, int):
            self.answer(wrong, {"error": {"message": "no"}})
        elif wrong is not None:
            self.answer(200, wrong)
        else:
            problem = server.problems[body["messages"][-1]["content"]]
            message = {"role": "assistant", "content": f"<think>\nlook\n</think>\n\n{problem.data['answer']}"}
            self.answer(200, {"choices": [{"message": message, "finish_reason": "stop"}]})

    def answer(self, status, value):
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def teacher():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Teacher)
    source = TASK.problems("train", 0)
    problems = [next(source) for _ in range(6)]
    server.problems = {problem.prompt: problem for problem in problems}
    server.lock, server.asked, server.plan, server.busy, server.most = threading.Lock(), [], [], 0, 0
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def endpoint_of(server, **changes) -> Endpoint:
    settings = TracesSettings(**{"samples": 2, "at_once": 3, **changes})
    url = f"http://127.0.0.1:{server.server_address[1]}/v1/"
    return Endpoint(url, settings, {TASK.name: TASK}, pauses_s=(0.01, 0.01))


def test_its_replies_are_scored_and_no_more_are_asked_for_at_once_than_wanted(teacher, monkeypatch):
    monkeypatch.setenv("LEANSEEK_TEACHER_KEY", "secret")
    endpoint = endpoint_of(teacher, temperature=0.5, max_new_tokens=99)
    assert endpoint.model == "wise" and "secret" not in endpoint.shown
    problems = list(teacher.problems.values())
    found = endpoint.reply(problems, 0)
    assert [one.problem.key for one in found] == [problem.key for problem in problems for _ in range(2)]
    assert all(one.correct and one.formed and one.reply.reasoning_content == "look" for one in found)
    assert len(teacher.asked) == 12 and 1 < teacher.most <= 3
    body, key = teacher.asked[0]
    assert key == "Bearer secret" and body["model"] == "wise"
    assert (body["temperature"], body["max_tokens"]) == (0.5, 99)


def test_what_is_refused_for_the_moment_is_asked_again(teacher):
    teacher.plan = [429, 503]
    problem = next(iter(teacher.problems.values()))
    (one,) = endpoint_of(teacher, samples=1).reply([problem], 0)
    assert one.correct and len(teacher.asked) == 3


@pytest.mark.parametrize(
    ("plan", "complaint"),
    [
        ([401], "answered 401.*put its key into LEANSEEK_TEACHER_KEY"),
        ([404], "answered 404"),
        ([500, 500, 500], "answered 500"),
        ([{"choices": []}], "sent no reply, but"),
        ([["?"]], "sent what is no JSON object"),
    ],
)
def test_what_fails_for_good_is_told(teacher, plan, complaint):
    teacher.plan = plan
    with pytest.raises(ServerError, match=complaint):
        endpoint_of(teacher, samples=1).reply([next(iter(teacher.problems.values()))], 0)


def test_a_server_that_is_not_there_is_told():
    settings = TracesSettings()
    with pytest.raises(ServerError, match=r"does not answer.*what was done so far is kept"):
        Endpoint("http://127.0.0.1:9", settings, {}, pauses_s=())


def test_hostile_replies_are_wrong_and_nothing_more(teacher):
    long = {"choices": [{"message": {"content": "9" * 100_000}, "finish_reason": "length"}]}
    odd = {"choices": [{"message": {"content": None, "reasoning_content": "\ud800"}}]}
    teacher.plan = [long, odd]
    problem = next(iter(teacher.problems.values()))
    found = endpoint_of(teacher, samples=2, at_once=1).reply([problem], 0)
    assert [one.correct for one in found] == [False, False]
