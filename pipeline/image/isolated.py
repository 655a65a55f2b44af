"""Decodes pictures in a child process, for shards that killed their worker: only the row of the fatal picture is
lost."""

from collections.abc import Sequence

from pairmill.pipeline.common.child import Child, ChildDied
from pairmill.pipeline.image.processor import ImageProcessor, ProcessedImage
from pairmill.schemas.job.images import ImagesConfig
from pairmill.schemas.job.pictures import Measure
from pairmill.schemas.status import Status

DECODE_TIMEOUT_S = 120.0
"""No picture within `images.max_pixels` takes this long; a decoder that takes longer counts as hung."""

_processor: ImageProcessor | None = None


class IsolatedProcessor:
    """Like ImageProcessor, but several times slower: one picture at a time, in a process that may die."""

    def __init__(
        self, config: ImagesConfig, measures: Sequence[Measure] = (), timeout_s: float = DECODE_TIMEOUT_S
    ) -> None:
        """`measures`: what `process` measures in each picture."""
        self._child = Child(_start, config, measures)
        self._timeout_s = timeout_s

    def process(self, body: bytes) -> ProcessedImage:
        """Like ImageProcessor.process, with `decoder_crashed` if the child died or hung on the picture."""
        try:
            picture: ProcessedImage = self._child.call(_process, body, timeout_s=self._timeout_s)
        except ChildDied as died:
            return ProcessedImage(Status.DECODER_CRASHED, f"decoding: {died}")
        return picture

    def close(self) -> None:
        """Stop the child."""
        self._child.close()


def _start(config: ImagesConfig, measures: Sequence[Measure]) -> None:
    global _processor
    _processor = ImageProcessor(config, measures)


def _process(body: bytes) -> ProcessedImage:
    assert _processor is not None
    return _processor.process(body)
