"""Dollars per GPU-hour: the owner's cost by hand, and the bands there are."""

import pytest

from deepseek_mini.cost.prices import OWNERS, Extras, Ownership, price_band, rental_prices
from deepseek_mini.cost.tables import read_table


def test_an_owners_bare_card() -> None:
    """$25,000 over 3 years is $0.951 an hour; 700 W at $0.08 is $0.056, cooling half of that: $1.035."""
    lines = Ownership().lines()
    assert lines["depreciation"] == pytest.approx(0.951, abs=5e-4)
    assert lines["power"] == pytest.approx(0.056)
    assert lines["cooling"] == pytest.approx(0.028)
    assert Ownership().per_hour == pytest.approx(1.035, abs=5e-4)
    assert Ownership().per_hour * 2.788e6 == pytest.approx(2.89e6, rel=2e-3)


def test_a_whole_system_at_real_use_costs_an_owner_about_two_dollars() -> None:
    """$1.42 to 1.69 always busy, $1.97 to 2.36 at 70%; with network and storage 2.1 to 2.9."""
    for purchase, low, high in ((33_750, 1.42, 1.97), (41_000, 1.69, 2.36)):
        assert Ownership(purchase, watts=1280).per_hour == pytest.approx(low, rel=0.02)
        assert Ownership(purchase, watts=1280, use=0.7).per_hour == pytest.approx(high, rel=0.05)
    assert 2.1 < OWNERS["8-GPU system with network, 70% busy"].per_hour < 2.9


def test_every_price_has_a_date_and_a_source() -> None:
    for row in read_table("prices"):
        assert row["date"]
        assert row["source"]
        assert float(row["low"]) <= float(row["typical"]) <= float(row["high"])


def test_the_newest_band_is_taken_unless_a_price_is_given() -> None:
    band = price_band("H800")
    assert (band.low, band.typical, band.high) == (1.70, 2.00, 3.42)
    assert [price.date for price in rental_prices("H100")] == sorted(
        price.date for price in rental_prices("H100")
    )
    given = price_band("H800", 3.0)
    assert (given.low, given.typical, given.high) == (3.0, 3.0, 3.0)


@pytest.mark.parametrize("price", [0.0, -2.0, float("nan"), float("inf")])
def test_a_price_must_be_positive(price: float) -> None:
    with pytest.raises(ValueError, match="--price"):
        price_band("H800", price)


def test_a_device_without_a_price_asks_for_one() -> None:
    with pytest.raises(ValueError, match="give --price"):
        price_band("L4")


@pytest.mark.parametrize("device", ["A100", "H100", "H800", "H200", "B200", "GB200", "GB300"])
def test_every_training_gpu_of_the_issue_has_a_rental_band(device: str) -> None:
    price = price_band(device)
    assert 1 < price.low < price.typical < price.high < 12


def test_a_band_in_words_names_the_median_that_dollars_are_drawn_around() -> None:
    """(1.70, 2.00, 3.42): half lies above 3.42 - sqrt(0.5 x 1.72 x 1.42) = 2.31."""
    assert "2.00 most likely, 2.31 in the median" in price_band("H800").text
    assert price_band("H800", 3.0).text == "$3.00 per GPU-hour: --price"


def test_extras_are_zero_unless_set_and_separate_lines() -> None:
    assert Extras().lines(1e6) == {"failed runs": 0.0, "research": 0.0, "staff": 0.0, "data": 0.0}
    lines = Extras(staff=5.0, data=7.0, failed_runs=0.1, research=2.0).lines(1e6)
    assert lines == {"failed runs": 1e5, "research": 2e6, "staff": 5.0, "data": 7.0}
    for amount in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="--staff"):
            Extras(staff=amount)
        with pytest.raises(ValueError, match="--research"):
            Extras(research=amount)


@pytest.mark.parametrize("owner", [{"use": 0.0}, {"use": 1.2}, {"years": 0.0}, {"purchase": -1.0}])
def test_an_owners_amounts_are_checked(owner: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="owner"):
        Ownership(**owner)
