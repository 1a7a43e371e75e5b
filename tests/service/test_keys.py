"""API keys: settings, comparison, what each route asks for, and when the service won't start without."""

import hashlib
import hmac
import os
import stat
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import httpx
import pytest
from fastapi import Depends, FastAPI
from starlette.requests import Request

from app.routes.access import key_name, require_admin, require_client
from app.security import keys as module
from app.security.keys import AccessKeys, Key, KeySettingsError, find, is_loopback, new_key, parse
from app.settings import Settings
from tests.models import NAME, VERSION, write_models
from tests.service.harness import make_settings, run_cli, running
from tests.service.test_app import check_problem
from training.data.drawn import cell_bytes

LAB, LAB_KEY = new_key("lab")
WARD, WARD_KEY = new_key("ward")
ADMIN, ADMIN_KEY = new_key("it")
CELL = {"file": ("cell.bmp", cell_bytes("ALL", seed=0))}
OPEN = ("/livez", "/readyz", "/healthz", "/docs", "/openapi.json", "/metrics", "/")
CLOSED = (("POST", "/predict"), ("GET", "/models"), ("GET", "/models/active"))


def settings_of(models_dir: Path, *, clients: Sequence[Key] = (LAB_KEY, WARD_KEY), **values: object) -> Settings:
    joined = ",".join(key.setting for key in clients)
    return make_settings(models_dir, api_keys=joined, **values)


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    async with running(settings_of(write_models(tmp_path), admin_keys=ADMIN_KEY.setting)) as (app, client):
        _add_probes(app)
        yield client


def _add_probes(app: FastAPI) -> None:
    async def who(request: Request) -> str | None:
        return key_name(request)

    app.add_api_route("/probe/client", who, dependencies=[Depends(require_client)])
    app.add_api_route("/probe/admin", who, methods=["PUT"], dependencies=[Depends(require_admin)])


def test_a_key_is_random_and_kept_as_its_hash() -> None:
    secrets = {new_key("lab")[0] for _ in range(20)}
    assert len(secrets) == 20
    assert all(secret.startswith("lk_") and len(secret) >= 40 for secret in secrets)
    assert LAB_KEY.setting == f"lab:{hashlib.sha256(LAB.encode()).hexdigest()}"


def test_parse_takes_commas_lines_and_comments() -> None:
    text = f"# clients\n{LAB_KEY.setting}, {WARD_KEY.setting}\n\n{ADMIN_KEY.setting}  # since May\n"
    assert parse(text, "file") == (LAB_KEY, WARD_KEY, ADMIN_KEY)
    assert parse("", "file") == ()


@pytest.mark.parametrize(
    "text", ["lab", "lab:", ":" + "0" * 64, "lab:" + "0" * 63, "lab:" + "A" * 64, f"la b:{'0' * 64}", LAB, f"lab:{LAB}"]
)
def test_what_is_no_key_is_refused_without_repeating_it(text: str) -> None:
    with pytest.raises(KeySettingsError, match="LEUKOSCOPE_API_KEYS, entry 2: expected NAME:HASH") as caught:
        parse(f"{WARD_KEY.setting},{text}", "LEUKOSCOPE_API_KEYS")
    assert LAB not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (f"{LAB_KEY.setting},{LAB_KEY.setting}", "name comes twice"),
        (f"{LAB_KEY.setting},other:{LAB_KEY.sha256.hex()}", "hash comes twice"),
    ],
)
def test_a_name_or_a_hash_twice_is_refused(text: str, what: str) -> None:
    with pytest.raises(KeySettingsError, match=what):
        parse(text, "file")


@pytest.mark.parametrize("name", ["", "a b", "-a", "a:b", "a,b", "x" * 65, "ä"])
def test_bad_names(name: str) -> None:
    with pytest.raises(KeySettingsError):
        new_key(name)


