"""The OAuth routes as an OpenAPI document for schemathesis, with their parameters and every permitted response.

The server doesn't serve this document: clients find these routes by their metadata (RFC 8414). RFCs 6749, 7009, 7591,
and 7662 define the permitted responses. A response with another status, media type, or shape is a fault, and so is one
that takes more than a second.
"""

import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from fuzz.people import BACK, CLIENT, KEY, SECRET, People, authorization
from issuing_world import VERIFIER
from patience import WAIT
from processes import TEST_PATH

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
_FORM, _JSON, _HTML = "application/x-www-form-urlencoded", "application/json", "text/html"
_TEXT = {"type": "string", "maxLength": 300}
_ERROR = {
    "type": "object", "required": ["error", "error_description"],
    "properties": {"error": {"type": "string", "pattern": "^[a-z_]+$"}, "error_description": {"type": "string"}},
}  # fmt: skip
_TOKEN = {
    "type": "object", "required": ["access_token", "token_type", "expires_in", "scope"],
    "properties": {"access_token": {"type": "string"}, "token_type": {"enum": ["Bearer"]},
                   "expires_in": {"type": "integer"}, "scope": {"type": "string"}, "refresh_token": {"type": "string"}},
}  # fmt: skip
_CLIENT = {
    "type": "object", "required": ["client_id", "redirect_uris", "grant_types", "token_endpoint_auth_method"],
}  # fmt: skip
_ASSERTION = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
_GRANTS = ["urn:ietf:params:oauth:grant-type:jwt-bearer", "authorization_code", "refresh_token", "client_credentials"]
_ABOUT = {"redirect_uris": [BACK], "token_endpoint_auth_method": "none", "client_name": "Reader"}


def document(good: dict[str, str]) -> dict[str, Any]:
    """Return the document, with currently valid values as examples."""
    known = {
        "client_id": [good["client"], CLIENT, "http://127.0.0.1:9/about.json"], "client_secret": [SECRET],
        "token": [good["token"], good["refresh"]], "code": [good["code"]], "refresh_token": [good["refresh"]],
        "code_verifier": [VERIFIER], "grant_type": _GRANTS[::-1], "client_assertion_type": [_ASSERTION],
        "client_assertion": [good["token"]], "assertion": [good["token"]], "ticket": [good["ticket"]],
        "answer": ["allow", "deny"], "name": [good["name"]], "password": ["correct horse"], "way": ["github"],
        "key": [KEY], "next": ["/docs", "//evil.example"], "prompt": ["none", "login", "consent"],
        "resource": ["http://127.0.0.1/mcp"], "token_type_hint": ["access_token"], "iss": ["http://127.0.0.1:9"],
        **{name: [value] for name, value in authorization(good["client"]).items() if name != "client_id"},
    }  # fmt: skip

    def field(name: str) -> dict[str, Any]:
        return {"anyOf": [{"enum": known[name]}, _TEXT]} if name in known else _TEXT

    def form(*names: str, needs: tuple[str, ...] = ()) -> dict[str, Any]:
        fields = {"type": "object", "properties": {name: field(name) for name in names}, "required": list(needs)}
        example = {name: (known[name] if name != "client_id" else [CLIENT])[0] for name in needs}
        return {"required": True, "content": {_FORM: {"schema": fields, "example": example}}}

    def query(*names: str, needs: tuple[str, ...] = ()) -> list[dict[str, Any]]:
        return [
            {"name": each, "in": "query", "required": each in needs, "schema": field(each),
             **({"example": known[each][0]} if each in needs else {})} for each in names
        ]  # fmt: skip

    who = ("client_id", "client_secret", "client_assertion", "client_assertion_type")
    asked = ("response_type", "client_id", "redirect_uri", "state", "scope", "code_challenge", "code_challenge_method",
             "resource", "prompt", "response_mode", "request", "request_uri")  # fmt: skip
    grants = ("grant_type", *who, "code", "redirect_uri", "code_verifier", "refresh_token", "assertion", "scope",
              "resource")  # fmt: skip
    refusals = ("401", "413", "415", "429", "503")
    page = {"200": _HTML, "303": "", "400": _HTML, "403": _HTML, "413": _HTML, "415": _HTML, "429": _HTML}
    said: dict[str, dict[str, Any]] = {
        "/authorize": {
            "get": {"parameters": query(*asked, needs=asked[:7]), "responses": _answers(page)},
            "post": {"requestBody": form("ticket", "answer", "name", "password", "way", needs=("ticket", "answer")),
                     "responses": _answers(page)},
        },
        "/token": {"post": {"requestBody": form(*grants, needs=("grant_type", *who[:2])),
                            "responses": _answers({"200": _TOKEN}, *refusals)}},
        "/revoke": {"post": {"requestBody": form("token", "token_type_hint", *who, needs=("token", *who[:2])),
                             "responses": _answers({"200": {"const": {}}}, *refusals)}},
        "/introspect": {"post": {
            "requestBody": form("token", "token_type_hint", *who, needs=("token", *who[:2])),
            "responses": _answers({"200": {"type": "object", "required": ["active"]}}, *refusals),
        }},
        "/register": {"post": {"requestBody": {"content": {_JSON: {"schema": _metadata(), "example": _ABOUT}}},
                               "responses": _answers({"201": _CLIENT}, "413", "415", "429")}},
        "/sign-in/callback/github": {"get": {
            "parameters": query("state", "code", "iss", "error", "error_description"), "responses": _answers(page)}},
        "/.well-known/oauth-authorization-server": {"get": {"responses": _answers({"200": {"required": ["issuer"]}})}},
        "/.well-known/openid-configuration": {"get": {"responses": _answers({"200": {"required": ["issuer"]}})}},
        "/.well-known/jwks.json": {"get": {"responses": _answers({"200": {"required": ["keys"]}})}},
        "/.well-known/oauth-protected-resource/mcp": {
            "get": {"responses": _answers({"200": {"required": ["resource", "authorization_servers"]}})}},
    }  # fmt: skip
    for path, methods in said.items():
        for method, about in methods.items():
            if method == "get":
                about["responses"]["414"] = {"description": "", "content": {"application/problem+json": {}}}
            about["operationId"] = f"{method}{re.sub(r'[^a-z]+', '_', path)}"
    return {"openapi": "3.1.0", "info": {"title": "OAuth", "version": "1"}, "paths": said}


