"""scripts/download_models.sh run against a server on this machine, and what it leaves behind."""

import subprocess
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


class LocalServer:
    """A server at `url` whose answers are given by `answer`, of a class derived from this one."""

    def __init__(self):
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                outer.answer(self)

            def do_HEAD(self):
                outer.answer(self)

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()

    def close(self):
        self.http.shutdown()
        self.http.server_close()


def download(words: list[str], folder: Path, environment: Mapping[str, str]) -> tuple[int, str]:
    """Run the script in this environment, with a models folder of a test's own; returns (status, messages)."""
    done = subprocess.run(
        ["bash", str(ROOT / "scripts/download_models.sh"), *words],
        env={"MODELS_DIR": str(folder / "models"), **environment},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def files(folder: Path) -> dict[str, bytes]:
    """Every file below the models folder, with its content."""
    models = folder / "models"
    return {str(path.relative_to(models)): path.read_bytes() for path in models.rglob("*") if path.is_file()}
