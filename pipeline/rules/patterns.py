"""Defines the rules for captions that name or number a picture instead of describing it.

Each pattern matches the whole caption, so "photo of IMG_1234.JPG on a wall" is kept. All patterns run in RE2,
whose time is linear in the caption's length. A null caption matches none of them and is kept.
"""

import functools
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from pairmill.pipeline.rules.base import Column, SourceRules, Verdict, rule
from pairmill.schemas.status import Status

_EXTENSION = r"\.(?:jpe?g|jpe|jfif|png|gif|webp|avif|bmp|tiff?|svg|heic|heif|ico|psd|raw|cr2|nef|arw|dng|pdf|mp4|mov)"

_CAMERA = (
    r"_?(?:img|imag|image|dsc|dscn|dscf|dcp|dcim|pict|picture|pic|pxl|mvi|gopr|imgp|cimg|hpim|scan|photo|foto|bild|"
    r"imagen|imagem|immagine|file|unnamed|untitled|unbenannt|download|thumb|thumbnail|slide|page|fb[ _-]img|received)"
)
# These can also be words or names ("MG 1100", "GP 2019"), so three digits must follow without a space.
_CAMERA_OR_WORD = r"(?:_mg|sam|sdc|kif|dji|gp|wp|cam|vid|snapchat|signal)[_-]?\d\d"

_FILE_NAMES = (
    # Up to 255 characters, the longest name that common file systems allow, optionally followed by a browser's "(1)".
    rf"^.{{0,250}}[^\s.]{_EXTENSION}(?: ?\(\d+\))?$",
    # IMG_1234, DSC00012, PXL_20210101_123456789, IMG-20200101-WA0001, image-3-1024x768, untitled-1 copy
    rf"^(?:{_CAMERA}[ _.-]?\(?|{_CAMERA_OR_WORD})\d[\d _.()x-]*"
    r"(?:wa\d+|scaled|edit(?:ed)?|copy|kopie|cover|burst|hdr|large|small|~\d+)?$",
    # Nothing but numbers: 20200101_123456, 100_1234, P1010001
    r"^(?:(?:19|20)\d{6}[_-]\d{4,9}|\d{3}_\d{4}|p[\da-c]\d{6})$",
    r"^(?:screen ?shots?|screen[ _-]shot|bildschirmfoto|captura de pantalla|capture d'?.cran|whatsapp (?:image|video))"
    r"[ _-]?[\d(][\d .,:_()-]*(?:(?:at|um|à|a las) [\d .:_-]*(?:[ap]\.?m\.?)?[\d .()-]*)?(?:[_-][\w.]+)?$",
)

_MONTH = (
    r"(?:jan(?:uary|uar|vier|eiro)?|enero|gennaio|feb(?:ruary|ruar|rero|braio)?|fév(?:rier)?|fevereiro|mar(?:ch|s|zo|ço)?|"
    r"märz|apr(?:il|ile)?|avril|abril|may|mai|mayo|maggio|maio|mei|june?|juni|juin|junio|giugno|junho|jul(?:y|i|io)?|"
    r"juillet|luglio|julho|aug(?:ust|ustus)?|août|agosto|sept?(?:ember|embre|tembre)?|septiembre|settembre|setembro|"
    r"o[ck]t(?:ober|obre|ubre)?|ottobre|outubro|nov(?:ember|embre|iembre|embro)?|de[cz](?:ember|embre|embro)?|"
    r"décembre|diciembre|dicembre)\.?"
)
_DAY = r"(?:0?[1-9]|[12]\d|3[01])"
_YEAR = r"(?:1[5-9]|20)\d\d"
_TIME = (
    r"(?:[ ,t]*(?:at|um|à)? ?(?:[01]?\d|2[0-3])[:h.][0-5]\d(?:[:.][0-5]\d(?:\.\d+)?)?(?: ?[ap]\.?m\.?)?"
    r"(?: ?(?:z|utc|gmt|[+-]\d\d:?\d\d))?)"
)
_WEEKDAY = r"(?:(?:mon|tues?|wed(?:nes)?|thu(?:rs)?|fri|sat(?:ur)?|sun)(?:day)?\.?,? )?"
_DATES = (
    rf"^{_WEEKDAY}(?:1[5-9]|20)\d\d[-/. ](?:0?[1-9]|1[0-2])[-/. ]{_DAY}{_TIME}?$",
    rf"^{_WEEKDAY}(?:{_DAY}[-/. ]{{1,2}}){{2}}(?:{_YEAR}|\d\d){_TIME}?$",
    rf"^{_WEEKDAY}(?:{_DAY}(?:st|nd|rd|th|º|er|\.)?[ -](?:of |de |di )?)?{_MONTH}[ -](?:de |of )?{_YEAR}{_TIME}?$",
    rf"^{_WEEKDAY}{_DAY}(?:st|nd|rd|th|º|er|\.)?[ -](?:of |de |di )?{_MONTH}(?:,? ?'?\d\d)?{_TIME}?$",
    rf"^{_WEEKDAY}{_MONTH}[ -]{_DAY}(?:st|nd|rd|th)?(?:,? {_YEAR})?,?{_TIME}?$",
    rf"^{_YEAR}(?: ?[-–/] ?{_YEAR})?$",
    r"^(?:[01]?\d|2[0-3])[:h][0-5]\d(?::[0-5]\d)?(?: ?[ap]\.?m\.?)?$",
    r"^\d{4} ?[年년] ?(?:\d{1,2} ?[月월] ?(?:\d{1,2} ?[日일])?)?$",
)

