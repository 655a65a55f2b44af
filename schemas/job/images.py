"""Defines the section `images`: what happens to a picture between download and storage."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from pairmill.schemas.settings import Settings


class ImagesConfig(Settings):
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
    """JPEG and WebP quality. PNG is lossless and ignores it."""
    chroma: Literal["source", "420"] = "source"
    """Chroma subsampling of JPEGs that are encoded again. `source`: that of the original, or none (4:4:4) if the
    original is in another format. `420`: chroma at half the resolution in both directions, as in img2dataset; files are
    about a quarter smaller."""
    reencode: Literal["auto", "always"] = "auto"
    """`auto`: a picture that needs no change of size, format, orientation or colors keeps its own compressed pixels,
    without metadata, after a check that all of them decode. `always`: every picture is encoded again."""
    store: Literal["pairs", "kept", "none"] = "pairs"
    """Which pictures to store: those of all `pairs`, only those of `kept` pairs, or `none`. With `pairs`, you can
    change thresholds later without downloading again."""
    carry: list[str] | Literal["all"] = []
    """Input columns to carry into the tars' `.json` (license, artist, ...), or `all`. Exports of the dataset carry the
    same columns by default. Bytes are written as base64, times as ISO 8601, and decimals as text."""
    md5: bool = False
    """Also compute the MD5 of the original bytes, to match lists from other tools. It takes longer than the SHA-256,
    which is always computed. `rules.md5_blocklist` and `rules.known` by md5 turn it on too."""
    max_pixels: Annotated[int, Field(ge=1, le=178_956_970)] = 100_000_000
    """Pictures whose header declares more pixels are refused before any memory is allocated. All decoding threads
    together may use 8 bytes of memory per pixel of this limit, or 256 MiB if that is more."""

    @model_validator(mode="before")
    @classmethod
    def _skip_reencode_is_gone(cls, values: Any) -> Any:
        if isinstance(values, dict) and "skip_reencode" in values:
            raise ValueError(
                "skip_reencode was removed: pictures that need no change now keep their compressed pixels by default; "
                "to encode every picture again, set reencode: always"
            )
        return values
