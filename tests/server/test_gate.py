from __future__ import annotations

import pytest
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient

from leanseek.errors import UsageError
from leanseek.server import gate
from leanseek.server.gate import Gate, is_loopback, read_keys


def open_gate(*keys: str, host: str = "127.0.0.1") -> TestClient:
    return TestClient(Gate(PlainTextResponse("in"), keys), base_url=f"http://{host}")


def test_every_answer_has_its_own_request_id():
    client = open_gate()
    ids = [client.get("/").headers["x-request-id"] for _ in range(2)]
    ids.append(open_gate("key").get("/v1/models").headers["x-request-id"])
    assert len(set(ids)) == 3


def test_with_keys_only_a_known_one_opens():
    client = open_gate("alpha", "beta")
    assert client.get("/v1/models").status_code == 401
    for header in ("alpha", "Basic alpha", "Bearer", "Bearer gamma", "Bearer alph", "Bearer alphabeta", "Bearer ä"):
        answer = client.get("/v1/models", headers={"authorization": header.encode("latin-1")})
        assert answer.status_code == 401
        assert answer.json()["error"]["code"] == "invalid_api_key"
        assert answer.headers["www-authenticate"] == "Bearer"
    for header in ("Bearer alpha", "bearer beta", "Bearer  alpha "):
        assert client.get("/v1/models", headers={"authorization": header}).text == "in"


def test_every_key_is_compared_in_constant_time_whichever_fits(monkeypatch):
    compared, compare = [], gate.hmac.compare_digest

    def note(given, known):
        compared.append(known)
        return compare(given, known)

    monkeypatch.setattr(gate.hmac, "compare_digest", note)
    client = open_gate("alpha", "beta", "gamma")
    for key, status in (("alpha", 200), ("gamma", 200), ("delta", 401), ("", 401)):
        compared.clear()
        assert client.get("/v1/models", headers={"x-api-key": key}).status_code == status
        assert compared == [b"alpha", b"beta", b"gamma"]


def test_health_and_page_need_no_key():
    client = open_gate("alpha")
    assert [client.get(path).status_code for path in ("/", "/health", "/ready")] == [200] * 3
    assert [client.get(path).status_code for path in ("/health/", "/readyx", "/v1/")] == [401] * 3


@pytest.mark.parametrize("host", ["127.0.0.1:8000", "localhost", "LOCALHOST:80", "[::1]:8000", "127.1.2.3"])
def test_without_keys_local_names_pass(host):
    assert open_gate().get("/", headers={"host": host}).status_code == 200


@pytest.mark.parametrize("host", ["example.com", "localhost.example.com:8000", "10.0.0.1", "127.0.0.1.example.com", ""])
def test_without_keys_other_names_are_refused(host):
    answer = open_gate().get("/", headers={"host": host})
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "host_not_allowed")


def test_with_keys_any_name_passes():
    client = open_gate("alpha")
    headers = {"host": "example.com", "authorization": "Bearer alpha"}
    assert client.get("/v1/models", headers=headers).status_code == 200


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("::", False), ("", False)],
)
def test_is_loopback(host, expected):
    assert is_loopback(host) is expected


def test_read_keys(tmp_path):
    path = tmp_path / "keys"
    path.write_text("# mine\nalpha\n\n  beta  \n")
    assert read_keys(path) == ("alpha", "beta")
    for text in ("", "# none\n", "two words\n", "schlüssel\n"):
        path.write_text(text)
        with pytest.raises(UsageError):
            read_keys(path)
    with pytest.raises(UsageError, match="cannot be read"):
        read_keys(tmp_path / "missing")
