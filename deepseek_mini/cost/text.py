"""Hours and dollars for readers."""


def hours_text(hours: float) -> str:
    """2,664,000 -> 2.664M."""
    for size, unit, digits in ((1e6, "M", 3), (1e3, "K", 1)):
        if abs(hours) >= size:
            return f"{hours / size:,.{digits}f}{unit}"
    return f"{hours:,.1f}"


def money_text(dollars: float) -> str:
    return f"${dollars / 1e6:,.3f}M" if dollars >= 1e6 else f"${dollars:,.0f}"
