"""Generates the rows of the demo, with known ground truth: synthetic scenes, right and wrong captions, and everything
that can fail.

    web = Web(port=8080, dead_port=8081, hosts=("127.0.0.1",))
    rows = demo_pairs(seed=2026, pairs=2400, web=web)
    comparison = compare(rows, outcomes)                 # outcomes: kind, expected, status of each row afterwards

Rows are a pure function of these arguments, so the server (`web.py`) makes the same ones and stores no pictures.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from random import Random

from pairmill.pipeline.encode.tiny.draw import Scene, caption, random_scene, swapped_order, wrong_color, wrong_shape
from pairmill.schemas.status import Status

SHARD_ROWS = 300
"""Rows per shard. Duplicates are only found within a shard, so a row and its duplicate are placed in the same one."""

CAPTION_MAX_CHARS = 160
MIN_SIDE = 64

SIZES = ((256, 256), (288, 224), (224, 304), (320, 240), (256, 256), (272, 256), (240, 320), (320, 320))
LARGE_SIZES = ((512, 384), (640, 480))
"""One picture in twenty has such a size. It is resized for storage, and takes five times as long to draw."""

_SCORED_STATUSES = (Status.OK, Status.LOW_SIMILARITY)


@dataclass(frozen=True, slots=True)
class Web:
    """Where the demo's pictures are: `hosts` serve on `port`. Nothing listens on `dead_port` of the first host."""

    port: int
    dead_port: int
    hosts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of row. `expected`: the correct statuses. `truth`: whether to keep it (None: either is fine)."""

    name: str
    per_mille: int
    expected: tuple[Status, ...]
    truth: bool | None
    about: str

    @property
    def is_scored(self) -> bool:
        """Whether the outcome is up to the model; if so, rows are measured by precision and recall, not by status."""
        return self.expected == _SCORED_STATUSES


KINDS = (
    Kind("right_caption", 0, _SCORED_STATUSES, True, "a JPEG, right caption"),  # 0: all remaining rows
    Kind("png", 20, _SCORED_STATUSES, True, "a PNG, right caption"),
    Kind("webp", 20, _SCORED_STATUSES, True, "a WebP, right caption"),
    Kind("gif", 10, _SCORED_STATUSES, True, "a GIF, right caption"),
    Kind("cmyk", 10, _SCORED_STATUSES, True, "a CMYK JPEG, right caption"),
    Kind("exif_turned", 20, _SCORED_STATUSES, True, "stored sideways with an EXIF rotation, right caption"),
    Kind("redirect", 25, _SCORED_STATUSES, True, "302 to another host, right caption"),
    Kind("flaky", 10, _SCORED_STATUSES, True, "503 on the first try, right caption"),
    Kind("wrong_caption", 100, _SCORED_STATUSES, False, "the caption of another scene"),
    Kind("wrong_color", 85, _SCORED_STATUSES, False, "near miss: one color is wrong"),
    Kind("wrong_shape", 70, _SCORED_STATUSES, False, "near miss: one shape is wrong"),
    Kind("swapped_order", 45, _SCORED_STATUSES, None, "near miss: two objects are swapped"),
    Kind("duplicate", 30, (Status.DUPLICATE_IN_SHARD,), False, "URL and caption of a previous row"),
    Kind("long_caption", 12, (Status.CAPTION_TOO_LONG,), False, f"more than {CAPTION_MAX_CHARS} characters"),
    Kind("no_caption", 12, (Status.CAPTION_MISSING,), False, "null, empty or blank"),
    Kind("data_url", 8, (Status.URL_SCHEME,), False, "a data: URL"),
    Kind("ftp_url", 5, (Status.URL_SCHEME,), False, "an ftp: URL"),
    Kind("no_such_host", 8, (Status.DNS_ERROR,), False, "a host name that does not exist"),
    Kind("refused", 8, (Status.CONNECT_ERROR,), False, "a port that nothing listens on"),
    Kind("hangs", 6, (Status.TIMEOUT,), False, "a server that never responds"),
    Kind("not_found", 25, (Status.HTTP_4XX,), False, "404"),
    Kind("gone", 10, (Status.HTTP_4XX,), False, "410"),
    Kind("server_error", 10, (Status.HTTP_5XX,), False, "always 500"),
    Kind("opted_out", 20, (Status.OPTED_OUT,), False, "X-Robots-Tag: noai"),
    Kind("html", 20, (Status.NOT_AN_IMAGE,), False, "200, but a web page instead of a picture"),
    Kind("cut_short", 8, (Status.BODY_TRUNCATED,), False, "fewer bytes than its Content-Length"),
    Kind("corrupt", 12, (Status.IMAGE_CORRUPT,), False, "noise after a picture's first bytes"),
    Kind("half_a_file", 12, (Status.IMAGE_CORRUPT,), False, "the first half of a JPEG"),
    Kind("too_small", 15, (Status.IMAGE_TOO_SMALL,), False, f"shorter side below {MIN_SIDE} pixels"),
)
KIND = {kind.name: kind for kind in KINDS}


@dataclass(frozen=True, slots=True)
class DemoRow:
    """One row of the demo's list. `scene` is what the picture shows, which the caption may contradict."""

    index: int
    kind: str
    url: str
    caption: str | None
    scene: Scene

    @property
    def expected(self) -> tuple[Status, ...]:
        """The correct statuses of this row."""
        return KIND[self.kind].expected

    @property
    def truth(self) -> bool | None:
        """Whether it should be kept; None if either is fine."""
        return KIND[self.kind].truth

    def rng(self, seed: int, purpose: str) -> Random:
        """The row's random generator. `tiny` was trained with other seeds, so it never saw these pictures."""
        return Random(f"pairmill demo {seed} {self.index} {purpose}")


