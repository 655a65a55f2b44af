"""Defines the score that measures text in pictures."""

import pyarrow as pa

from pairmill.schemas.settings import Settings

BOX = pa.list_(pa.field("element", pa.float32(), nullable=False), 8)
"""The four corners of a box, clockwise: x, y, x, y, ..., as fractions of the picture's width and height."""


class MaskSettings(Settings):
    """The similarity without the text, as in T-MARS: text is painted over before the model sees the picture."""

    model: str | None = None
    """Alias of the model that compares the picture with its caption. None: the dataset's only model."""


class TextScore(Settings):
    """Text that is visible in a picture: captions, logos, watermarks, signs. Needs the extra `pairmill[text]`.
    Columns: NAME_share, the share of the area that is text; NAME_count, the number of text boxes; NAME_boxes, their
    corners."""

    mask: MaskSettings | None = None
    """Adds NAME_similarity, the similarity after the text in the picture is painted over. It is low for pairs that
    match only because the picture shows its caption as text."""

    def columns(self, name: str) -> pa.Schema:
        """The columns of a score with this name."""
        fields = [(f"{name}_share", pa.float32()), (f"{name}_count", pa.int32()), (f"{name}_boxes", pa.list_(BOX))]
        return pa.schema([*fields, *([] if self.mask is None else [(f"{name}_similarity", pa.float32())])])
