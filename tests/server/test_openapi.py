from __future__ import annotations

import json

from tests.server.test_app import send
from tests.server.test_hostile import PATHS


def test_the_description_names_what_is_served(tiny_server):
    status, _, text = send(tiny_server, "GET", "/openapi.json")
    found = json.loads(text)
    assert (status, found["openapi"]) == (200, "3.1.0")
    for path in PATHS:
        body = found["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        assert body["$ref"].removeprefix("#/components/schemas/") in found["components"]["schemas"]
    assert found["paths"]["/v1/models/{name}"]["get"]["parameters"][0]["name"] == "name"


def test_all_that_it_refers_to_is_there(tiny_server):
    text = send(tiny_server, "GET", "/openapi.json")[2].decode()
    schemas = json.loads(text)["components"]["schemas"]
    for piece in text.split('"$ref":"')[1:]:
        assert piece.partition('"')[0].removeprefix("#/components/schemas/") in schemas
