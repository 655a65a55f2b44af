"""Tests which requests the explorer answers: only those from its own pages on this machine."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from pairmill.jobs.explore import run_select
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.explore import security
from pairmill.pipeline.explore.app import app
from pairmill.pipeline.explore.explorer import Explorer
from pairmill.pipeline.explore.labels import Labels
from pairmill.pipeline.explore.security import HEADERS, MAX_FORM_BYTES, Guard, is_loopback
from tests.synthetic_dataset import write_dataset

OWN = "http://127.0.0.1:7800"
PAGES = ["/", "/rejects", "/duplicates", "/compare", "/search", "/live", "/api/count", "/api/live", "/static/page.js"]
FORM = {"Origin": OWN, "Sec-Fetch-Site": "same-origin"}


@pytest.fixture(scope="module")
def explorer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Explorer]:
    folder = tmp_path_factory.mktemp("dataset")
    write_dataset(folder, 200, shard_rows=100)
    store = Store(str(folder))
    made = Explorer(store, run_select, Labels(store, "session"), tmp_path_factory.mktemp("cache"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def guard() -> Guard:
    return Guard.of("127.0.0.1", 7800)


@pytest.fixture(scope="module")
def client(explorer: Explorer, guard: Guard) -> Iterator[TestClient]:
    with TestClient(app(explorer, guard), base_url=OWN, follow_redirects=False) as made:
        yield made


@pytest.mark.parametrize("page", [*PAGES, "/nothing"])
def test_every_response_has_the_security_headers(client: TestClient, page: str) -> None:
    answer = client.get(page)
    assert answer.status_code == (404 if page == "/nothing" else 200)
    assert {name: answer.headers[name] for name in HEADERS} == HEADERS
    assert "access-control-allow-origin" not in answer.headers
    assert "<script>" not in answer.text and " style=" not in answer.text and " onclick=" not in answer.text
    refused = client.get(page, headers={"Host": "evil.example:7800"})
    assert {name: refused.headers[name] for name in HEADERS} == HEADERS


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:7800", "127.0.0.1", "127.0.0.1:7801", "10.0.0.1:7800", "", "localhost.:7800",
             "127.0.0.1:7800@evil.example", "[::2]:7800"]
)  # fmt: skip
def test_a_request_for_another_host_name_is_refused(client: TestClient, page: str, host: str) -> None:
    answer = client.get(page, headers={"Host": host})
    assert answer.status_code == 421
    assert answer.text == "This server does not answer to this name. On its machine, open http://127.0.0.1:7800/\n"


@pytest.mark.parametrize("host", ["127.0.0.1:7800", "localhost:7800", "LOCALHOST:7800", "[::1]:7800"])
def test_requests_for_the_names_of_this_machine_are_answered(client: TestClient, host: str) -> None:
    assert client.get("/", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "http://127.0.0.1:7801"},
        {"Origin": "https://127.0.0.1:7800"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"},
        {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "cors", "Sec-Fetch-Dest": "empty"},
        {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"},
    ],
)
def test_requests_from_other_origins_are_refused(client: TestClient, page: str, headers: dict[str, str]) -> None:
    answer = client.get(page, headers=headers)
    assert (answer.status_code, answer.text) == (403, "Requests from other origins are refused.\n")


def test_a_link_on_another_site_can_open_a_page(client: TestClient) -> None:
    opened = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    assert client.get("/", headers=opened).status_code == 200
    assert client.post("/api/label", headers=opened).status_code == 403


@pytest.mark.parametrize("page", ["/api/label", "/api/exact", "/subset", "/reload"])
@pytest.mark.parametrize(
    ("headers", "token", "status"),
    [
        ({}, True, 403),
        (FORM, False, 403),
        ({**FORM, "Origin": "http://evil.example"}, True, 403),
        ({**FORM, "Sec-Fetch-Site": "same-site"}, True, 403),
        ({**FORM, "Sec-Fetch-Site": "none"}, True, 403),
    ],
)
def test_a_change_requires_the_same_origin_and_the_token(
    client: TestClient, guard: Guard, explorer: Explorer, page: str, headers: dict[str, str], token: bool, status: int
) -> None:
    fields = {"token": guard.form_token if token else "x", "name": "stolen", "uid": "0" * 32, "label": "good"}
    assert client.post(page, data=fields, headers=headers).status_code == status
    assert explorer.labels.counts == (0, 0)
    assert not explorer.store.exists("subsets/stolen/selection.json")


def test_pages_accept_only_get_and_changes_only_post(client: TestClient) -> None:
    assert client.get("/subset").status_code == 405
    assert client.post("/", headers=FORM).status_code == 405
    for method in ("PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"):
        assert client.request(method, "/").status_code in (403, 405)


def test_large_requests_are_refused_before_they_are_read(client: TestClient) -> None:
    assert client.post("/subset", content=b"a" * (MAX_FORM_BYTES + 1), headers=FORM).status_code == 413
    assert client.get(f"/?where={'a' * 40_000}").status_code == 414
    assert client.post("/subset", content=b"a=&" * 200, headers=FORM).status_code == 400
    endless = (b"a" * 1_000 for _ in range(3))
    assert client.post("/subset", content=endless, headers=FORM).status_code == 411


@pytest.mark.parametrize(
    "path",
    [
        *("/static/../app.py", "/static/%2e%2e%2fapp.py", "/static/labels", "/subset/..%2fx/select.yaml"),
        *("/picture/0/9999999", "/picture/99/0", "/picture/-1/0", "/pair/..%2f..%2fetc"),
        *(f"/picture/{'9' * 5_000}/0", f"/picture/0/{'9' * 5_000}", "/picture/%D9%A3/0", "/compare?a=..&b=%00"),
    ],
)
def test_only_paths_that_the_dataset_names_are_served(client: TestClient, path: str) -> None:
    assert client.get(path).status_code == 404


@pytest.mark.parametrize("name", ["..", "../../etc", "%00", "a/b", "x" * 101])
def test_the_name_of_a_subset_cannot_be_a_path(client: TestClient, guard: Guard, name: str) -> None:
    answer = client.get(f"/?subset={name}")
    assert (answer.status_code, "is not a valid subset name" in answer.text) == (400, True)
    form = {"token": guard.form_token, "name": "x", "query": f"subset={name}"}
    assert client.post("/subset", data=form, headers=FORM).status_code == 400


def test_a_fragment_of_an_expression_is_neither_shown_nor_saved(
    client: TestClient, guard: Guard, explorer: Explorer
) -> None:
    query = "min%3Awidth=10&where=kept%29+or+%28kept"
    assert client.get(f"/api/count?{query}").status_code == 400
    for page in ("/subset", "/api/exact"):
        form = {"token": guard.form_token, "name": "part", "query": query}
        assert client.post(page, data=form, headers=FORM).status_code == 400
    assert not explorer.store.exists("subsets/part/selection.json")


def test_a_token_is_required_beyond_loopback(explorer: Explorer) -> None:
    guard = Guard.of("0.0.0.0", 7800)
    assert guard.access_token and guard.access_token in guard.address
    with TestClient(app(explorer, guard), base_url="http://192.168.1.5:7800") as client:
        assert client.get("/").status_code == 401
        assert client.get("/?token=wrong").status_code == 401
        assert client.get("/?token=").status_code == 401
        assert client.get("/", headers={"Host": "evil.example:7800"}).status_code == 421
        welcome = client.get(f"/?token={guard.access_token}")
        cookie = welcome.headers["set-cookie"]
        assert "HttpOnly" in cookie and "SameSite=strict" in cookie
        assert guard.access_token not in welcome.text
        assert client.get("/").status_code == 200
        assert client.get("/", headers={"Cookie": f"{guard.cookie}=wrong"}).status_code == 401


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "[::]", "0:0::0"])
def test_a_server_on_all_addresses_answers_to_any_address_and_its_own_names(
    monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    asked: list[None] = []
    monkeypatch.setattr("socket.gethostname", lambda: "Desk")
    monkeypatch.setattr("socket.getfqdn", lambda: asked.append(None) or "desk.lan")  # type: ignore[func-returns-value]
    security._own_names.cache_clear()
    guard = Guard.of(host, 7800)
    assert guard.address.startswith("http://Desk:7800/?token=")
    for name in ("desk", "DESK.lan", "10.0.0.9", "[fe80::1]"):
        assert guard.is_own_host(f"{name}:7800")
    for name in ("evil.example", "desk.lan.evil.example", "10.0.0.9.nip.io", "desk."):
        assert not guard.is_own_host(f"{name}:7800")
    assert len(asked) == 1  # a name server may take seconds
    security._own_names.cache_clear()


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("127.1.2.3", True), ("::1", True), ("[::1]", True), ("localhost", True), ("0.0.0.0", False),
     ("::", False), ("10.0.0.1", False), ("example.org", False)],
)  # fmt: skip
def test_loopback_addresses_are_recognized_and_need_no_token(host: str, expected: bool) -> None:
    assert is_loopback(host) == expected
    assert (Guard.of(host, 7800).access_token is None) == expected


def test_the_folder_of_the_dataset_is_not_served(client: TestClient, explorer: Explorer) -> None:
    name = Path(explorer.store.root).name
    for path in (f"/{name}", "/plan/0.parquet", "/pairs/000000000.parquet", "/manifests/000000000.json"):
        assert client.get(path).status_code == 404
