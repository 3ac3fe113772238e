"""The servers of the bench, each a process on one core; the peers in environments of their own, made once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests.environments import CACHE, UV, image
from tests.unit.ingest.collecting import free_port
from tests.unit.serving.conftest import FakeMlflow
from tests.unit.serving.predicting import HEADERS, Process

from .models import Trained

SERVER_CORE = 0
ROOT = Path(__file__).parents[3]
PEERS = {"mlflow": ["mlflow==3.17.2"], "mlserver": ["mlserver==1.7.1", "mlserver-sklearn==1.7.1"]}
# What the models were made with, in all of them.
SAME = ("scikit-learn", "numpy", "pandas", "joblib")
_SAVE = (
    "import sys, joblib, mlflow; "
    "mlflow.sklearn.save_model(joblib.load(sys.argv[1]), sys.argv[2], serialization_format='cloudpickle', "
    "pip_requirements=['scikit-learn'])"
)


@dataclass
class Server:
    """One that answers."""

    kind: str
    model: Trained
    pid: int
    url: str
    started: float
    """Seconds from the start of the process to the first prediction."""
    health: str = ""
    """Where ours is asked for its metrics, as the line's Prometheus does."""

    def request(self, rows: int) -> bytes:
        """One whole request of so many rows."""
        body = self.model.body(self.kind, rows)
        path = self.url.split("/", 3)[3]
        lines = [f"POST /{path} HTTP/1.1", "Host: h", *(f"{name}: {text}" for name, text in HEADERS.items())]
        return "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body


def environment(peer: str) -> Path:
    """Folder of a peer's virtual environment."""
    folder = CACHE / peer
    if not (folder / "bin" / peer).exists():
        from importlib.metadata import version

        needed = [*PEERS[peer], *(f"{package}=={version(package)}" for package in SAME)]
        python = folder / "bin" / "python"
        for command in ([UV, "venv", str(folder)], [UV, "pip", "install", "--python", str(python), *needed]):
            subprocess.run(command, check=True)
    return folder


@contextmanager
def started(kind: str, model: Trained, folder: Path) -> Iterator[Server]:
    """One server with one model, on its core from its first moment."""
    folder.mkdir()
    with pinned():
        process, url, begin = _start(kind, model, folder)
    server = Server(kind, model, process.pid, url, 0.0)
    try:
        _await(server, process, begin, folder / "log")
        yield server
    finally:
        for pid in reversed(tree(process.pid)):
            os.kill(pid, 9)
        process.wait()


@contextmanager
def pinned() -> Iterator[None]:
    """What is started inside runs on the servers' core."""
    everywhere = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {SERVER_CORE})
    try:
        yield
    finally:
        os.sched_setaffinity(0, everywhere)


def _await(server: Server, process: subprocess.Popen[bytes], begin: float, log: Path) -> None:
    body = server.model.body(server.kind, 1)
    while True:
        assert process.poll() is None, log.read_text()[-3000:]
        try:
            if httpx.post(server.url, content=body, headers=HEADERS, timeout=30).status_code == 200:
                break
        except httpx.TransportError:
            pass
        assert time.monotonic() - begin < 300, log.read_text()[-3000:]
        time.sleep(0.005)
    server.started = time.monotonic() - begin


def _start(kind: str, model: Trained, folder: Path) -> tuple[subprocess.Popen[bytes], str, float]:
    port = free_port()
    base = f"http://127.0.0.1:{port}"
    where = {**os.environ}
    if kind == "mlflow":
        home = environment("mlflow")
        save = [home / "bin" / "python", "-W", "ignore", "-c", _SAVE, model.joblib, folder / "model"]
        subprocess.run(save, check=True, capture_output=True)
        command = [
            *(str(home / "bin" / "mlflow"), "models", "serve", "-m", str(folder / "model"), "--env-manager", "local"),
            *("--workers", "1", "--host", "127.0.0.1", "--port", str(port)),
        ]
        where["PATH"] = f"{home / 'bin'}:{where['PATH']}"
        url = f"{base}/invocations"
    elif kind == "mlserver":
        home = environment("mlserver")
        settings = {
            "host": "127.0.0.1", "http_port": port, "grpc_port": free_port(), "metrics_port": free_port(),
            "parallel_workers": 0, "debug": False,
        }  # fmt: skip
        about = {
            "name": "m", "implementation": "mlserver_sklearn.SKLearnModel",
            "parameters": {"uri": str(model.joblib), "version": "1"},
        }  # fmt: skip
        (folder / "settings.json").write_text(json.dumps(settings))
        (folder / "model-settings.json").write_text(json.dumps(about))
        command = [str(home / "bin" / "mlserver"), "start", str(folder)]
        url = f"{base}/v2/models/m/infer"
    else:
        options = ["--port", str(port), "--loop", "uvloop", "--http", "httptools", "--no-access-log"]
        app = "tests.bench.serving.apps:hello" if kind == "hello" else "tests.bench.serving.naive:app"
        command = [sys.executable, "-m", "uvicorn", app, *options, "--log-level", "warning"]
        where |= {"BENCH_MODEL": str(model.joblib), "PYTHONWARNINGS": "ignore"}
        url = f"{base}/predict"
    begin = time.monotonic()
    with (folder / "log").open("wb") as log:
        return subprocess.Popen(command, env=where, stdout=log, stderr=log), url, begin


@contextmanager
def predictor(
    model: Trained, folder: Path, mlflow: FakeMlflow, *, shadow: bool = False, kafka: str = ""
) -> Iterator[Server]:
    """Ours: the real process with keys and metrics, and a registry that is a thread of the bench.

    Args:
        model: what it serves.
        folder: a new one for its files.
        mlflow: the registry.
        shadow: whether it asks a challenger, too.
        kafka: address of a broker to which it logs its predictions.
    """
    folder.mkdir()
    mlflow.promote("1", model.onnx)
    if shadow:
        mlflow.add("2", model.onnx, champion="1", outcome="kept")
    declared = {**model.declared, "serving": {"challenger": "shadow" if shadow else "none"}}
    python = str(image("serving") / "bin" / "python")
    settings = {"LEVADA_PREDICTOR__POLL_SECONDS": "5", "PYTHONPATH": str(ROOT / "src")}
    if kafka:
        settings |= {"LEVADA_KAFKA__BOOTSTRAP": kafka, "LEVADA_KAFKA__PROTOCOL": "PLAINTEXT"}
    begin = time.monotonic()
    with pinned():
        process = Process(folder, mlflow.uri, declared, wait=False, python=python, **settings)
    server = Server("levada", model, process.process.pid, f"{process.url}/predict", 0.0, process.health)
    try:
        _await(server, process.process, begin, process.log)
        yield server
    finally:
        process.stop()


def tree(pid: int) -> list[int]:
    """A process and all that it started."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found += tree(int(child))
    return found


def cpu_seconds(pid: int) -> float:
    """User plus system time of a tree of processes."""
    ticks = 0
    for each in tree(pid):
        fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def resident(pid: int) -> float:
    """Memory of a tree of processes in MB; pages that they share count twice."""
    pages = sum(int(Path(f"/proc/{each}/statm").read_text().split()[1]) for each in tree(pid))
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6
