"""Quantities as people read them."""


def duration(seconds: float) -> str:
    """`2 h 05 min`, `12 min`, `41 s`."""
    hours, minutes = divmod(round(seconds / 60), 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min" if seconds >= 120 else f"{seconds:.0f} s"