def test_find_compares_all_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[bytes] = []

    def compare(left: bytes, right: bytes) -> bool:
        compared.append(left)
        return hmac.compare_digest(left, right)

    class Counting:
        compare_digest = staticmethod(compare)

    monkeypatch.setattr(module, "hmac", Counting)
    held = (LAB_KEY, WARD_KEY, ADMIN_KEY)
    assert find(held, LAB) == LAB_KEY
    assert find(held, "lk_wrong") is None
    assert compared == [key.sha256 for key in held] * 2


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),  # noqa: S104 - told apart, not listened on
        ("::", False),
        ("192.168.1.4", False),
        ("no-such-host.invalid", True),
    ],
)
def test_loopback(host: str, expected: bool) -> None:
    assert is_loopback(host) == expected


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"host": "0.0.0.0"}, "LEUKOSCOPE_ALLOW_ANONYMOUS=true"),  # noqa: S104 - refused
        ({"host": "::"}, "leukoscope keys new"),
        ({"host": "0.0.0.0", "admin_keys": ADMIN_KEY.setting}, "no API key is set"),  # noqa: S104 - refused
        ({"api_keys": "lab"}, "LEUKOSCOPE_API_KEYS, entry 1"),
        ({"api_keys": LAB_KEY.setting, "admin_keys": f"it:{LAB_KEY.sha256.hex()}"}, "an admin's must be another"),
        ({"api_keys": LAB_KEY.setting, "admin_keys": f"lab:{ADMIN_KEY.sha256.hex()}"}, "an admin's must be another"),
        ({"metrics_need_key": True}, "LEUKOSCOPE_METRICS_NEED_KEY"),
        ({"api_keys_file": Path("no-such-file")}, "no-such-file: can't be read"),
    ],
)
def test_settings_that_are_refused(values: dict[str, object], words: str) -> None:
    with pytest.raises(KeySettingsError, match=words):
        AccessKeys.of(Settings(**values))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "values", [{}, {"allow_anonymous": True}, {"api_keys": LAB_KEY.setting}, {"host": "127.0.0.1"}]
)
def test_settings_that_are_accepted(values: dict[str, object]) -> None:
    host = "0.0.0.0" if values.get("allow_anonymous") or values.get("api_keys") else "127.0.0.1"  # noqa: S104
    AccessKeys.of(Settings(**{"host": host} | values))  # type: ignore[arg-type]


def test_keys_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"# clients\n{LAB_KEY.setting}\n{WARD_KEY.setting}\n")
    assert AccessKeys.of(Settings(api_keys_file=file)).clients == (LAB_KEY, WARD_KEY)
    with pytest.raises(KeySettingsError, match="both set"):
        AccessKeys.of(Settings(api_keys_file=file, api_keys=LAB_KEY.setting))
    file.write_text("# nobody yet\n")
    with pytest.raises(KeySettingsError, match="no key in it"):
        AccessKeys.of(Settings(api_keys_file=file))


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(LAB_KEY.setting)
    file.chmod(stat.S_IWUSR)
    with pytest.raises(KeySettingsError, match="can't be read"):
        AccessKeys.of(Settings(api_keys_file=file))


def test_hashes_are_not_in_the_settings_text() -> None:
    settings = Settings(api_keys=LAB_KEY.setting, admin_keys=ADMIN_KEY.setting)
    assert LAB_KEY.sha256.hex() not in repr(settings)
    assert ADMIN_KEY.sha256.hex() not in repr(settings)


@pytest.mark.anyio
@pytest.mark.parametrize("path", OPEN)
async def test_open_routes(client: httpx.AsyncClient, path: str) -> None:
    assert (await client.get(path)).status_code in {200, 307}


@pytest.mark.anyio
@pytest.mark.parametrize(("method", "path"), CLOSED)
@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"X-API-Key": ""},
        {"X-API-Key": LAB[:-1]},
        {"X-API-Key": LAB_KEY.sha256.hex()},
        {"X-API-Key": LAB_KEY.setting},
        {"Authorization": f"Basic {LAB}"},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer wrong"},
        {"X-API-Key": b"\xff\xfe"},
    ],
)
async def test_closed_routes_refuse_what_is_no_key(
    client: httpx.AsyncClient, method: str, path: str, headers: dict[str, str | bytes]
) -> None:
    raw = [(name.encode(), value if isinstance(value, bytes) else value.encode()) for name, value in headers.items()]
    body = check_problem(await client.request(method, path, headers=raw), 401, "unauthenticated")
    assert "X-API-Key" in body["detail"]


@pytest.mark.anyio
async def test_a_refusal_says_how_to_ask(client: httpx.AsyncClient) -> None:
    response = await client.get("/models")
    assert response.headers["www-authenticate"] == 'Bearer realm="leukoscope"'


@pytest.mark.anyio
@pytest.mark.parametrize(
    "headers",
    [
        {"X-API-Key": LAB},
        {"x-api-key": WARD},
        {"Authorization": f"Bearer {LAB}"},
        {"Authorization": f"bearer {WARD}"},
        {"X-API-Key": LAB, "Authorization": "Basic proxy"},
        {"X-API-Key": ADMIN},
    ],
)
async def test_a_key_opens_the_closed_routes(client: httpx.AsyncClient, headers: dict[str, str]) -> None:
    assert (await client.post("/predict", files=CELL, headers=headers)).status_code == 200
    assert (await client.get("/models", headers=headers)).status_code == 200
    assert (await client.get("/models/active", headers=headers)).status_code == 200


