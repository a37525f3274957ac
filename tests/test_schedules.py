import pytest
import torch

from onebox.errors import BadInput
from onebox.optim import cosine, one_cycle, slanted_triangular


def rates(schedule, num_steps: int, **options) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5, momentum=0.9)
    scheduler = schedule(optimizer, num_steps, **options)
    seen = []
    for _ in range(num_steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return seen


def test_cosine_rises_holds_the_optimizers_rate_and_falls_to_the_final_one():
    seen = rates(cosine, 100, warmup=0.1, hold_steps=0, final_factor=0.1)
    assert max(seen) == seen[10] == pytest.approx(0.5)
    assert seen[0] < 0.1
    assert seen[-1] == pytest.approx(0.05, abs=1e-3)
    assert seen[55] == pytest.approx((0.5 + 0.05) / 2, rel=1e-6)  # half-way down
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
TRIANGLE = {"cycles": [{"length": 1, "factor": 1, "rise": 0}], "initial_factor": 0.1}


@pytest.mark.parametrize(
    ("schedule", "options", "message"),
    [
        (cosine, COSINE | {"warmup": 1.5}, r"warmup must be in \[0, 1\), not 1.5"),
        (cosine, COSINE | {"hold_steps": -1}, "hold_steps must be a number >= 0, not -1"),
        (cosine, COSINE | {"final_factor": "x"}, "final_factor must be a number >= 0, not x"),
        (one_cycle, ONE_CYCLE | {"warmup": 0}, r"warmup must be in \(0, 1\), not 0"),
        (one_cycle, ONE_CYCLE | {"initial_factor": 0}, "initial_factor must be a number > 0, not 0"),
        (one_cycle, ONE_CYCLE | {"final_factor": 0}, "final_factor must be a number > 0, not 0"),
        (slanted_triangular, TRIANGLE | {"initial_factor": -1}, "initial_factor must be a number >= 0, not -1"),
        (slanted_triangular, TRIANGLE | {"cycles": []}, r"scheduler\.cycles must be like"),
        (slanted_triangular, TRIANGLE | {"cycles": [{"length": 1, "factor": 1.0}]}, "must be like"),
        (slanted_triangular, TRIANGLE | {"cycles": [{"length": 0, "factor": 1.0, "rise": 0.1}]}, "must be like"),
    ],
)
def test_a_number_out_of_its_range_is_refused(schedule, options, message):
    with pytest.raises(BadInput, match=message):
        rates(schedule, 10, **options)
