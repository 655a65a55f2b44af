"""Turns lists of web pictures and captions into scored, filtered training data for CLIP-like models.

    import pairmill

    result = pairmill.build("urls.parquet", "out", models="ViT-B-32:openai", min_similarity=0.28)
    dataset = pairmill.open("out")
    dataset.table(["uid", "caption", "similarity"]).to_pandas()

Each name in `__all__` is loaded on first use, so the import itself takes almost no time.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from pairmill.schemas.version import VERSION as __version__

if TYPE_CHECKING:
    from pairmill.jobs.add_model import ColumnsResult
    from pairmill.jobs.api.choose import export, select
    from pairmill.jobs.api.combine import mix
    from pairmill.jobs.api.find import index, search
    from pairmill.jobs.api.judge import score
    from pairmill.jobs.api.make import add_model, build, embed, retry
    from pairmill.jobs.api.measure import evaluate, probe
    from pairmill.jobs.api.read import open, report, status, verify
    from pairmill.jobs.api.withdraw import gc, purge
    from pairmill.jobs.evaluate import EvaluationResult
    from pairmill.jobs.export import ExportResult
    from pairmill.jobs.probe import ProbeResult
    from pairmill.jobs.progress import ProgressListener
    from pairmill.jobs.purge import PurgeResult
    from pairmill.jobs.report import ReportResult
    from pairmill.jobs.results import BuildResult
    from pairmill.jobs.retry import RetryResult
    from pairmill.jobs.score import ScoreResult
    from pairmill.jobs.search import SearchResult
    from pairmill.jobs.upkeep import GcResult
    from pairmill.pipeline.check.report import VerifyReport
    from pairmill.pipeline.feed.config import FeedConfig
    from pairmill.pipeline.feed.pair_dataset import PairDataset
    from pairmill.pipeline.reader.dataset import Dataset, Row
    from pairmill.pipeline.rules.custom import at, rule
    from pairmill.pipeline.search.build_index import IndexReport
    from pairmill.pipeline.search.matches import Match
    from pairmill.schemas.balance import Balance
    from pairmill.schemas.errors import JobError, PairmillError
    from pairmill.schemas.export import ExportJob
    from pairmill.schemas.job.fetch import FetchConfig
    from pairmill.schemas.job.images import ImagesConfig
    from pairmill.schemas.job.models import ModelConfig
    from pairmill.schemas.job.rules import RulesConfig
    from pairmill.schemas.job.run import RunConfig
    from pairmill.schemas.job.source import SourceConfig
    from pairmill.schemas.jobs import BuildJob
    from pairmill.schemas.mixture import MixSource, Mixture
    from pairmill.schemas.repeat import Repeat
    from pairmill.schemas.s3 import S3Access, S3Config
    from pairmill.schemas.scores import ScoreJob
    from pairmill.schemas.select_steps import Dedup, Sample, SelectStep, Top
    from pairmill.schemas.status import Status
    from pairmill.schemas.subset import SelectJob, StepReport, Subset

__all__ = [
    "Balance",
    "BuildJob",
    "BuildResult",
    "ColumnsResult",
    "Dataset",
    "Dedup",
    "EvaluationResult",
    "ExportJob",
    "ExportResult",
    "FeedConfig",
    "FetchConfig",
    "GcResult",
    "ImagesConfig",
    "IndexReport",
    "JobError",
    "Match",
    "MixSource",
    "Mixture",
    "ModelConfig",
    "PairDataset",
    "PairmillError",
    "ProbeResult",
    "ProgressListener",
    "PurgeResult",
    "Repeat",
    "ReportResult",
    "RetryResult",
    "Row",
    "RulesConfig",
    "RunConfig",
    "S3Access",
    "S3Config",
    "Sample",
    "ScoreJob",
    "ScoreResult",
    "SearchResult",
    "SelectJob",
    "SelectStep",
    "SourceConfig",
    "Status",
    "StepReport",
    "Subset",
    "Top",
    "VerifyReport",
    "__version__",
    "add_model",
    "at",
    "build",
    "embed",
    "evaluate",
    "export",
    "gc",
    "index",
    "mix",
    "open",
    "probe",
    "purge",
    "report",
    "retry",
    "rule",
    "score",
    "search",
    "select",
    "status",
    "verify",
]

_MODULES = {
    "jobs.add_model": ("ColumnsResult",),
    "jobs.api.choose": ("export", "select"),
    "jobs.api.combine": ("mix",),
    "jobs.api.find": ("index", "search"),
    "jobs.api.judge": ("score",),
    "jobs.api.make": ("add_model", "build", "embed", "retry"),
    "jobs.api.measure": ("evaluate", "probe"),
    "jobs.api.read": ("open", "report", "status", "verify"),
    "jobs.api.withdraw": ("gc", "purge"),
    "jobs.evaluate": ("EvaluationResult",),
    "jobs.probe": ("ProbeResult",),
    "jobs.progress": ("ProgressListener",),
    "jobs.purge": ("PurgeResult",),
    "jobs.report": ("ReportResult",),
    "jobs.results": ("BuildResult",),
    "jobs.score": ("ScoreResult",),
    "jobs.search": ("SearchResult",),
    "jobs.upkeep": ("GcResult",),
    "jobs.export": ("ExportResult",),
    "jobs.retry": ("RetryResult",),
    "pipeline.check.report": ("VerifyReport",),
    "pipeline.feed.config": ("FeedConfig",),
    "pipeline.feed.pair_dataset": ("PairDataset",),
    "pipeline.reader.dataset": ("Dataset", "Row"),
    "pipeline.rules.custom": ("at", "rule"),
    "pipeline.search.build_index": ("IndexReport",),
    "pipeline.search.matches": ("Match",),
    "schemas.errors": ("JobError", "PairmillError"),
    "schemas.export": ("ExportJob",),
    "schemas.job.fetch": ("FetchConfig",),
    "schemas.job.images": ("ImagesConfig",),
    "schemas.job.models": ("ModelConfig",),
    "schemas.job.rules": ("RulesConfig",),
    "schemas.job.run": ("RunConfig",),
    "schemas.job.source": ("SourceConfig",),
    "schemas.jobs": ("BuildJob",),
    "schemas.s3": ("S3Access", "S3Config"),
    "schemas.scores": ("ScoreJob",),
    "schemas.status": ("Status",),
    "schemas.balance": ("Balance",),
    "schemas.mixture": ("MixSource", "Mixture"),
    "schemas.repeat": ("Repeat",),
    "schemas.select_steps": ("Dedup", "Sample", "SelectStep", "Top"),
    "schemas.subset": ("SelectJob", "StepReport", "Subset"),
}
"""Module -> the public names that it defines. They are imported on first use."""

_HOME = {name: module for module, names in _MODULES.items() for name in names}

if not TYPE_CHECKING:  # otherwise type checkers would accept any name

    def __getattr__(name):
        if name not in _HOME:
            raise AttributeError(f"module 'pairmill' has no attribute {name!r}")
        value = getattr(import_module(f"pairmill.{_HOME[name]}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
