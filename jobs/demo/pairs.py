"""The rows of the demo: drawn scenes, right and wrong captions, and everything a web does wrong, with known truth.

    web = Web(port=8080, dead_port=8081, hosts=("127.0.0.1",))
    rows = demo_pairs(seed=2026, pairs=2400, web=web)
    comparison = compare(rows, outcomes)                 # outcomes: kind, expected, status of each row afterwards

Rows are a pure function of these three, so the server (`web.py`) makes the same ones and stores no picture.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from random import Random

from pairmill.pipeline.encode.tiny.draw import Scene, caption, random_scene, swapped_order, wrong_color, wrong_shape
from pairmill.schemas.status import Status

SHARD_ROWS = 300
"""The demo's shards: duplicates count within one, so the rows know how they will be cut."""

CAPTION_MAX_CHARS = 160
MIN_SIDE = 64

SIZES = ((256, 256), (288, 224), (224, 304), (320, 240), (256, 256), (272, 256), (240, 320), (320, 320))
LARGE_SIZES = ((512, 384), (640, 480))
"""Of one picture in twenty: they are resized for storage, and take five times longer to draw."""

_SCORED = (Status.OK, Status.LOW_SIMILARITY)


@dataclass(frozen=True, slots=True)
class Web:
    """Where the demo's pictures are: `hosts` answer on `port`; nothing ever listens on `dead_port` of the first."""

    port: int
    dead_port: int
    hosts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of row. `expected`: the statuses that are right; `truth`: should it be kept (None: not judged)."""

    name: str
    per_mille: int
    expected: tuple[Status, ...]
    truth: bool | None
    about: str

    @property
    def is_scored(self) -> bool:
        """Whether the model decides: then precision and recall judge it, not its status."""
        return self.expected == _SCORED


KINDS = (
    Kind("right_caption", 0, _SCORED, True, "a JPEG and the caption that fits"),  # 0: all rows that are left
    Kind("png", 20, _SCORED, True, "a PNG, right caption"),
    Kind("webp", 20, _SCORED, True, "a WebP, right caption"),
    Kind("gif", 10, _SCORED, True, "a GIF, right caption"),
    Kind("cmyk", 10, _SCORED, True, "a CMYK JPEG, right caption"),
    Kind("exif_turned", 20, _SCORED, True, "stored sideways with an EXIF turn, right caption"),
    Kind("redirect", 25, _SCORED, True, "302 to another host, right caption"),
    Kind("flaky", 10, _SCORED, True, "503 at the first try, right caption"),
    Kind("wrong_caption", 100, _SCORED, False, "the caption of another scene"),
    Kind("wrong_color", 85, _SCORED, False, "near miss: one color is wrong"),
    Kind("wrong_shape", 70, _SCORED, False, "near miss: one shape is wrong"),
    Kind("swapped_order", 45, _SCORED, None, "near miss: the two things trade places"),
    Kind("duplicate", 30, (Status.DUPLICATE_IN_SHARD,), False, "URL and caption of a row before it"),
    Kind("long_caption", 12, (Status.CAPTION_TOO_LONG,), False, f"more than {CAPTION_MAX_CHARS} characters"),
    Kind("no_caption", 12, (Status.CAPTION_MISSING,), False, "null, empty or blank"),
    Kind("data_url", 8, (Status.URL_SCHEME,), False, "a data: URL"),
    Kind("ftp_url", 5, (Status.URL_SCHEME,), False, "an ftp: URL"),
    Kind("no_such_host", 8, (Status.DNS_ERROR,), False, "a name that nobody has"),
    Kind("refused", 8, (Status.CONNECT_ERROR,), False, "a port that nobody listens on"),
    Kind("hangs", 6, (Status.TIMEOUT,), False, "a server that never answers"),
    Kind("not_found", 25, (Status.HTTP_4XX,), False, "404"),
    Kind("gone", 10, (Status.HTTP_4XX,), False, "410"),
    Kind("server_error", 10, (Status.HTTP_5XX,), False, "500, whenever it is asked"),
    Kind("opted_out", 20, (Status.OPTED_OUT,), False, "X-Robots-Tag: noai"),
    Kind("html", 20, (Status.NOT_AN_IMAGE,), False, "200, and a web page in place of the picture"),
    Kind("cut_short", 8, (Status.BODY_TRUNCATED,), False, "fewer bytes than Content-Length says"),
    Kind("corrupt", 12, (Status.IMAGE_CORRUPT,), False, "noise after a picture's first bytes"),
    Kind("half_a_file", 12, (Status.IMAGE_CORRUPT,), False, "the first half of a JPEG"),
    Kind("too_small", 15, (Status.IMAGE_TOO_SMALL,), False, f"shorter side below {MIN_SIDE} pixels"),
)
KIND = {kind.name: kind for kind in KINDS}


@dataclass(frozen=True, slots=True)
class DemoRow:
    """One row of the demo's list. `scene` is what its picture shows, whatever the caption says."""

    index: int
    kind: str
    url: str
    caption: str | None
    scene: Scene

    @property
    def expected(self) -> tuple[Status, ...]:
        """The statuses that are right for this row."""
        return KIND[self.kind].expected

    @property
    def truth(self) -> bool | None:
        """Whether it should be kept; None where that is not judged."""
        return KIND[self.kind].truth

    def rng(self, seed: int, purpose: str) -> Random:
        """The row's own generator. Text seeds: `tiny` was trained on other ones, so it never saw these pictures."""
        return Random(f"pairmill demo {seed} {self.index} {purpose}")


