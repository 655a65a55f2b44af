"""`pairmill submit --kuberay`: puts a command and its files into the RayJob of `jobs/cluster/rayjob.yaml`."""

import base64
import hashlib
import shlex
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, TypeAlias

import yaml

from pairmill.jobs.cluster.job_bundle import Command, JobBundle, bundled
from pairmill.pipeline.common.files import is_remote
from pairmill.schemas.errors import JobError

Yaml: TypeAlias = dict[str, Any]
"""A Kubernetes object, nested as in its YAML."""

MOUNT = "/job"
_SCRIPT = """# Python does not import through a ConfigMap's links, so copy custom rules and the job file first.
set -e
mkdir -p ~/job
cp -L {mount}/* ~/job/
cd ~/job
exec {command}
"""

MAX_CONFIG_MAP_BYTES = 1_000_000
"""Kubernetes refuses a ConfigMap of more than 1 MiB."""


def manifest(command: Command, image: str) -> str:
    """YAML for a ConfigMap with the command and its files, and for a RayJob that runs it. Raises JobError.

    A ConfigMap has no folders, so custom rules that are packages belong in the image. Both objects are named after a
    hash of their content, so two jobs never overwrite each other's objects.
    """
    with bundled(command) as bundle:
        if local := [uri for uri in bundle.uris if not is_remote(uri)]:
            raise JobError(f"{local[0]}: no pod has this path; on Kubernetes, use s3://...")
        files = {**_files(bundle.folder), "run.sh": _script(bundle).encode()}
    if sum(map(len, files.values())) > MAX_CONFIG_MAP_BYTES:
        raise JobError("the job's blocklists are too large for a ConfigMap: put them on S3 and name them as s3://...")
    name = f"pairmill-{hashlib.blake2b(repr(sorted(files.items())).encode(), digest_size=4).hexdigest()}"
    return "---\n".join(_to_yaml(part) for part in (_config_map(name, files), _ray_job(name, image, bundle.has_models)))


def _script(bundle: JobBundle) -> str:
    line = shlex.join(["pairmill", *bundle.command(f"{MOUNT}/")])
    return _SCRIPT.format(mount=MOUNT, command=line)


def _config_map(name: str, files: Mapping[str, bytes]) -> Yaml:
    binary = {file: base64.b64encode(data).decode() for file, data in files.items() if file.endswith(".gz")}
    texts = {file: data.decode() for file, data in files.items() if not file.endswith(".gz")}
    kind = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}}
    return {**kind, "binaryData": binary, "data": texts}


def _ray_job(name: str, image: str, has_models: bool) -> Yaml:
    """`rayjob.yaml` with the job's name, image and files, and without encoders if there is nothing to encode."""
    job: Yaml = yaml.safe_load(resources.files("pairmill.jobs.cluster").joinpath("rayjob.yaml").read_text())
    job["metadata"]["name"] = name
    job["spec"]["entrypoint"] = f"bash {MOUNT}/run.sh"
    if not has_models:
        groups = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
        groups[:] = [group for group in groups if group["groupName"] != "encode"]
    for pod in _pods(job):
        for container in pod["containers"]:
            container["image"] = image
        for volume in pod["volumes"]:
            volume["configMap"]["name"] = name
    return job


def _files(folder: Path) -> dict[str, bytes]:
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_dir():
            continue
        if path.parent != folder:
            raise JobError(f"{path.relative_to(folder)}: put packages of custom rules into the image")
        files[path.name] = path.read_bytes()
    return files


def _pods(job: Yaml) -> Iterator[Yaml]:
    cluster = job["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        yield group["template"]["spec"]


class _NoAliases(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def _to_yaml(part: Yaml) -> str:
    return yaml.dump(part, Dumper=_NoAliases, sort_keys=False, width=200)
