import pytest
import torch

from onebox.errors import BadInput
from onebox.schedules import cosine, one_cycle, slanted_triangular


def rates(schedule, num_steps: int, **options) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5, momentum=0.9)
    scheduler = schedule(optimizer, num_steps, **options)
    seen = []
    for _ in range(num_steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return seen


def test_cosine_rises_to_the_optimizers_rate_and_falls_to_the_final_one():
    seen = rates(cosine, 100, warmup=0.1, hold_steps=0, final_factor=0.1)
    assert max(seen) == pytest.approx(0.5)
    assert seen.index(max(seen)) == 10
    assert seen[0] < 0.1
    assert seen[-1] == pytest.approx(0.05, abs=1e-3)
    assert seen[55] == pytest.approx((0.5 + 0.05) / 2, rel=1e-6)  # half-way down


def test_cosine_without_warmup_starts_at_the_peak():
    assert rates(cosine, 10, warmup=0.0, hold_steps=0, final_factor=0.0)[0] == 0.5


def test_cosine_holds_the_peak_before_it_falls():
    seen = rates(cosine, 100, warmup=0.0, hold_steps=30, final_factor=0.0)
    assert seen[:31] == [0.5] * 31
    assert seen[31] < 0.5
    assert seen[65] == pytest.approx(0.25)
    assert rates(cosine, 30, warmup=0.0, hold_steps=30, final_factor=0.0) == [0.5] * 30


def test_one_cycle_starts_peaks_and_ends_where_it_is_told():
    seen = rates(one_cycle, 100, warmup=0.3, initial_factor=0.1, final_factor=0.001)
    assert seen[0] == pytest.approx(0.05)
    assert max(seen) == pytest.approx(0.5)
    assert seen[-1] == pytest.approx(0.0005)


def test_slanted_triangular_rises_and_falls_in_each_cycle():
    cycles = [{"length": 3, "factor": 1.0, "rise": 0.2}, {"length": 7, "factor": 0.1, "rise": 0.5}]
    seen = rates(slanted_triangular, 100, cycles=cycles, initial_factor=0.1)
    assert (seen[0], seen[6], seen[18]) == pytest.approx((0.05, 0.5, 0.275))  # begins, peaks, is half-way down
    assert max(seen[30:]) == seen[65] == pytest.approx(0.05)
    assert seen[30] == pytest.approx(0.005)
    assert seen[99] < 0.01


COSINE = {"warmup": 0.1, "hold_steps": 0, "final_factor": 0.1}
ONE_CYCLE = {"warmup": 0.1, "initial_factor": 0.1, "final_factor": 0.1}


@pytest.mark.parametrize(
    ("schedule", "options", "told"),
    [
        (cosine, COSINE | {"warmup": 1.5, "hold_steps": -1}, r"warmup must be in \[0, 1\), not 1.5"),
        (cosine, COSINE | {"final_factor": "x"}, "final_factor must be a number >= 0, not x"),
        (one_cycle, ONE_CYCLE | {"warmup": 0}, r"warmup must be in \(0, 1\), not 0"),
        (one_cycle, ONE_CYCLE | {"initial_factor": 0, "final_factor": 0}, "initial_factor must be a number > 0"),
        (
            slanted_triangular,
            {"cycles": [{"length": 1, "factor": 1, "rise": 0}], "initial_factor": -1},
            "initial_factor",
        ),
    ],
)
def test_a_number_out_of_its_range_is_refused(schedule, options, told):
    with pytest.raises(BadInput, match=told):
        rates(schedule, 10, **options)


@pytest.mark.parametrize("cycles", [[], [{"length": 1, "factor": 1.0}], [{"length": 0, "factor": 1.0, "rise": 0.1}]])
def test_slanted_triangular_says_what_a_cycle_is(cycles):
    with pytest.raises(BadInput, match=r"scheduler\.cycles must be like"):
        rates(slanted_triangular, 10, cycles=cycles, initial_factor=0.1)