def _answers(good: dict[str, Any], *errors: str) -> dict[str, Any]:
    """Responses: those of `good` by status, each a page or a schema of JSON; 400 and the others are OAuth's errors."""
    found: dict[str, Any] = {}
    for status, what in good.items():
        content = {what: {}} if isinstance(what, str) and what else {_JSON: {"schema": what}} if what else {}
        found[status] = {"description": "", **({"content": content} if content else {})}
    for status in ("400", *errors):
        found.setdefault(status, {"description": "", "content": {_JSON: {"schema": _ERROR}}})
    return found


def _metadata() -> dict[str, Any]:
    """Return the schema of client metadata (RFC 7591 §2)."""
    uris = [BACK, "cursor://anysphere.cursor-mcp/oauth/callback", "javascript:alert(1)",
            "https://a.example\\@b.example/", "https://[::1]/", "http://localhost:1/..%2f"]  # fmt: skip
    texts = {"type": "array", "items": _TEXT}
    key = {"type": "object", "properties": dict.fromkeys(("kty", "crv", "x", "y", "n", "e", "kid", "use"), _TEXT)}
    return {
        "type": "object", "required": ["redirect_uris"],
        "properties": {
            "redirect_uris": {"type": "array", "items": {"anyOf": [{"enum": uris}, _TEXT]}},
            "client_name": {}, "application_type": {}, "scope": _TEXT, "logo_uri": _TEXT, "contacts": texts,
            "grant_types": {"anyOf": [{"const": ["authorization_code"]}, texts]}, "response_types": texts,
            "token_endpoint_auth_method": {"enum": [
                "none", "client_secret_basic", "client_secret_post", "private_key_jwt", "client_secret_jwt"]},
            "jwks": {"type": "object", "properties": {"keys": {"type": "array", "items": key}}}, "jwks_uri": _TEXT,
            "dpop_bound_access_tokens": {},
        },
    }  # fmt: skip


def run(port: int, folder: Path, *options: str, seconds: float = 5 * WAIT) -> tuple[Counter[str], str]:
    """Run schemathesis on the document. Return its requests with their statuses, and a report if it found a fault."""
    about, answers = folder.resolve() / "oauth.json", folder.resolve() / "oauth-answers"
    about.write_text(json.dumps(document(People(f"http://127.0.0.1:{port}").good)))
    answers.write_text("")
    env = {**os.environ, "SCHEMATHESIS_HOOKS": "fuzz.oauth_hooks", "PYTHONPATH": TEST_PATH,
           "OAUTH_ANSWERS": str(answers)}  # fmt: skip
    command = [
        str(Path(sys.executable).parent / "schemathesis"), "run", str(about), "--url", f"http://127.0.0.1:{port}",
        "--checks", CHECKS, "--phases", "examples,coverage,fuzzing", "--no-color", "--request-timeout", "10",
        "--generation-database", "none", "--continue-on-failure", "--max-redirects", "0", *options,
    ]  # fmt: skip
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=seconds, check=False)
    said = "" if done.returncode == 0 else (done.stdout + done.stderr)[-6000:]
    return Counter(answers.read_text().splitlines()), said