@dataclass
class KindOutcome:
    """The outcome of the rows of one kind."""

    kind: Kind
    rows: int = 0
    as_expected: int = 0
    kept: int = 0
    others: Counter[str] = field(default_factory=Counter)
    """Unexpected Status -> rows."""


@dataclass(frozen=True)
class Comparison:
    """Expected and actual outcomes of all rows, compared."""

    kinds: list[KindOutcome]
    rows_missing: int

    @property
    def mismatches(self) -> int:
        """Rows with an unexpected Status."""
        return sum(outcome.others.total() for outcome in self.kinds)

    @property
    def precision(self) -> float | None:
        """Share of the kept rows that should be kept; None if no row was kept. Excludes `swapped_order`."""
        kept = sum(outcome.kept for outcome in self.kinds if outcome.kind.truth is not None)
        return self._correctly_kept / kept if kept else None

    @property
    def recall(self) -> float | None:
        """Of the rows that should be kept, the share that was kept."""
        right = sum(outcome.rows for outcome in self.kinds if outcome.kind.truth)
        return self._correctly_kept / right if right else None

    @property
    def _correctly_kept(self) -> int:
        return sum(outcome.kept for outcome in self.kinds if outcome.kind.truth)


def demo_pairs(seed: int, pairs: int, web: Web) -> list[DemoRow]:
    """The rows in list order, with the kinds shuffled."""
    rng = Random(f"pairmill demo {seed}")
    kinds = _kinds(pairs, rng)
    originals: dict[int, int] = {}
    for first in range(0, pairs, SHARD_ROWS):
        originals |= _place_duplicates(kinds, range(first, min(first + SHARD_ROWS, pairs)), rng)
    rows: list[DemoRow] = []
    for index, kind in enumerate(kinds):
        if kind == "duplicate":
            rows.append(replace(rows[originals[index]], index=index, kind=kind))
        else:
            rows.append(_row(seed, index, kind, web))
    return rows


def compare(rows: Sequence[DemoRow], outcomes: Sequence[Mapping[str, str]]) -> Comparison:
    """Compare the outcomes of the rows (kind, expected, status) with the input list."""
    kinds = {kind.name: KindOutcome(kind) for kind in KINDS}
    for row in rows:
        kinds[row.kind].rows += 1
    for outcome in outcomes:
        kind = kinds[outcome["kind"]]
        kind.kept += outcome["status"] == "ok"
        if outcome["status"] in outcome["expected"].split(","):
            kind.as_expected += 1
        else:
            kind.others[outcome["status"]] += 1
    return Comparison(list(kinds.values()), len(rows) - len(outcomes))


def _kinds(pairs: int, rng: Random) -> list[str]:
    """The kind of each row, shuffled. Each kind has its share of rows, at least one; the rest have right captions."""
    kinds = [kind.name for kind in KINDS for _ in range(max(1, round(pairs * kind.per_mille / 1000))) if kind.per_mille]
    kinds += [KINDS[0].name] * (pairs - len(kinds))
    rng.shuffle(kinds)
    return kinds


def _place_duplicates(kinds: list[str], shard: range, rng: Random) -> dict[int, int]:
    """Duplicate -> the earlier row of the same shard that it repeats. May swap the kinds of two rows for this."""
    plain = [index for index in shard if kinds[index] == "right_caption"]
    rng.shuffle(plain)
    originals = {}
    for index in [index for index in shard if kinds[index] == "duplicate"]:
        if not plain:
            kinds[index] = "right_caption"
            continue
        other = plain.pop()
        original, duplicate = sorted((index, other))
        kinds[original], kinds[duplicate] = "right_caption", "duplicate"
        originals[duplicate] = original
    return originals


def _row(seed: int, index: int, kind: str, web: Web) -> DemoRow:
    rng = Random(f"pairmill demo {seed} {index}")
    scene = random_scene(rng)
    while kind == "swapped_order" and scene.second is None:
        scene = random_scene(rng)
    url = f"http://{rng.choice(web.hosts)}:{web.port}/pictures/{index:06d}.{_suffix(kind)}"
    return DemoRow(index, kind, _url(kind, url, index, web), _caption(kind, scene, index, rng), scene)


def _suffix(kind: str) -> str:
    return kind if kind in ("png", "webp", "gif") else "jpg"


def _url(kind: str, url: str, index: int, web: Web) -> str:
    """The URL of a row: the picture's, or one that cannot be fetched."""
    path = f"/pictures/{index:06d}.jpg"
    elsewhere = {
        "no_such_host": f"http://no-such-host-{index}.invalid{path}",  # RFC 2606: names in `.invalid` never exist
        "refused": f"http://{web.hosts[0]}:{web.dead_port}{path}",
        "ftp_url": f"ftp://{web.hosts[0]}{path}",
        "data_url": "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7",
    }
    return elsewhere.get(kind, url)


def _caption(kind: str, scene: Scene, index: int, rng: Random) -> str | None:
    """The caption of a row, which describes `scene` unless the kind says otherwise."""
    if kind == "no_caption":
        return (None, "", " \t ")[index % 3]
    if kind == "long_caption":
        return ", ".join(caption(scene, rng) for _ in range(6))
    described = {
        "wrong_caption": _another_scene,
        "wrong_color": wrong_color,
        "wrong_shape": wrong_shape,
        "swapped_order": swapped_order,
    }
    return caption(described[kind](scene, rng) if kind in described else scene, rng)


def _another_scene(scene: Scene, rng: Random) -> Scene:
    """A scene with none of the same objects, so that its caption is wrong, not just incomplete."""
    looks = {(thing.color, thing.shape) for thing in scene.things}
    while True:
        other = random_scene(rng)
        if not looks & {(thing.color, thing.shape) for thing in other.things}:
            return other
