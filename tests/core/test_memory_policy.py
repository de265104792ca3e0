import math

import pytest

from tritonasync import ConfigurationError, MemoryPolicy


def test_a_policy_is_as_documented_unless_told_otherwise():
    policy = MemoryPolicy()
    assert policy.max_nbytes == 1 << 30
    assert policy.region_nbytes == 64 << 20
    assert policy.when_full == "wait"
    assert dict(policy.devices) == {}
    assert MemoryPolicy(report_after_s=math.inf, devices={0: 1}).devices == {0: 1}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_nbytes": 0}, "max_nbytes is a whole number of bytes from 1 on, not 0"),
        ({"region_nbytes": True}, "region_nbytes is a whole number"),
        ({"min_nbytes": 1.5}, "min_nbytes is a whole number"),
        ({"max_nbytes": 1 << 20}, "region_nbytes=67108864 is above max_nbytes=1048576"),
        ({"when_full": "block"}, "when_full is 'wait' or 'raise', not 'block'"),
        ({"report_after_s": 0}, "report_after_s is more than 0 seconds"),
        ({"report_after_s": math.nan}, "report_after_s"),
        ({"stacks": 1}, "stacks is True or False, not 1"),
        ({"device_id": -1}, "device_id is a GPU's number from 0 on, not -1"),
        ({"when_full": []}, "when_full is 'wait' or 'raise', not \\[\\]"),
        ({"devices": [0]}, "devices maps a GPU's number to another"),
        ({"devices": {0: -1}}, "devices maps"),
        ({"devices": {"0": 1}}, "devices maps"),
    ],
)
def test_what_makes_no_sense_is_refused(options, words):
    with pytest.raises(ConfigurationError, match=words):
        MemoryPolicy(**options)
