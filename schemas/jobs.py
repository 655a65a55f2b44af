"""The job file: every setting, checked before anything starts.

Unknown keys are errors, and names include their units. `fingerprint_fields()` lists the settings that change the
output, which must stay the same between two runs into the same output folder.
"""

import codecs
import ipaddress
import os
import re
from contextlib import suppress
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)

from pairmill.schemas.pairs import OWN_COLUMNS
from pairmill.schemas.s3 import S3Config, without_secrets

CONFIG_VERSION: Literal[1] = 1

_ALIAS = re.compile(r"[a-z][a-z0-9_]{0,39}")
_NAMESERVER = re.compile(r"(?:\[(?P<v6>[^\]]+)\]|(?P<v4>[^:\[\]]+))(?::\d{1,5})?")
_CUSTOM_RULE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def _as_text(path: object) -> object:
    return os.fspath(path) if isinstance(path, os.PathLike) else path


def _as_list(paths: object) -> object:
    return [paths] if isinstance(paths, (str, os.PathLike)) else paths


Uri = Annotated[str, BeforeValidator(_as_text), AfterValidator(without_secrets)]
"""A path (`str` or `pathlib.Path`) or URL. It is stored in files and logs, so it must not contain secrets."""


def _text_encoding(name: str) -> str:
    """Python's canonical name of a text encoding."""
    try:
        with suppress(UnicodeError):
            b"a".decode(name)
    except LookupError:  # also for codecs that are not text, such as base64
        raise ValueError(
            "no such text encoding; common ones are utf-8, latin-1, cp1252, utf-16, gb18030, shift_jis"
        ) from None
    return codecs.lookup(name).name.removesuffix("-sig")


def _field_delimiter(value: str) -> str:
    value = {"tab": "\t", "\\t": "\t"}.get(value, value)
    if len(value) != 1 or not value.isascii() or value.isalnum() or value in '"\r\n\0':
        raise ValueError("a delimiter is one ASCII character such as `;` or `|`, or the word tab")
    return value


