"""The process `levada serve`: starts, swaps under load, goes on and starts again without the registry, drains."""

from __future__ import annotations

import http.client
import json
import re
import signal
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from .conftest import DECLARED, FakeMlflow, model_file
from .predicting import API_KEY, HEADERS, Process

BODY = json.dumps({"instances": [{"x": 0.5, "n": 1}] * 3})


class Clients:
    """Threads that ask, each on a connection of its own, until :meth:`end`."""

    def __init__(self, process: Process, count: int = 4) -> None:
        self.answers: list[tuple[int, str, str]] = []
        self.failures: list[str] = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(process.port,)) for _ in range(count)]
        for thread in self._threads:
            thread.start()

    def _ask(self, port: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        while not self._stop.is_set():
            try:
                connection.request("POST", "/predict", BODY, HEADERS)
                response = connection.getresponse()
                answer = json.loads(response.read())
                (label,) = {prediction["label"] for prediction in answer["predictions"]}
                assert response.headers["levada-model-version"] == answer["model"]["version"]
                self.answers.append((response.status, answer["model"]["version"], label))
            except Exception as error:
                self.failures.append(repr(error))
                connection.close()
        connection.close()

    def end(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(20)


def until(condition: Any, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def version(process: Process) -> str:
    return str(httpx.get(f"{process.url}/version").json().get("version", ""))


@pytest.mark.row(52, process=True)
def test_swaps_and_a_rollback_under_load_fail_no_request(tmp_path: Path, mlflow: FakeMlflow) -> None:
    mlflow.promote("1", model_file(("low-1", "high-1")))
    process = Process(tmp_path, mlflow.uri)
    clients = Clients(process)
    taken = []
    for number in range(2, 8):
        begin = time.monotonic()
        mlflow.promote(str(number), model_file((f"low-{number}", f"high-{number}")))
        until(lambda number=number: version(process) == str(number))
        taken.append(time.monotonic() - begin)
    mlflow.roll_back("7", to="6")
    until(lambda: version(process) == "6")
    time.sleep(0.2)
    clients.end()
    process.stop()
    print(f"{len(clients.answers)} answers, swapped within {max(taken):.2f} s at a poll of 0.2 s")
    assert clients.failures == []
    assert len(clients.answers) > 200
    assert {answer[0] for answer in clients.answers} == {200}
    assert {answer[1:] for answer in clients.answers} == {(str(n), f"high-{n}") for n in range(1, 8)}
    assert clients.answers[-1][1] == "6"


@pytest.mark.row(52, process=True, part="the cache")
def test_it_starts_and_serves_while_the_registry_is_down(tmp_path: Path, mlflow: FakeMlflow) -> None:
    mlflow.promote("1", model_file())
    process = Process(tmp_path, mlflow.uri)
    mlflow.broken = True
    clients = Clients(process, 2)
    time.sleep(1)
    clients.end()
    process.stop()
    assert clients.failures == []
    begin = time.monotonic()
    process = Process(tmp_path, "http://127.0.0.1:9")  # nobody is there
    print(f"ready {time.monotonic() - begin:.2f} s after its start, without the registry")
    answer = httpx.post(f"{process.url}/predict", content=BODY, headers=HEADERS)
    process.stop()
    assert (answer.status_code, answer.headers["levada-model-version"]) == (200, "1")


def test_sigterm_finishes_what_has_begun_and_sends_clients_away(tmp_path: Path, mlflow: FakeMlflow) -> None:
    mlflow.promote("1", model_file())
    process = Process(tmp_path, mlflow.uri)
    sent_away: list[bool] = []
    statuses: list[int] = []

    def client() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", process.port, timeout=10)
        closed = False
        while not closed:
            connection.request("POST", "/predict", BODY, HEADERS)
            response = connection.getresponse()
            response.read()
            statuses.append(response.status)
            closed = response.will_close
        sent_away.append(closed)

    clients = [threading.Thread(target=client) for _ in range(8)]
    for thread in clients:
        thread.start()
    time.sleep(0.5)
    process.process.send_signal(signal.SIGTERM)
    for thread in clients:
        thread.join(20)
    assert process.process.wait(20) == 0
    assert len(sent_away) == 8
    assert {*statuses} == {200}


def test_keys_are_read_again_when_their_file_changes(tmp_path: Path, mlflow: FakeMlflow) -> None:
    mlflow.promote("1", model_file())
    process = Process(tmp_path, mlflow.uri)

    def status() -> int:
        return httpx.post(f"{process.url}/predict", content=BODY, headers=HEADERS).status_code

    assert status() == 200
    keys = tmp_path / "keys.json"
    text = keys.read_text()
    keys.write_text("{}")
    until(lambda: status() == 401)
    keys.write_text(text)
    until(lambda: status() == 200)
    assert API_KEY not in process.log.read_text()
    process.stop()


def test_a_challenger_in_shadow_is_compared_and_never_answers(tmp_path: Path, mlflow: FakeMlflow) -> None:
    mlflow.promote("1", model_file())
    # Labels the other way round: it never agrees.
    mlflow.add("2", model_file(("high", "low")), champion="1", outcome="kept")
    process = Process(tmp_path, mlflow.uri, {**DECLARED, "serving": {"challenger": "shadow"}})
    clients = Clients(process, 2)

    def metric(name: str) -> float:
        found = re.search(
            rf'^{name}{{name="things",version="2"}} (\S+)', httpx.get(f"{process.url}/metrics").text, re.M
        )
        return float(found[1]) if found else -1.0

    until(lambda: metric("levada_shadow_rows_total") > 30)
    clients.end()
    assert metric("levada_shadow_agreement") == 0.0
    assert clients.failures == []
    assert {answer[1:] for answer in clients.answers} == {("1", "high")}
    mlflow.add("3", model_file(), champion="1", outcome="needs approval")
    clients = Clients(process, 2)
    until(lambda: 'levada_shadow_agreement{name="things",version="3"} 1.0' in httpx.get(f"{process.url}/metrics").text)
    clients.end()
    process.stop()
    assert clients.failures == []