_HASHES = (
    r"^(?:(?:md5|sha-?1|sha-?256|0x)[:= ]?)?[0-9a-f]{16,}$",
    r"^[{(]?[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}[)}]?$",
)
_TOKEN = r"^[A-Za-z0-9+/_-]{20,}={0,2}$"
# Text with one number in it ("Spring-2020-Collection") is not a token: tokens have two numbers between letters, or
# padding.
_TOKEN_MARKS = (r"[A-Z]", r"[a-z]", r"(?:[A-Za-z]\d+[A-Za-z].*[A-Za-z]\d+[A-Za-z]|[A-Za-z0-9]=$)")

_URLS = (
    r"^(?:https?|ftp|file|s3|gs):/?/?[^ ]+$",
    r"^(?:data|mailto|javascript|blob):[^ ]+$",
    r"^www\d?\.[^ ]+\.[^ ]+$",
    r"^//[^ /]+\.[^ /]+/[^ ]*$",
    # A bare host name under a common top-level domain, with or without a path: example.com, img.example.co.uk/a/b.
    r"^(?:[\pL\pN](?:[\pL\pN-]*[\pL\pN])?\.)+"
    r"(?:com|net|org|info|biz|edu|gov|io|co|me|tv|us|uk|ca|au|de|fr|es|it|nl|be|ch|at|pl|cz|ru|ua|jp|cn|kr|in|br|mx|eu)"
    r"(?::\d+)?(?:[/?#][^ ]*)?$",
)


@rule(Status.CAPTION_IS_FILE_NAME)
def caption_is_file_name(rows: pa.Table, rules: SourceRules) -> Verdict:
    """The name of a picture file, or a name given by a camera or a screenshot tool."""
    return _unless_any(rows, _FILE_NAMES) if rules.caption_drop_file_names else None


@rule(Status.CAPTION_IS_DATE)
def caption_is_date(rows: pa.Table, rules: SourceRules) -> Verdict:
    """Nothing but a date, a time or a year. Month names are recognized in six languages."""
    return _unless_any(rows, _DATES) if rules.caption_drop_dates else None


@rule(Status.CAPTION_IS_HASH)
def caption_is_hash(rows: pa.Table, rules: SourceRules) -> Verdict:
    """16 or more hex digits, a UUID, or 20 or more characters that look like base64."""
    if not rules.caption_drop_hashes:
        return None
    captions = rows["caption_clean"]
    is_token = pc.match_substring_regex(captions, _TOKEN)
    for mark in _TOKEN_MARKS:
        is_token = pc.and_(is_token, pc.match_substring_regex(captions, mark))
    return pc.and_not(_unless_any(rows, _HASHES), is_token.fill_null(False))


@rule(Status.CAPTION_IS_URL)
def caption_is_url(rows: pa.Table, rules: SourceRules) -> Verdict:
    """A URL, a data URI, or a bare host name with or without a path."""
    return _unless_any(rows, _URLS) if rules.caption_drop_urls else None


@rule(Status.CAPTION_IS_BOILERPLATE)
def caption_is_boilerplate(rows: pa.Table, rules: SourceRules) -> Verdict:
    """Equal to an entry of `caption_boilerplate`, ignoring case and outer punctuation."""
    if not rules.caption_boilerplate:
        return None
    listed = pc.is_in(bare(rows["caption_clean"]), boilerplate(tuple(rules.caption_boilerplate)))
    return pc.invert(listed)


@functools.lru_cache(maxsize=8)
def boilerplate(entries: tuple[str, ...]) -> pa.Array:
    """The captions to drop, in the form of `bare`. The entry `default` stands for those in `boilerplate.txt`."""
    given = [entry for entry in entries if entry != "default"]
    if len(given) < len(entries):
        built_in = Path(__file__).with_name("boilerplate.txt").read_text("utf-8").splitlines()
        given.extend(line for line in built_in if line and not line.startswith("#"))
    return bare(pa.array(given, pa.string()))


def bare(captions: Column) -> Column:
    """The captions in lower case, without punctuation, symbols and spaces at the ends."""
    return pc.utf8_lower(pc.replace_substring_regex(captions, r"^[\pP\pS ]+|[\pP\pS ]+$", ""))


def _unless_any(rows: pa.Table, patterns: tuple[str, ...]) -> Column:
    """True if the caption is null or matches none of the patterns, ignoring case."""
    matches = pc.match_substring_regex(rows["caption_clean"], "|".join(patterns), ignore_case=True)
    return pc.invert(matches.fill_null(False))
