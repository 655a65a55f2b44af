"""Defines the section `run`: how to distribute the work."""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from pairmill.schemas.settings import Settings

DOWNLOAD_CPUS = 1.0
"""CPUs that a download actor requests. Alone, one keeps one and a half cores busy: its event loop and its decoding
threads share the GIL (decision 002)."""

ROWS_WORTH_AN_ACTOR = 1_000
"""An actor downloads fewer rows than these in about the time that it takes to start another one."""


def cpus_per_download_actor(beside_models: bool) -> float:
    """The number of CPUs for each download actor. Models on the same CPUs are so slow that half as many actors do."""
    return 2 * DOWNLOAD_CPUS if beside_models else DOWNLOAD_CPUS


class RunConfig(Settings):
    """How to distribute the work. Nothing here changes the output."""

    address: str | None = None
    """Ray cluster to join (`auto` or ray://...). None: this machine, without Ray."""
    download_actors: Annotated[int, Field(ge=1)] | None = None
    """Number of download actors. None: one for each CPU (on a cluster, except two for other stages); half as many if
    models run on these CPUs; at most one per 1,000 rows."""
    decode_threads: Annotated[int, Field(ge=1)] = 2
    """Decoding threads per download actor."""
    encode_actors: Annotated[int, Field(ge=1)] | None = None
    """Number of encode actors. None: one for each GPU, or one on the CPU."""
    max_download_actors: Annotated[int, Field(ge=1)] | None = None
    """Maximum number of download actors on an autoscaling cluster, where actors start while shards wait and stop when
    idle. None: the pool does not grow."""
    max_encode_actors: Annotated[int, Field(ge=1)] | None = None
    """Maximum number of encode actors on an autoscaling cluster. None: the pool does not grow."""
    gpus_per_encoder: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """GPUs per encode actor: with 0.5, two actors share each GPU and its memory."""
    encode_threads: Annotated[int, Field(ge=1)] | None = None
    """Threads per encode actor on a CPU. None: all cores of its machine."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the models run. auto: on a GPU if there is one."""
    batch_size: Annotated[int, Field(ge=1)] | None = None
    """Pictures or captions per forward pass. None: 32 on a CPU, 256 on a GPU. Halved if GPU memory runs out."""
    shards_in_flight: Annotated[int, Field(ge=1)] | None = None
    """Maximum number of shards between read and commit, whose pictures are in memory. None: eight per
    download actor, plus four."""
    max_failed_shards_in_a_row: Annotated[int, Field(ge=1)] = 20
    """Stop after this many shards in a row have failed."""

    @field_validator("gpus_per_encoder")
    @classmethod
    def _is_a_fraction_or_whole(cls, gpus: float) -> float:
        if gpus > 1 and gpus != int(gpus):
            raise ValueError("gpus_per_encoder must be a fraction of one GPU or a whole number of GPUs")
        return gpus