class _Settings(BaseModel):
    """Base of all parts of a job. Unknown keys are errors, and values cannot change after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class SourceConfig(_Settings):
    """Where the pairs come from."""

    paths: Annotated[list[Uri], BeforeValidator(_as_list), Field(min_length=1)]
    """Files, folders, globs or fsspec URLs: Parquet, CSV, TSV, JSON (lines or an array), or text with one URL per line.
    All but Parquet may be gzipped. A single path needs no list."""
    url_column: str | None = None
    """Column of picture URLs. None: guessed from common names (url, image_url, ...)."""
    caption_column: str | None = None
    """Column of captions. None: guessed (caption, text, alt, ...). A column of lists gives one row per caption. In tars
    and folders of pictures: a key of the .json files, or the ending of the text files."""
    uid_column: str | None = None
    """Column of your own ids: 32 hex characters, hyphens allowed. None: a hash of url and caption."""
    sha256_column: str | None = None
    """Column of the expected SHA-256, in hex, of each picture's original bytes. Pictures that do not match get the
    status `content_changed`."""
    encoding: Annotated[str, AfterValidator(_text_encoding)] | None = None
    """Encoding of text files: utf-8, latin-1, cp1252, utf-16, ... A byte order mark in a file overrides it. None:
    UTF-8; files that are clearly in another encoding are refused."""
    delimiter: Annotated[str, AfterValidator(_field_delimiter)] | None = None
    """Character between the fields of CSV and TSV files, or `tab`. None: detected from the header: comma, tab,
    semicolon or `|`."""
    license_column: str | None = None
    """Column that `rules.license_allow` reads. None: guessed (license, licence) when that rule is on."""
    kind: Literal["urls", "corpus"] = "urls"
    """Where the pictures are: on the web (`urls`, for `pairmill build`), or in the input (`corpus`, for
    `pairmill embed`). A corpus may also consist of captions only."""
    image_column: str | None = None
    """Column of pictures in Parquet, for `pairmill embed`: bytes, or structs with `bytes`. None: guessed (image, jpg,
    ...)."""
    caption_from_name: bool = False
    """In a folder of pictures, use the file name as the caption if no .txt or .json file has one."""
    limit_rows: Annotated[int, Field(ge=1)] | None = None
    """Plan only this many input rows. Raising or removing the limit later extends the plan."""

    @property
    def is_corpus(self) -> bool:
        """Whether the input is a corpus, so nothing is downloaded."""
        return self.kind == "corpus"

    @model_validator(mode="before")
    @classmethod
    def _kind_was_once_a_flag(cls, values: Any) -> Any:
        """Outputs from before 0.2 say `held: true` for a corpus."""
        if isinstance(values, dict) and "held" in values:
            held, values = values["held"], {name: value for name, value in values.items() if name != "held"}
            values.setdefault("kind", "corpus" if held else "urls")
        return values


class FetchConfig(_Settings):
    """How URLs are downloaded."""

    engine: Literal["aiohttp", "img2dataset"] = "aiohttp"
    """Which downloader to use. `aiohttp`: pairmill's own, named after the library that it first used. `img2dataset`:
    its downloader and resizer, for comparison. It has no per-host limits, reports less about each download, and ignores
    orientation and color profiles."""
    timeout_s: Annotated[float, Field(gt=0, le=3600)] = 30.0
    """Total time for one URL, including redirects and retries."""
    connect_timeout_s: Annotated[float, Field(gt=0, le=3600)] = 10.0
    """Time to connect to a host."""
    max_bytes: Annotated[int, Field(ge=1_000)] = 20_000_000
    """Larger response bodies are refused while they are read."""
    retries: Annotated[int, Field(ge=0, le=20)] = 1
    """Retries after a failure that may be temporary (DNS, connect, timeout, 429, 5xx)."""
    max_redirects: Annotated[int, Field(ge=0, le=20)] = 5
    """Redirects to follow per URL."""
    concurrency: Annotated[int, Field(ge=1, le=10_000)] = 1_000
    """Requests in flight per download actor."""
    per_host_concurrency: Annotated[int, Field(ge=1)] = 8
    """Requests in flight per host and download actor."""
    per_host_interval_s: Annotated[float, Field(ge=0, le=3600)] = 0.0
    """Minimum time between the starts of two requests to the same host, per download actor."""
    nameservers: list[str] = []
    """IP addresses (`1.1.1.1`, `1.1.1.1:5353`, `[::1]:53`) that resolve host names. Empty: the
    machine's resolver."""
    allow_networks: list[str] = []
    """CIDR blocks to allow even though they are not public, such as 127.0.0.0/8."""
    user_agent: str = "pairmill/0.1 (+https://pypi.org/project/pairmill)"
    """The User-Agent header. Say who you are and how to reach you."""
    respect_x_robots_tag: bool = True
    """Refuse pictures whose X-Robots-Tag says noai, noimageai, noindex or noimageindex."""
    respect_robots_txt: bool = False
    """Fetch each host's robots.txt (RFC 9309) and obey it."""

    @field_validator("allow_networks")
    @classmethod
    def _are_networks(cls, networks: list[str]) -> list[str]:
        for network in networks:
            ipaddress.ip_network(network)
        return networks

    @model_validator(mode="after")
    def _engine_can_do_it(self) -> "FetchConfig":
        if self.engine == "img2dataset":
            beyond = {
                "respect_robots_txt": self.respect_robots_txt,
                "per_host_interval_s": self.per_host_interval_s,
                "nameservers": self.nameservers,
            }
            if unsupported := [name for name, value in beyond.items() if value]:
                raise ValueError(f"engine img2dataset does not support {', '.join(unsupported)}")
        return self

    @field_validator("nameservers")
    @classmethod
    def _are_addresses(cls, servers: list[str]) -> list[str]:
        for server in servers:
            match = _NAMESERVER.fullmatch(server)
            ipaddress.ip_address((match["v6"] or match["v4"]) if match else server)
        return servers

    @field_validator("user_agent")
    @classmethod
    def _is_header_value(cls, value: str) -> str:
        if not value.isprintable() or not value.isascii() or not value.strip():
            raise ValueError("user_agent must be printable ASCII on one line")
        return value


