"""Defines the record of the job that made an output folder. It is stored in every plan file, and in `job.yaml` for
people to read."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from pydantic import ValidationError

from pairmill.schemas.jobs import BuildJob
from pairmill.schemas.manifest import SCHEMA_VERSION


@dataclass(frozen=True)
class JobRecord:
    """A resolved job, its fingerprint, and the versions of the software that ran it."""

    job: BuildJob
    fingerprint: str
    versions: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, object]:
        """The job's fields, plus `fingerprint`, `schema_version` and `versions`."""
        own = {"fingerprint": self.fingerprint, "schema_version": SCHEMA_VERSION, "versions": self.versions}
        return {**self.job.model_dump(mode="json"), **own}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Parse the result of `to_json`. Raises KeyError or ValueError if the job cannot be read."""
        known = {name: value for name, value in values.items() if name in BuildJob.model_fields}
        if "md5" not in (images := dict(known.get("images") or {})):  # before 0.2, MD5 was always computed
            images["md5"] = True
        if "skip_reencode" in images:  # the setting that `reencode` replaced in 0.2
            images["reencode"] = "auto" if images.pop("skip_reencode") else "always"
        known["images"] = images
        try:
            job = BuildJob.model_validate(known)
        except ValidationError as error:
            raise ValueError(f"the recorded job is invalid: {error.errors(include_url=False)[0]['msg']}") from error
        return cls(job, values["fingerprint"], dict(values.get("versions") or {}))
