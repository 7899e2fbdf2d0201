"""Checks of settings. What fails is the user's to mend: a ValueError that names key and value."""

import math


def require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def require_at_least(section: str, settings: object, least: int, *keys: str) -> None:
    """Refuse values below `least`, infinite ones and NaN; null is no value."""
    for key in keys:
        value = getattr(settings, key)
        fits = value is None or least <= value < math.inf
        require(fits, f"{section}.{key}={value} must be at least {least}, and finite")


def require_positive(section: str, settings: object, *keys: str) -> None:
    """Refuse zero, what is below it, infinity and NaN."""
    for key in keys:
        value = getattr(settings, key)
        require(0 < value < math.inf, f"{section}.{key}={value} must be positive, and finite")
