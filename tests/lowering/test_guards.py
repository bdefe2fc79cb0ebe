import pytest

import bridge as br
from bridge.lowering.guards import holds


@pytest.mark.parametrize(
    ("guard", "sizes", "truth"),
    [
        ("x0_0 % 2 == 0", {"x0_0": 6}, True),
        ("x0_0 % 2 == 0", {"x0_0": 7}, False),
        ("x0_1 == x1_0", {"x0_1": 5, "x1_0": 7}, False),
        ("(x0_0 // 2) != 1 and not x0_0 > 9", {"x0_0": 4}, True),
        ("3 < x0_0 <= 8", {"x0_0": 8}, True),
        ("Max(1, x0_0 - 2) >= 3 or -x0_0 < -10", {"x0_0": 4}, False),
        ("7 % (x0_0 // 2) == 0", {"x0_0": 1}, False),
        ("math.ceil(x0_0 / 2) + math.floor(x0_0 / 2) == math.trunc(x0_0 / 1)", {"x0_0": 7}, True),
    ],
)
def test_a_condition_on_sizes_is_computed(guard, sizes, truth):
    assert holds(guard, sizes) is truth


@pytest.mark.parametrize(
    "guard", ["x9_0 == 1", "__import__('os')", "x0_0.real == 1", "math.exp(x0_0) > 1", "x0_0 ="]
)
def test_what_is_no_condition_on_sizes_is_refused(guard):
    with pytest.raises(br.BridgeError) as error:
        holds(guard, {"x0_0": 1})
    assert str(error.value) == f"{guard!r} is no condition on sizes"
