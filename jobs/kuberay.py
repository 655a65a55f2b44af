"""`pairmill submit --kuberay`: the RayJob of `jobs/cluster/`, with a command and its files filled in."""

import shlex
from collections.abc import Iterator, Sequence
from importlib import resources
from typing import Any

import yaml

from jobs.config import JobError
from jobs.shipment import packed

MOUNT = "/job"
MAX_CONFIG_MAP_BYTES = 1_000_000
"""Kubernetes refuses a ConfigMap of more than 1 MiB."""


def manifest(arguments: Sequence[str], image: str) -> str:
    """YAML of a ConfigMap with the command's files and a RayJob that runs it. Raises JobError.

    Files lie flat in a ConfigMap, so packages of own rules belong in the image.
    """
    with packed(arguments) as shipment:
        files = {}
        for path in sorted(shipment.folder.rglob("*")):
            if "__pycache__" in path.parts or path.is_dir():
                continue
            if path.parent != shipment.folder:
                raise JobError(f"{path.relative_to(shipment.folder)}: put packages of own rules into the image")
            files[path.name] = path.read_text()
        command = [*shipment.arguments, "--set", "run.address=auto"]
    if sum(len(text.encode()) for text in files.values()) > MAX_CONFIG_MAP_BYTES:
        raise JobError("the job's blocklists are too large for a ConfigMap: name them as s3://...")
    job = yaml.safe_load(resources.files("jobs").joinpath("cluster", "rayjob.yaml").read_text())
    # A ConfigMap's files are links that Python does not import from: the command runs in a copy.
    there = f"mkdir -p ~/job && cp -L {MOUNT}/* ~/job/ && cd ~/job && {shlex.join(['pairmill', *command])}"
    job["spec"]["entrypoint"] = f"bash -c {shlex.quote(there)}" if files else shlex.join(["pairmill", *command])
    for container in _containers(job):
        container["image"] = image
    config_map = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "pairmill-job"},
        "data": files,
    }
    return "---\n".join(_dumped(part) for part in (config_map, job))


def _containers(job: dict[str, Any]) -> Iterator[dict[str, Any]]:
    cluster = job["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        yield from group["template"]["spec"]["containers"]


class _NoAliases(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def _dumped(part: dict[str, Any]) -> str:
    return yaml.dump(part, Dumper=_NoAliases, sort_keys=False, width=200)
