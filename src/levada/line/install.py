"""Install the line with Helm, and everything it needs where nothing is there yet."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import yaml

from levada.line.target import LineError, Target, ready_pods
from levada.pipeline import Pipeline, PipelineError, parse_pipeline

ROOT: Final = Path(__file__).resolve().parents[3]
"""The checkout that this package runs from."""
CHART: Final = ROOT / "charts" / "levada"
DEFAULT_VALUES: Final = (ROOT / "values" / "local.yaml", ROOT / "values" / "profiles" / "nano.yaml")
_NAMESPACE: Final = """
apiVersion: v1
kind: Namespace
metadata:
  name: {name}
  labels:
    pod-security.kubernetes.io/enforce: restricted
"""


def merge(files: Sequence[Path]) -> dict[str, Any]:
    """Values of several files as Helm merges them: maps are joined, anything else is replaced by the later file.

    Raises:
        LineError: a file that cannot be read as a mapping.
    """
    merged: dict[str, Any] = {}
    for file in files:
        try:
            values = yaml.safe_load(file.read_text()) or {}
        except (OSError, yaml.YAMLError) as error:
            raise LineError(f"values file {file} cannot be read: {error}") from error
        if not isinstance(values, dict):
            raise LineError(f"values file {file} must hold a mapping")
        _join(merged, values)
    return merged


def _join(into: dict[str, Any], values: Mapping[str, Any]) -> None:
    for key, value in values.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _join(into[key], value)
        else:
            into[key] = value


def check(files: Sequence[Path]) -> dict[str, Pipeline]:
    """The pipelines that the values files declare together, checked as no JSON Schema can.

    Raises:
        PipelineError: with every problem of every pipeline.
        LineError: a file cannot be read, or declares no pipeline.
    """
    entries = merge(files).get("global", {}).get("pipelines", {})
    if not entries:
        raise LineError(f"{', '.join(map(str, files))}: no pipeline under global.pipelines")
    pipelines, problems = {}, []
    for name, entry in entries.items():
        try:
            pipelines[name] = parse_pipeline(entry, name)
        except PipelineError as error:
            problems.append(str(error))
    if problems:
        raise PipelineError("\n".join(problems))
    return pipelines


def install(target: Target, values: Sequence[Path], detail: Callable[[str], None], timeout: float = 900) -> None:
    """``helm upgrade --install --wait``, telling ``detail`` every few seconds what is not ready yet.

    Raises:
        LineError: with Helm's message and the pods that are in trouble.
    """
    if not CHART.is_dir():
        raise LineError(f"the chart is not at {CHART}: run levada from a checkout, or use helm install")
    if not _exists(target):
        target.kubectl("create", "-f", "-", stdin=_NAMESPACE.format(name=target.namespace))
    files = [argument for file in values for argument in ("--values", str(file))]
    command = [
        str(target.helm_binary), "--kube-context", target.context, "--namespace", target.namespace,
        "upgrade", "--install", target.release, str(CHART), *files,
        "--wait", "--wait-for-jobs", "--timeout", f"{timeout:g}s",
    ]  # fmt: skip
    done = threading.Event()
    watcher = threading.Thread(target=_watch, args=(target, detail, done), daemon=True)
    watcher.start()
    try:
        helm = subprocess.run(command, env=target.environment, capture_output=True, text=True, check=False)
    finally:
        done.set()
        watcher.join()
    if helm.returncode != 0:
        raise LineError(f"helm: {helm.stderr.strip()}\n{trouble(target)}")


def _exists(target: Target) -> bool:
    try:
        target.kubectl("get", "namespace", target.namespace)
    except LineError as error:
        if "NotFound" in str(error):
            return False
        if "Forbidden" not in str(error):  # a namespace's admin may use it without being let read it
            raise
    return True


def _watch(target: Target, detail: Callable[[str], None], done: threading.Event) -> None:
    while not done.wait(5):
        try:
            pods = target.objects("pods")
        except LineError:
            continue
        running = [pod for pod in pods if pod["status"]["phase"] != "Succeeded"]
        waiting = sorted(
            pod["metadata"]["name"].removeprefix(f"{target.release}-") for pod in running if not ready_pods([pod])
        )
        shown = ", ".join(waiting[:4]) + (f" and {len(waiting) - 4} more" if len(waiting) > 4 else "")
        detail(
            f"{len(running) - len(waiting)} of {len(running)} pods ready"
            + (f", waiting for {shown}" if waiting else "")
        )


def trouble(target: Target) -> str:
    """Why pods are not ready, one line a pod with the last line of its log."""
    lines = []
    try:
        pods = target.objects("pods")
    except LineError as error:
        return str(error)
    for pod in pods:
        if pod["status"]["phase"] == "Succeeded" or ready_pods([pod]):
            continue
        name = pod["metadata"]["name"]
        reasons = [
            f"{status['name']}: {detail.get('reason', kind)} {detail.get('message', '')}".strip()
            for status in pod["status"].get("initContainerStatuses", []) + pod["status"].get("containerStatuses", [])
            if not status.get("ready")
            for kind, detail in status["state"].items()
            if detail.get("reason") != "Completed"
        ] or [condition.get("message", "") for condition in pod["status"].get("conditions", [])]
        try:
            log = target.kubectl("logs", name, "--all-containers", "--tail=1").strip()
        except LineError:
            log = ""
        lines.append(f"  {name}: {'; '.join(filter(None, reasons))}" + (f"\n    {log[:300]}" if log else ""))
    return "\n".join(lines) or "every pod is ready"


def uninstall(target: Target) -> None:
    """``helm uninstall``, until the last pod is gone; volumes and credentials stay."""
    command = [
        str(target.helm_binary), "--kube-context", target.context, "--namespace", target.namespace,
        "uninstall", target.release, "--ignore-not-found", "--wait", "--cascade", "foreground",
    ]  # fmt: skip
    helm = subprocess.run(command, env=target.environment, capture_output=True, text=True, check=False)
    if helm.returncode != 0:
        raise LineError(f"helm: {helm.stderr.strip()}")


def write_values(path: Path, values: Mapping[str, Any]) -> Path:
    """A values file that a program made; JSON is YAML."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=2) + "\n")
    return path
