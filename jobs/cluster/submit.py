"""`pairmill submit` and `pairmill jobs`: run commands on a Ray cluster through its Jobs API."""

import asyncio
import logging
import os
import shlex
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from pairmill.jobs.cluster.job_bundle import Command, bundled
from pairmill.jobs.cluster.ray_token import user_token
from pairmill.schemas.errors import JobError

_POLL_S = 1.0
_STOP_TIMEOUT_S = 60.0
_AGENT_TIMEOUT_S = _AWAY_S = 60.0
_OVERRIDES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
_METADATA = "pairmill"
_ENTRYPOINT = "on_ray.sh"


@dataclass(frozen=True)
class SubmittedJob:
    """A pairmill job on a cluster."""

    job_id: str
    status: str
    """PENDING, RUNNING, STOPPED, SUCCEEDED or FAILED."""
    command: str
    seconds: float
    exit_code: int | None
    message: str

    @property
    def is_over(self) -> bool:
        """Whether the job has ended, for whatever reason."""
        return self.status in ("STOPPED", "SUCCEEDED", "FAILED")


class Cluster:
    """The jobs of the cluster at `address` (http://host:8265). Raises JobError if the cluster cannot be reached."""

    def __init__(self, address: str) -> None:
        if not address.startswith(("http://", "https://")):
            raise JobError(f"--address {address}: give the address of the cluster's dashboard, http://HEAD:8265")
        with _clearly(address), _without(*_OVERRIDES):
            self._client = _client(address)
        for name in ("dashboard.modules.dashboard_sdk", "dashboard.modules.job.sdk", "_private.runtime_env.packaging"):
            logging.getLogger(f"ray.{name}").setLevel(logging.WARNING)  # these loggers report every uploaded package
        self.address = address

    def submit(self, command: Command) -> str:
        """Upload pairmill's code and start the command. Returns the job's id. Raises JobError if the job cannot
        start."""
        with bundled(command) as bundle, _clearly(self.address):
            shutil.copy(Path(__file__).with_name(_ENTRYPOINT), bundle.folder)
            return self._submit(
                entrypoint=shlex.join(["exec", "sh", _ENTRYPOINT, *bundle.command()]),
                runtime_env={"working_dir": str(bundle.folder), "py_modules": bundle.code},
                metadata={_METADATA: shlex.join(command.arguments)},
            )

    def _submit(self, **job: Any) -> str:
        deadline = time.monotonic() + _AGENT_TIMEOUT_S
        while True:
            try:
                return str(self._client.submit_job(**job))
            except RuntimeError as error:
                if "No available agent" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(_POLL_S)  # the cluster has just been started

    def jobs(self) -> list[SubmittedJob]:
        """pairmill's jobs, newest first."""
        with _clearly(self.address):
            details = [job for job in self._client.list_jobs() if _METADATA in (job.metadata or {})]
        return [_to_submitted_job(job) for job in sorted(details, key=lambda job: -(job.start_time or 0))]

    def job(self, job_id: str) -> SubmittedJob:
        """The job with this id."""
        with _clearly(self.address):
            return _to_submitted_job(self._client.get_job_info(job_id))

    def logs(self, job_id: str) -> str:
        """All output of the job so far."""
        with _clearly(self.address):
            text: str = self._client.get_job_logs(job_id)
        return text

    def follow(self, job_id: str, show: Callable[[str], None]) -> SubmittedJob:
        """Pass the job's output to `show` until the job ends. Reconnects if the connection breaks."""
        shown = 0

        async def stream() -> None:
            nonlocal shown
            seen = 0
            async for text in self._client.tail_job_logs(job_id):
                new = text[max(shown - seen, 0) :]
                seen += len(text)
                if new:
                    shown += len(new)
                    show(new)

        while not (job := self._patiently(job_id)).is_over:
            with suppress(Exception):  # from several libraries, if the connection breaks or the job has ended
                asyncio.run(stream())
            time.sleep(_POLL_S)
        show(self.logs(job_id)[shown:])
        return job

    def _patiently(self, job_id: str) -> SubmittedJob:
        """The job. Retries for a while if the dashboard cannot be reached."""
        deadline = time.monotonic() + _AWAY_S
        while True:
            try:
                return self.job(job_id)
            except JobError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(_POLL_S)

    def stop(self, job_id: str) -> SubmittedJob:
        """Stop the job and wait until it has ended. Raises JobError if it does not end."""
        with _clearly(self.address):
            self._client.stop_job(job_id)
        deadline = time.monotonic() + _STOP_TIMEOUT_S
        while not (job := self.job(job_id)).is_over:
            if time.monotonic() > deadline:
                raise JobError(f"{job_id} did not stop; it is still {job.status}")
            time.sleep(_POLL_S)
        return job


def _client(address: str) -> JobSubmissionClient:
    """A client that sends this user's token only to clusters that require one.

    Ray's own client sends it only if RAY_AUTH_MODE=token. But even without that variable, `ray start --head` and
    `ray.init` require tokens if the machine has one, and a local build leaves one behind.
    """
    try:
        return JobSubmissionClient(address)
    except AuthenticationError:
        token = user_token()
        if token is None:
            raise
        return JobSubmissionClient(address, headers={"Authorization": f"Bearer {token}"})


@contextmanager
def _without(*names: str) -> Iterator[None]:
    """Hide these environment variables, because Ray's client prefers them to the address that it is given."""
    before = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(before)


@contextmanager
def _clearly(address: str) -> Iterator[None]:
    """Turn the client's errors (RuntimeErrors with the server's traceback, and failed connections) into JobErrors."""
    try:
        yield
    except AuthenticationError:
        raise JobError(
            f"the cluster at {address} requires a token, and this machine has none that it accepts: copy the one in "
            "~/.ray/auth_token on the cluster's head node to the same file here, or to RAY_AUTH_TOKEN"
        ) from None
    except OSError as error:
        raise JobError(f"no Ray cluster answers at {address}: {_first_line(error)}") from None
    except RuntimeError as error:
        raise JobError(f"the cluster at {address} says: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:300]


def _to_submitted_job(job: JobDetails) -> SubmittedJob:
    end = (job.end_time or time.time() * 1e3) if job.start_time else 0
    return SubmittedJob(
        job_id=job.submission_id or "",
        status=str(job.status.value if isinstance(job.status, JobStatus) else job.status),
        command=(job.metadata or {}).get(_METADATA, job.entrypoint),
        seconds=round((end - (job.start_time or 0)) / 1e3, 1),
        exit_code=job.driver_exit_code,
        message=job.message or "",
    )
