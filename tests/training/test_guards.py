"""Spikes: what is told, and what is not."""

from deepseek_mini.training.guards import SpikeWatch


def figures(loss: float = 3.0, grad_norm: float = 0.5) -> dict[str, float]:
    return {"train/main_loss": loss, "optim/grad_norm": grad_norm}


def test_a_figure_far_above_its_median_is_told_with_both_numbers():
    watch = SpikeWatch()
    assert not any(watch.look(figures()) for _ in range(20))
    assert watch.look(figures(grad_norm=2.51)) == ["optim/grad_norm is 2.51, its median of 20 steps 0.5"]
    (message,) = watch.look(figures(loss=4.6))
    assert message.startswith("train/main_loss is 4.6")
    assert len(watch.look(figures(9.0, 9.0))) == 2


def test_noise_falling_losses_and_the_first_steps_are_no_spikes():
    watch = SpikeWatch()
    assert not any(watch.look(figures(grad_norm=x)) for x in (0.1, 9.0, 0.1, 9.0, 0.1, 9.0, 0.1))
    watch = SpikeWatch()
    assert not any(watch.look(figures(9.0 * 0.99**n, 0.5 + n % 3 * 0.5)) for n in range(300))


def test_a_level_that_lasts_becomes_the_usual_one():
    watch = SpikeWatch()
    told = [bool(watch.look(figures(grad_norm=0.5 if n < 40 else 5.0))) for n in range(100)]
    assert told[40]
    assert not any(told[60:])