class ImagesConfig(_Settings):
    """What happens to a picture between download and storage. Sizes and modes mean the same as in img2dataset."""

    size: Annotated[int, Field(ge=1, le=16_384)] = 512
    """Target side in pixels, interpreted by `resize_mode`."""
    resize_mode: Literal["no", "border", "keep_ratio", "keep_ratio_largest", "center_crop"] = "keep_ratio_largest"
    """How `size` is applied. `keep_ratio_largest` bounds the longer side, `keep_ratio` the shorter one; `center_crop`
    and `border` give squares, cut or padded with white; `no` keeps the size."""
    resize_only_if_bigger: bool = True
    """Leave pictures no larger than `size` as they are."""
    format: Literal["jpg", "png", "webp"] = "jpg"
    """Format of the stored pictures."""
    quality: Annotated[int, Field(ge=1, le=100)] = 95
    """JPEG and WebP quality. PNG ignores it: it is lossless."""
    skip_reencode: bool = False
    """Keep the original compressed pixels, without metadata, if size, format, orientation and colors do not change."""
    store: Literal["pairs", "kept", "none"] = "pairs"
    """Which pictures to store: those of all `pairs`, only those of `kept` pairs, or `none`. With `pairs`, thresholds
    can change later without downloading again."""
    carry: list[str] | Literal["all"] = []
    """Input columns to carry into the tars' `.json` (license, artist, ...), or `all`; also for exports of the dataset.
    Bytes become base64, times ISO 8601, decimals text."""
    max_pixels: Annotated[int, Field(ge=1, le=178_956_970)] = 100_000_000
    """Pictures whose header announces more pixels are refused before any memory is allocated. Eight bytes for each of
    these pixels (at least 256 MiB) are the memory that decoding may take, in all threads together."""


class ModelConfig(_Settings):
    """One CLIP-like model. `tiny` is the built-in one; any other name is open_clip's, `hf-hub:ORG/REPO`, or a folder
    with open_clip_config.json and weights."""

    name: Uri
    """`tiny`, a model that open_clip knows, `hf-hub:ORG/REPO`, or a folder with open_clip_config.json and weights."""
    pretrained: Uri | None = None
    """open_clip's tag of the weights, or a local file. None for `tiny`, `hf-hub:` names and folders."""
    alias: str = ""
    """Suffix of this model's columns. Empty: derived from the name."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision that the model computes in. auto: bfloat16 on a GPU, float32 on a CPU. Similarities are always
    float32."""
    weights_sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    """Expected SHA-256 of the weights file; the job stops if it differs."""

    @model_validator(mode="before")
    @classmethod
    def _default_alias(cls, values: Any) -> Any:
        if isinstance(values, dict) and isinstance(values.get("name"), str) and not values.get("alias"):
            alias = re.sub(r"[^a-z0-9]+", "_", values["name"].lower()).strip("_")
            values = {**values, "alias": (alias if alias[:1].isalpha() else f"m_{alias}")[:40]}
        return values

    @field_validator("alias")
    @classmethod
    def _is_column_suffix(cls, alias: str) -> str:
        if not _ALIAS.fullmatch(alias):
            raise ValueError("an alias is a lower-case letter, then lower-case letters, digits or _ (40 at most)")
        if alias in RESERVED_ALIASES:
            raise ValueError(f"other column names end in {alias!r}; use another alias, such as m_{alias}")
        return alias


RESERVED_ALIASES = frozenset(name.rpartition("_")[2] for name in OWN_COLUMNS if "_" in name)
"""Suffixes of pairmill's own columns: `SELECT COLUMNS('.*_id$')` must not match a model's columns."""

Cosine = Annotated[float, Field(ge=-1, le=1)]


