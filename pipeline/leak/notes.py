"""Says what a step `leak` did not compare."""

from pairmill.pipeline.common.text import counted
from pairmill.schemas.leak import LeakReport


def leak_notes(report: LeakReport) -> list[str]:
    """Lines for people who take the numbers of a report for the whole overlap."""
    notes = [
        f"{counted(rows, 'row')} not compared by {kind}: the value is missing or unusable"
        for kind, rows in report.not_compared.items()
    ]
    if report.plain_items:
        notes.append(f"{counted(report.plain_items, 'picture')} too plain to be compared by hashes")
    if report.rejected_items:
        notes.append(
            f"{counted(report.rejected_items, 'picture')} rejected in the evaluation set: compared only by sha256"
        )
    if report.missing_items:
        notes.append(f"{counted(report.missing_items, 'rejected picture')} of the evaluation set not compared")
    if not report.hashes.keys().isdisjoint(("phash", "pdq")) and "embedding" not in report.hashes:
        notes.append("evaluation pictures that are crops of the dataset's pictures: only `by: embedding` can find them")
    return notes
