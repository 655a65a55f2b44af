"""The funnel: how many rows were lost at each step, and why."""

from pairmill.schemas.status import Status


def funnel(rows_in: int, statuses: dict[str, int]) -> str:
    """How many rows were lost at each step and why, as a table of plain text."""
    lines = [f"{'rows in':<34}{rows_in:>12,}"]
    left = rows_in
    for status in Status:
        count = statuses.get(status, 0)
        if not count or status is Status.OK:
            continue
        left -= count
        lines.append(f"  {status.step:<8} {status:<23}{-count:>12,}{left:>12,}")
    lines.append(f"{'kept':<34}{statuses.get(Status.OK, 0):>12,}  {statuses.get(Status.OK, 0) / max(rows_in, 1):.1%}")
    return "\n".join(lines)
