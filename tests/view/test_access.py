"""Who may ask the web app, for what, and what may be written."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from dfusion.commands.view import main
from tests.viewing import BASE, client_of, copy_of, thresholds


@pytest.fixture
def client(view_data: Path) -> Any:
    return client_of(view_data)


@pytest.mark.parametrize(
    "params",
    [
        {"exp": "../exp"}, {"exp": "exp/.."}, {"exp": "/etc"}, {"exp": ""}, {"exp": "."},
        {"round": "../epoch0"}, {"round": "epoch0/.."}, {"round": "epoch0\n"}, {"round": "x"},
        {"kind": ".."}, {"kind": "trajectories"}, {"kind": "../../../secret"},
        {"i": "../0"}, {"i": "-1"}, {"i": "9"}, {"i": "0" * 20},
    ],
)  # fmt: skip
def test_no_address_leads_out_of_the_data_folder(
    view_data: Path, client: Any, params: dict[str, str]
) -> None:
    good = {"exp": "exp", "round": "epoch0", "kind": "images", "i": "0"}
    assert client.get("/image", params=good).status_code == 200
    for path in ("/image", "/strip"):
        answer = client.get(path, params=good | params)
        assert answer.status_code in (400, 404)
        assert set(answer.json()) == {"error"}


@pytest.mark.parametrize(
    "path", ["/static/../app.py", "/static/%2e%2e/app.py", "/static//etc/passwd"]
)
def test_static_files_are_the_app_s_own(client: Any, path: str) -> None:
    assert client.get(f"/static/{path}").status_code == 404


def test_links_out_of_the_data_folder_are_not_followed(view_data: Path, tmp_path: Path) -> None:
    inside = tmp_path / "data"
    inside.mkdir()
    (inside / "exp").symlink_to(view_data / "exp")
    client = client_of(inside)
    good = {"exp": "exp", "round": "epoch0", "kind": "images", "i": "0"}
    assert client.get("/image", params=good).status_code == 404
    assert "problem" in client.get("/api/runs").json()[0]


@pytest.mark.parametrize(
    ("bound", "host", "status"),
    [
        ("127.0.0.1", "127.0.0.1:8765", 200),
        ("127.0.0.1", "localhost:9", 200),
        ("127.0.0.1", "[::1]:9", 200),
        ("127.0.0.1", "evil.example", 421),
        ("127.0.0.1", "127.0.0.1.evil.example", 421),
        ("127.0.0.1", "", 421),
        ("127.0.0.1", "192.168.1.5:8765", 421),
        ("0.0.0.0", "192.168.1.5:8765", 200),
        ("0.0.0.0", "evil.example", 421),
        ("box.lan", "box.lan:8765", 200),
    ],
)
def test_only_its_own_hosts_are_answered(
    view_data: Path, bound: str, host: str, status: int
) -> None:
    answer = client_of(view_data, bound).get("/api/catalogue", headers={"host": host})
    assert answer.status_code == status


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"origin": BASE}, 200),
        ({}, 200),
        ({"sec-fetch-site": "same-origin"}, 200),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://127.0.0.1:9999"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site"}, 403),
    ],
)
def test_writes_come_from_its_own_pages(
    tmp_path: Path, view_data: Path, headers: dict[str, str], status: int
) -> None:
    copy = copy_of(view_data, tmp_path)
    answer = client_of(copy).post("/api/thresholds", json=thresholds([0.5]), headers=headers)
    assert answer.status_code == status
    assert (copy / "exp/thresholds.json").exists() == (status == 200)


def test_a_form_cannot_write(client: Any) -> None:
    body = json.dumps(thresholds([0.5]))
    for kind in ("text/plain", "application/x-www-form-urlencoded"):
        answer = client.post("/api/thresholds", content=body, headers={"content-type": kind})
        assert answer.status_code == 415
    assert "script" not in client.get("/").headers["content-security-policy"]
    assert client.get("/").headers["content-security-policy"].startswith("default-src 'self'")


def test_bad_arguments_end_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main([str(tmp_path / "absent")]) == 2
    assert main([str(tmp_path), "--port", "99999"]) == 2
    assert main([str(tmp_path), "--host", "0.0.0.0", "--control"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 3 and "no such folder" in said[0] and "choose another --port" in said[1]
    assert "everyone who reaches the address could stop runs" in said[2]
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert main([str(tmp_path)]) == 2
    assert "pip install starlette uvicorn" in capsys.readouterr().err


def test_pages_never_turn_data_into_markup() -> None:
    for path in (Path(__file__).parents[2] / "dfusion/view/static").glob("*.js"):
        text = path.read_text()
        for sink in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
            assert sink not in text, f"{path.name}: {sink}"
        assert "http" not in text.replace("http://www.w3.org/2000/svg", ""), path.name  # offline