@dataclass
class KindOutcome:
    """What became of the rows of one kind."""

    kind: Kind
    rows: int = 0
    as_expected: int = 0
    kept: int = 0
    others: Counter[str] = field(default_factory=Counter)
    """Unexpected Status -> rows."""


@dataclass(frozen=True)
class Comparison:
    """Expected against actual, over all rows."""

    kinds: list[KindOutcome]
    rows_missing: int

    @property
    def mismatches(self) -> int:
        """Rows whose Status is not among the expected ones."""
        return sum(outcome.others.total() for outcome in self.kinds)

    @property
    def precision(self) -> float | None:
        """Share of the kept rows that should be; None where none was kept. `swapped_order` is left out."""
        kept = sum(outcome.kept for outcome in self.kinds if outcome.kind.truth is not None)
        return self._kept_rightly / kept if kept else None

    @property
    def recall(self) -> float | None:
        """Share of the rows that should be kept that were."""
        wanted = sum(outcome.rows for outcome in self.kinds if outcome.kind.truth)
        return self._kept_rightly / wanted if wanted else None

    @property
    def _kept_rightly(self) -> int:
        return sum(outcome.kept for outcome in self.kinds if outcome.kind.truth)


def demo_pairs(seed: int, pairs: int, web: Web) -> list[DemoRow]:
    """The rows in the order of the list, the kinds mixed at random."""
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
    """Hold what became of the rows (kind, expected, status) against the list that went in."""
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
    """Each kind by its share, at least once; the rest is right captions."""
    kinds = [kind.name for kind in KINDS for _ in range(max(1, round(pairs * kind.per_mille / 1000))) if kind.per_mille]
    kinds += [KINDS[0].name] * (pairs - len(kinds))
    rng.shuffle(kinds)
    return kinds


def _place_duplicates(kinds: list[str], shard: range, rng: Random) -> dict[int, int]:
    """Duplicate -> the right caption before it in the same shard that it repeats; trades two kinds where none is."""
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
    """The URL of a row: the picture's, or one that leads nowhere."""
    path = f"/pictures/{index:06d}.jpg"
    elsewhere = {
        "no_such_host": f"http://no-such-host-{index}.invalid{path}",  # RFC 2606: `.invalid` never exists
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
    """A scene without any of this one's things, so that its caption is wrong, not just incomplete."""
    looks = {(thing.color, thing.shape) for thing in scene.things}
    while True:
        other = random_scene(rng)
        if not looks & {(thing.color, thing.shape) for thing in other.things}:
            return other