class RulesConfig(_Settings):
    """Which rows to keep. A rule whose setting is None, empty or False is off."""

    preset: Literal["none", "datacomp-basic", "laion2b"] = "none"
    """Named set of rules; the settings below override it."""

    require_caption: bool = True
    """Drop null and empty captions. Has no effect if the source has no caption column."""
    caption_min_chars: Annotated[int, Field(ge=0)] | None = None
    """Drop shorter captions, counted in Unicode characters."""
    caption_max_chars: Annotated[int, Field(ge=1)] | None = None
    """Drop longer captions, counted in Unicode characters."""
    caption_min_words: Annotated[int, Field(ge=0)] | None = None
    """Drop captions of fewer words, separated by spaces."""
    caption_max_words: Annotated[int, Field(ge=1)] | None = None
    """Drop captions of more words, separated by spaces."""
    caption_drop_file_names: bool = False
    """Drop captions that are only a file name, such as IMG_1234.JPG."""
    caption_drop_dates: bool = False
    """Drop captions that are only a date, a time or a year."""
    caption_drop_hashes: bool = False
    """Drop captions that are only a hash, a UUID or base64."""
    caption_drop_urls: bool = False
    """Drop captions that are only a URL or a host name."""
    caption_boilerplate: list[str] = []
    """Drop captions that equal one of these, ignoring case and outer punctuation. `default`: a built-in list."""
    caption_blocked_terms: list[str] = []
    """Drop captions that contain one of these as whole words, ignoring case."""
    caption_languages: list[str] = []
    """ISO 639-1 codes. Drop captions in other languages."""
    caption_min_language_score: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Minimum confidence in the detected language, for `caption_languages`."""
    license_allow: list[str] = []
    """Drop rows whose `source.license_column` is not one of these, ignoring case."""

    url_schemes: list[str] = ["http", "https"]
    """Schemes to accept: http, https or both. Nothing else is ever fetched."""
    url_block_hosts: list[str] = []
    """Hosts not to fetch from, including their subdomains."""
    url_allow_hosts: list[str] = []
    """If set, fetch only from these hosts and their subdomains."""
    url_blocklist: Uri | None = None
    """Text file of URLs not to fetch, or of their SHA-256 in hex, one per line."""

    image_min_side: Annotated[int, Field(ge=1)] | None = None
    """Minimum shorter side of the original picture, in pixels."""
    image_max_aspect: Annotated[float, Field(ge=1)] | None = None
    """Maximum ratio of the longer to the shorter side of the original picture."""
    image_min_area: Annotated[int, Field(ge=1)] | None = None
    """Minimum area of the original picture, in pixels."""
    image_max_area: Annotated[int, Field(ge=1)] | None = None
    """Maximum area of the original picture, in pixels."""
    image_min_bytes: Annotated[int, Field(ge=1)] | None = None
    """Minimum size of the original file, in bytes."""
    image_max_bytes: Annotated[int, Field(ge=1)] | None = None
    """Maximum size of the original file, in bytes."""
    image_drop_one_color: bool = False
    """Drop pictures of a single color."""
    md5_blocklist: Uri | None = None
    """Text file of MD5 digests of original files to drop, in hex, one per line."""
    sha256_blocklist: Uri | None = None
    """Text file of SHA-256 digests of original files to drop, in hex, one per line."""

    min_similarity: Cosine | dict[str, Cosine] | None = None
    """Minimum cosine similarity of picture and caption: one number for every model, or one per alias."""
    custom: list[str] = []
    """Your own rules as `module:function`, shipped to the workers."""

    @field_validator("url_schemes")
    @classmethod
    def _only_http(cls, schemes: list[str]) -> list[str]:
        if not set(schemes) <= {"http", "https"} or not schemes:
            raise ValueError("url_schemes is a subset of http and https")
        return schemes

    @field_validator("custom")
    @classmethod
    def _are_functions(cls, names: list[str]) -> list[str]:
        for name in names:
            if not _CUSTOM_RULE.fullmatch(name):
                raise ValueError(f"a custom rule is named module:function, not {name!r}")
        return names


class RunConfig(_Settings):
    """How to distribute the work. Nothing here changes the output."""

    address: str | None = None
    """Ray cluster to join (`auto` or ray://...). None: a local Ray for this run."""
    download_actors: Annotated[int, Field(ge=1)] | None = None
    """Number of download actors. None: one for every two of Ray's CPUs."""
    decode_threads: Annotated[int, Field(ge=1)] = 2
    """Decoding threads per download actor."""
    encode_actors: Annotated[int, Field(ge=1)] | None = None
    """Number of encode actors. None: one for each of Ray's GPUs, or one on the CPU."""
    max_download_actors: Annotated[int, Field(ge=1)] | None = None
    """Maximum number of download actors on an autoscaling cluster: more start while shards wait, and idle ones stop.
    None: the pool does not grow."""
    max_encode_actors: Annotated[int, Field(ge=1)] | None = None
    """Maximum number of encode actors on an autoscaling cluster. None: the pool does not grow."""
    gpus_per_encoder: Annotated[float, Field(gt=0)] = 1.0
    """GPUs per encode actor: with 0.5, two actors share each GPU and its memory."""
    encode_threads: Annotated[int, Field(ge=1)] | None = None
    """Threads per encode actor on the CPU. None: all cores of its machine."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the models run. auto: on a GPU if Ray has one."""
    batch_size: Annotated[int, Field(ge=1)] | None = None
    """Pictures or captions per forward pass. None: 32 on a CPU, 256 on a GPU. Halved if GPU memory runs out."""
    shards_in_flight: Annotated[int, Field(ge=1)] | None = None
    """Maximum number of shards between read and commit; the object store keeps their pictures. None: eight per download
    actor, plus four."""
    max_failed_shards_in_a_row: Annotated[int, Field(ge=1)] = 20
    """Stop after this many failed shards in a row."""

    @field_validator("gpus_per_encoder")
    @classmethod
    def _is_a_fraction_or_whole(cls, gpus: float) -> float:
        if gpus > 1 and gpus != int(gpus):
            raise ValueError("gpus_per_encoder is a fraction of one GPU, or a whole number of GPUs")
        return gpus


class BuildJob(_Settings):
    """`pairmill build`: URLs and captions in, scored Parquet shards out."""

    config_version: Literal[1] = CONFIG_VERSION
    """Version of the job file's format."""
    source: SourceConfig
    output: Uri
    """Folder or `s3://bucket/...` to write the dataset to."""
    shard_rows: Annotated[int, Field(ge=1, le=1_000_000)] = 4096
    """Rows per shard, the unit of work, commits and retries. `pairmill embed`: 1,024."""
    fetch: FetchConfig = FetchConfig()
    images: ImagesConfig = ImagesConfig()
    models: list[ModelConfig] = []
    """Models that score and embed the pairs, in one pass. Empty: pairs get no scores."""
    rules: RulesConfig = RulesConfig()
    s3: S3Config = S3Config()
    run: RunConfig = RunConfig()

    @model_validator(mode="before")
    @classmethod
    def _a_corpus_needs_no_caption(cls, values: Any) -> Any:
        if isinstance(values, dict) and _is_corpus(values.get("source")):
            rules = values.get("rules") or {}
            if isinstance(rules, dict) and "require_caption" not in rules:
                values = {**values, "rules": {**rules, "require_caption": False}}
            values = {"shard_rows": 1_024, **values}  # original pictures are larger than stored ones
        return values

    def _refuse_settings_without_effect_on_a_corpus(self) -> None:
        """Refuse settings that would otherwise be silently ignored."""
        rules = self.rules
        if rules.url_block_hosts or rules.url_allow_hosts or rules.url_blocklist:
            raise ValueError("rules.url_*: a corpus is not downloaded; use pairmill select to filter by url")
        if rules.image_drop_one_color:
            raise ValueError(
                "rules.image_drop_one_color: a corpus is filtered by pairmill select; use its column one_color"
            )
        if self.source.sha256_column:
            raise ValueError("source.sha256_column: has no effect on a corpus; see the output column sha256")

    @model_validator(mode="after")
    def _fits_together(self) -> "BuildJob":
        aliases = [model.alias for model in self.models]
        if self.source.is_corpus and not self.models:
            raise ValueError("models: embed needs at least one model")
        if self.source.is_corpus:
            self._refuse_settings_without_effect_on_a_corpus()
        if len(set(aliases)) != len(aliases):
            raise ValueError(f"two models share an alias: {aliases}; give each its own")
        thresholds = self.rules.min_similarity
        if thresholds is not None and not aliases:
            raise ValueError("rules.min_similarity needs a model: add one under models")
        if isinstance(thresholds, dict) and (unknown := sorted(set(thresholds) - set(aliases))):
            raise ValueError(f"rules.min_similarity names {unknown}, but the models' aliases are {aliases}")
        return self


def _is_corpus(source: object) -> bool:
    """Whether the source is a corpus, even before validation. Outputs from before 0.2 say `held`."""
    return isinstance(source, dict) and (source.get("kind") == "corpus" or bool(source.get("held")))


UNFINGERPRINTED = {
    "output",
    "run",
    "s3",
    "source.paths",
    "source.limit_rows",
    "fetch.timeout_s",
    "fetch.connect_timeout_s",
    "fetch.retries",
    "fetch.concurrency",
    "fetch.per_host_concurrency",
    "fetch.per_host_interval_s",
    "fetch.nameservers",
    "fetch.user_agent",
    "rules.url_blocklist",
    "rules.md5_blocklist",
    "rules.sha256_blocklist",
}
"""Settings that may change between two runs into the same output folder. The plan protects the input itself.
Blocklists may move, but their content may not change."""


def fingerprint_fields(job: BuildJob, with_defaults: bool = True) -> dict[str, object]:
    """The settings that affect the output, as dotted name -> JSON value."""

    def flatten(value: object, name: str) -> dict[str, object]:
        if name in UNFINGERPRINTED:
            return {}
        if isinstance(value, dict) and value:
            parts = [flatten(inner, f"{name}.{key}" if name else key) for key, inner in value.items()]
            return {key: inner for part in parts for key, inner in part.items()}
        return {name: value}

    fields = flatten(job.model_dump(mode="json", exclude_defaults=not with_defaults), "")
    if fields.pop("source.kind", None) == "corpus":
        fields["source.held"] = True  # as before 0.2, so that older outputs can still resume
    return fields