@pytest.mark.anyio
async def test_the_body_is_not_read_without_a_key(client: httpx.AsyncClient) -> None:
    async def endless() -> AsyncIterator[bytes]:
        yield b"x"
        raise AssertionError("more was read")

    response = await client.post("/predict", content=endless(), headers={"content-type": "image/bmp"})
    check_problem(response, 401, "unauthenticated")


@pytest.mark.anyio
async def test_the_keys_name_is_known_to_the_route(client: httpx.AsyncClient) -> None:
    assert (await client.get("/probe/client", headers={"X-API-Key": WARD})).json() == "ward"
    assert (await client.put("/probe/admin", headers={"X-API-Key": ADMIN})).json() == "it"


@pytest.mark.anyio
async def test_admin_routes_need_an_admins_key(client: httpx.AsyncClient) -> None:
    check_problem(await client.put("/probe/admin"), 401, "unauthenticated")
    check_problem(await client.put("/probe/admin", headers={"X-API-Key": "wrong"}), 401, "unauthenticated")
    body = check_problem(await client.put("/probe/admin", headers={"X-API-Key": LAB}), 403, "forbidden")
    assert "'lab'" in body["detail"]


@pytest.mark.anyio
async def test_the_served_model_is_changed_by_admins_only(client: httpx.AsyncClient) -> None:
    choice = {"name": NAME, "version": VERSION}
    check_problem(await client.put("/models/active", json=choice), 401, "unauthenticated")
    check_problem(await client.put("/models/active", json=choice, headers={"X-API-Key": LAB}), 403, "forbidden")
    assert (await client.put("/models/active", json=choice, headers={"X-API-Key": ADMIN})).status_code == 200


@pytest.mark.anyio
@pytest.mark.parametrize("clients", [(), (LAB_KEY,)])
async def test_without_an_admins_key_nobody_is_admin(models_dir: Path, clients: Sequence[Key]) -> None:
    async with running(settings_of(models_dir, clients=clients)) as (app, client):
        _add_probes(app)
        for headers in ({}, {"X-API-Key": LAB}):
            body = check_problem(await client.put("/probe/admin", headers=headers), 403, "forbidden")
            assert "LEUKOSCOPE_ADMIN_KEYS" in body["detail"]


@pytest.mark.anyio
async def test_without_clients_keys_everybody_may_ask(models_dir: Path) -> None:
    async with running(make_settings(models_dir, admin_keys=ADMIN_KEY.setting)) as (app, client):
        _add_probes(app)
        assert (await client.post("/predict", files=CELL)).status_code == 200
        assert (await client.post("/predict", files=CELL, headers={"X-API-Key": "any"})).status_code == 200
        assert (await client.get("/probe/client")).json() is None
        assert (await client.put("/probe/admin", headers={"X-API-Key": ADMIN})).json() == "it"


@pytest.mark.anyio
async def test_metrics_may_need_a_key(models_dir: Path) -> None:
    async with running(settings_of(models_dir, metrics_need_key=True)) as (_, client):
        check_problem(await client.get("/metrics"), 401, "unauthenticated")
        assert (await client.get("/metrics", headers={"Authorization": f"Bearer {LAB}"})).status_code == 200
        assert (await client.get("/livez")).status_code == 200


@pytest.mark.anyio
async def test_the_document_names_both_ways(client: httpx.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()
    schemes = document["components"]["securitySchemes"].values()
    assert {(scheme["type"], scheme.get("name") or scheme["scheme"]) for scheme in schemes} == {
        ("apiKey", "X-API-Key"),
        ("http", "bearer"),
    }
    assert "401" in document["paths"]["/predict"]["post"]["responses"]
    assert "security" not in document["paths"]["/livez"]["get"]


def test_the_command_prints_key_and_hash() -> None:
    result = run_cli("keys", "new", "lab-2")
    assert result.returncode == 0
    secret, setting = (line.split()[1] for line in result.stdout.splitlines())
    (key,) = parse(setting, "printed")
    assert key.name == "lab-2"
    assert find((key,), secret) == key
    assert run_cli("keys", "new", "a b").returncode == 2


def test_serving_others_without_keys_is_refused(models_dir: Path) -> None:
    result = run_cli("serve", models_dir=models_dir, host="0.0.0.0", port=1)  # noqa: S104 - refused
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert "LEUKOSCOPE_HOST=0.0.0.0 is open to other machines, and no API key is set" in result.stderr
