"""Serves a run's report to this machine alone; the page reloads when the report is redrawn.

Only what a report consists of is served, and only to requests that name this machine as their
host (a page elsewhere that resolves its own name to 127.0.0.1 is refused). Captured releases and
records stay where they are: they hold what the defences are to protect.
"""

from __future__ import annotations

import json
import mimetypes
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

from privguard.command_line.queries import known_sweep
from privguard.errors import BadInput
from privguard.store import Store

ADDRESS = "127.0.0.1"
STATUS = "/.status"
SERVED = frozenset({".html", ".css", ".js", ".png", ".svg", ".pdf", ".csv", ".md", ".json"})
PRIVATE = frozenset({"captures", "checkpoints", "failures"})

_WATCHER = """
<p id="privguard-watch" role="status" style="position:fixed;right:1rem;bottom:1rem;margin:0;
padding:.4rem .8rem;border-radius:.4rem;border:1px solid #888;background:#222;color:#fff;
font:14px sans-serif;z-index:99">
watching</p>
<script>
(() => {
  const seen = "%s", bar = document.getElementById("privguard-watch");
  const chosen = () => [...document.querySelectorAll("select[id]")];
  const hidden = () => [...document.querySelectorAll("button[aria-pressed=false]")];
  // A reload must not undo what the reader has chosen.
  function keep() {
    sessionStorage.setItem("privguard", JSON.stringify({
      selects: chosen().map((select) => [select.id, select.value]),
      hidden: hidden().map((button) => button.textContent) }));
  }
  function restore() {
    const kept = JSON.parse(sessionStorage.getItem("privguard") ?? "null");
    sessionStorage.removeItem("privguard");
    for (const button of document.querySelectorAll("button[aria-pressed=true]")) {
      if (kept?.hidden.includes(button.textContent)) button.click();
    }
    for (const [id, value] of kept?.selects ?? []) {
      const select = document.getElementById(id);
      if (!select || ![...select.options].some((option) => option.value === value)) continue;
      select.value = value;
      select.dispatchEvent(new Event("change"));
    }
  }
  async function look() {
    try {
      const status = await (await fetch("/.status", {cache: "no-store"})).json();
      bar.textContent = `${status.finished} of ${status.planned} cells finished`;
      if (status.version !== seen) {
        keep();
        return location.reload();
      }
    } catch { bar.textContent = "privguard watch has stopped"; }
    setTimeout(look, 5000);
  }
  restore();
  look();
})();
</script>
"""
_WAITING = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>privguard: waiting</title>
<link rel="icon" href="data:,">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<noscript><meta http-equiv="refresh" content="10"></noscript></head>
<body style="font-family:sans-serif;margin:2rem"><h1>No report yet</h1>
<p>The first one is drawn soon after the first cells have finished. This page then shows it.</p>
</body></html>
"""


def serve(directory: Path, port: int) -> ThreadingHTTPServer:
    """A server of the run's report, bound to ``port`` of this machine (0: any that is free).

    Raises:
        BadInput: there is no run, the port is out of range or taken.
    """
    _status(directory)
    if not 0 <= port <= 65535:
        raise BadInput(f"--port {port}: must be from 0 (any that is free) to 65535")
    try:
        return ThreadingHTTPServer((ADDRESS, port), _handler(directory.resolve()))
    except OSError as error:
        raise BadInput(
            f"--port {port}: cannot be used ({error.strerror}); name another, or 0 for any "
            "that is free"
        ) from None


def watch_command(directory: Path, port: int) -> None:
    """Serves until Ctrl-C."""
    server = serve(directory, port)
    try:
        print(f"http://{ADDRESS}:{server.server_port}/ shows {directory}; Ctrl-C ends", flush=True)
        server.serve_forever()
    except KeyboardInterrupt:
        print("stopped")
    finally:
        server.server_close()


def report_file(directory: Path, path: str) -> Path | None:
    """The file of the report that a request's path names; None if there is none."""
    relative = unquote(urlsplit(path).path).lstrip("/") or "index.html"
    found = (directory / relative).resolve()
    if not found.is_relative_to(directory) or found.suffix not in SERVED or not found.is_file():
        return None
    parts = found.relative_to(directory).parts
    hidden = parts[0] in PRIVATE or any(part.startswith(".") for part in parts)
    return None if hidden else found


def _status(directory: Path) -> dict[str, object]:
    store = Store.open(directory)
    spec, _ = known_sweep(store)
    keys = {cell.key for cell in spec.cells()}
    finished = sum(record.key in keys for record in store.cells())
    store.close()
    return {"finished": finished, "planned": len(keys), "version": _version(directory)}


def _version(directory: Path) -> str:
    page = directory / "index.html"
    return str(page.stat().st_mtime_ns) if page.exists() else ""


def _handler(directory: Path) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        """GET and HEAD of one report."""

        server: ThreadingHTTPServer

        def do_GET(self) -> None:
            port = self.server.server_port
            if self.headers.get("Host") not in (f"{ADDRESS}:{port}", f"localhost:{port}"):
                return self._answer(403, "text/plain", b"only for this machine\n")
            path = urlsplit(self.path).path
            if path == STATUS:
                status = json.dumps(_status(directory)).encode()
                return self._answer(200, "application/json", status)
            if path in ("/", "/index.html"):
                return self._answer(200, "text/html; charset=utf-8", _page(directory))
            file = report_file(directory, self.path)
            if file is None:
                return self._answer(404, "text/plain", b"no such file in the report\n")
            kind = mimetypes.guess_type(file.name)[0] or "text/plain"
            return self._answer(200, kind, file.read_bytes())

        do_HEAD = do_GET  # noqa: N815 - named by http.server

        def _answer(self, code: int, kind: str, content: bytes) -> None:
            self.send_response(code)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Cache-Control", "no-store")
            self.send_header("X-Content-Type-Options", "nosniff")
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002
            """Requests of the page that watches are no news."""

    return Handler


def _page(directory: Path) -> bytes:
    version = _version(directory)
    page = (directory / "index.html").read_text(encoding="utf-8") if version else _WAITING
    watcher = _WATCHER % version
    body, end, rest = page.rpartition("</body>")
    return (f"{body}{watcher}{end}{rest}" if end else page + watcher).encode()
