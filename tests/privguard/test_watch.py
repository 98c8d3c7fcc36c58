"""The live page: what it serves, what it refuses, and how it ends."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from privguard.command_line.watch import serve
from privguard.errors import BadInput
from privguard.grids import chosen_grids
from privguard.spec import SweepSpec
from privguard.store import Store

PRIVGUARD = [sys.executable, "-c", "from privguard.cli import main; main()"]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    directory = tmp_path / "run"
    store = Store.create(directory)
    spec = SweepSpec(
        env="hopper", defenses=tuple(chosen_grids(["gaussian"], 4)), attacks=("map",), seeds=2
    )
    store.put_sweep(spec, "privguard sweep --env hopper")
    store.close()
    (directory / "captures").mkdir()
    (directory / "captures" / "secret.json").write_text("{}")
    (directory / "frontier.csv").write_text("env,defense\n")
    return directory


@pytest.fixture
def connection(run: Path) -> Iterator[http.client.HTTPConnection]:
    server = serve(run, 0)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    server.shutdown()
    server.server_close()
    thread.join()


def get(
    connection: http.client.HTTPConnection, path: str, **headers: str
) -> tuple[int, str, http.client.HTTPResponse]:
    connection.request("GET", path, headers=headers)
    response = connection.getresponse()
    return response.status, response.read().decode(), response


def test_the_page_appears_and_is_told_when_it_changes(
    connection: http.client.HTTPConnection, run: Path
) -> None:
    code, page, _ = get(connection, "/")
    assert code == 200
    assert "No report yet" in page
    assert json.loads(get(connection, "/.status")[1]) == {
        "finished": 0,
        "planned": 10,
        "version": "",
    }
    (run / "index.html").write_text("<html><body><h1>hopper</h1></body></html>")
    page = get(connection, "/")[1]
    version = json.loads(get(connection, "/.status")[1])["version"]
    assert version
    assert f'seen = "{version}"' in page
    assert page.index("<h1>hopper") < page.index("<script>") < page.index("</body>")


def test_only_the_report_is_served_and_only_to_this_machine(
    connection: http.client.HTTPConnection, run: Path
) -> None:
    code, text, response = get(connection, "/frontier.csv")
    assert (code, text) == (200, "env,defense\n")
    assert response.getheader("Content-Type", "").startswith("text/csv")
    (run.parent / "outside.json").write_text("{}")
    (run / "link.json").symlink_to(run.parent / "outside.json")
    for path in (
        "/records.sqlite",
        "/captures/secret.json",
        "/x/../captures/secret.json",
        "/.lock",
        "/../outside.json",
        "/%2e%2e/outside.json",
        "/link.json",
        "/missing.png",
        "//etc/hostname",
    ):
        assert get(connection, path)[0] == 404, path
    assert get(connection, "/", Host="evil.example")[0] == 403
    port = connection.port
    assert get(connection, "/", Host=f"localhost:{port}")[0] == 200


def test_what_cannot_be_served_is_one_line(tmp_path: Path, run: Path) -> None:
    with pytest.raises(BadInput, match="no privguard run here"):
        serve(tmp_path, 0)
    with pytest.raises(BadInput, match="--port 70000"):
        serve(run, 70000)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(BadInput, match=f"--port {port}: cannot be used"):
            serve(run, port)


def test_ctrl_c_ends_it_cleanly(run: Path) -> None:
    process = subprocess.Popen(
        [*PRIVGUARD, "watch", str(run), "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("http://127.0.0.1:")
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 0
    assert out == "stopped\n"
    assert errors == ""
