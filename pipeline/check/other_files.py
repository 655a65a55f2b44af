"""Checks the files beside the shards: the job, converted inputs, the ledger of purges, notes of exports, and labels."""

import json
from collections.abc import Iterator, Mapping

import yaml
from pydantic import BaseModel

from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.common.text import pairmill_command
from pairmill.pipeline.dataset.exports import note_files, read_note
from pairmill.pipeline.dataset.integrity import DamagedFileError, MissingFileError
from pairmill.pipeline.dataset.manifests import DamagedManifestError, read_record
from pairmill.pipeline.dataset.parquet import count_rows
from pairmill.pipeline.dataset.strays import SIZES_NAME
from pairmill.pipeline.dataset.withdrawn import (
    PARTS,
    PURGED_REMEDY,
    done_name,
    ledger_files,
    purged_name,
    request_name,
    rows_name,
)
from pairmill.pipeline.source.planned import Plan
from pairmill.schemas.purge import Purged, PurgeDone

JOB_FILE = "job.yaml"
_AGAIN = "run the same build or embed again, which writes it"
_RESTORE = "restore it from a copy"


def check_other_files(store: Store, plan: Plan) -> Iterator[str]:
    """One problem per missing or damaged file, with its remedy."""
    yield from _check_job(store, plan)
    yield from _check_inputs(store, plan)
    yield from _check_ledger(store)
    for name in note_files(store):
        try:
            read_note(store, name)
        except DamagedManifestError as error:
            yield str(error)
    for name in store.list("labels"):
        if name.endswith(".parquet"):
            remedy = f"{_RESTORE}, or move it elsewhere and label again"
            yield from _check_table(store, f"labels/{name}", remedy)


def _check_job(store: Store, plan: Plan) -> Iterator[str]:
    try:
        job = yaml.safe_load(store.read(JOB_FILE))
    except FileNotFoundError:
        yield f"{store.path(JOB_FILE)} is missing; {_AGAIN}"
        return
    except (yaml.YAMLError, ValueError, RecursionError, IsADirectoryError):
        job = None
    if not isinstance(job, dict) or job.get("fingerprint") != plan.record.fingerprint:
        yield f"{store.path(JOB_FILE)} is damaged or of another job; move it elsewhere and {_AGAIN}"


def check_sizes(store: Store, sizes: Mapping[str, int]) -> Iterator[str]:
    """The problem with `images/sizes.json`, from which trainers take the number of samples. `sizes`: tar -> number of
    pictures."""
    try:
        found = json.loads(store.read(SIZES_NAME))
    except FileNotFoundError:
        if sizes:
            yield f"{store.path(SIZES_NAME)} is missing; {_AGAIN}"
        return
    except (ValueError, RecursionError):
        found = None
    if found != sizes:
        yield f"{store.path(SIZES_NAME)} does not list the tars as they are; {_AGAIN}"


def _check_inputs(store: Store, plan: Plan) -> Iterator[str]:
    for each in plan.inputs:
        if each.uri != each.source:
            remedy = f"{_RESTORE}, or make the dataset again in another folder; it was made from {each.source}"
            yield from _check_table(store, each.uri, remedy, each.num_rows)


def _check_ledger(store: Store) -> Iterator[str]:
    files = ledger_files(store)
    done = files["done"]
    for number in sorted({*files["request"], *done}):
        yield from _check_table(store, request_name(number), _RESTORE)
    for number in sorted({*files["rows"], *done}):
        yield from _check_table(store, rows_name(number), _RESTORE)
    for name in store.list(PARTS):
        yield from _check_table(store, f"{PARTS}/{name}", _RESTORE)
    for number in done:
        again = pairmill_command("purge", store.root)
        remedy = f"{_RESTORE}, or move it elsewhere and finish the purge again: {again}"
        yield from _check_record(store, done_name(number), PurgeDone, remedy)
    for number in files["purged"]:
        remedy = PURGED_REMEDY if number not in done else f"{_RESTORE}, or move it elsewhere: its purge is finished"
        yield from _check_record(store, purged_name(number), Purged, remedy)


def _check_record(store: Store, name: str, model: type[BaseModel], remedy: str) -> Iterator[str]:
    try:
        read_record(store, name, model, remedy)
    except DamagedManifestError as error:
        yield str(error)


def _check_table(store: Store, name: str, remedy: str, num_rows: int | None = None) -> Iterator[str]:
    try:
        found = count_rows(store, name)
    except MissingFileError:
        yield f"{store.path(name)} is missing; {remedy}"
    except DamagedFileError as error:
        yield f"{error}; {remedy}"
    else:
        if num_rows not in (None, found):
            yield f"{store.path(name)} has {found:,} rows instead of {num_rows:,}; {remedy}"
