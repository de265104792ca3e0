"""The table of what a server's version can do; in doubt it cannot."""

from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tritonasync.transport.versions import UNKNOWN, ServerFeatures

FEATURES = [field.name for field in fields(ServerFeatures)]

CAME = [
    ("cancelling", 58, 59),
    ("unregisters_in_use", 52, 53),
    ("register_offset_right", 59, 60),
    ("registers_again", 68, 69),
    ("stream_error_header", 49, 50),
]


@pytest.mark.parametrize(("feature", "without", "with_it"), CAME)
def test_a_feature_is_there_from_its_version_on(feature, without, with_it):
    assert not getattr(ServerFeatures.of(f"2.{without}.0"), feature)
    assert not getattr(ServerFeatures.of(f"2.{without}.9"), feature)
    assert getattr(ServerFeatures.of(f"2.{with_it}.0"), feature)
    assert getattr(ServerFeatures.of("3.0.0"), feature)
    assert not getattr(ServerFeatures.of("1.99.0"), feature)


def test_shared_memory_is_switched_off_by_default_from_its_version_on():
    assert ServerFeatures.of("1.99.0").shared_memory_by_default
    assert ServerFeatures.of("2.67.0").shared_memory_by_default
    assert not ServerFeatures.of("2.68.0").shared_memory_by_default
    assert not ServerFeatures.of("2.68.0dev").shared_memory_by_default
    assert not ServerFeatures.of("3.0.0").shared_memory_by_default


def test_every_feature_has_its_boundary_tested():
    assert {*FEATURES} == {"shared_memory_by_default", *(feature for feature, _, _ in CAME)}


@pytest.mark.parametrize(
    "version",
    [None, "", " ", "r24.10", "24.10", "24.10.1", "v", "dev", "2", "2.", "2.x", "-2.59.0"],
)
def test_what_is_no_server_version_can_surely_do_nothing(version):
    assert ServerFeatures.of(version) == UNKNOWN
    assert not any(getattr(UNKNOWN, feature) for feature in FEATURES)


@pytest.mark.parametrize("early", ["2.59.0dev", "2.59.0-rc1", "2.59.0a1", "2.59.0.dev20250601"])
def test_what_comes_before_a_release_may_lack_what_came_with_it(early):
    assert not ServerFeatures.of(early).cancelling
    assert ServerFeatures.of(early).unregisters_in_use  # which is older


@pytest.mark.parametrize(
    "build", ["2.59.0+nv25.06", "2.59.0nv25.06", "2.59.0-nvidia", "2.59.0.nv1", "2.59", " 2.59.0\n"]
)
def test_a_build_of_a_release_is_the_release(build):
    assert ServerFeatures.of(build) == ServerFeatures.of("2.59.0")
    assert ServerFeatures.of(build).cancelling


@given(st.text())
def test_any_string_is_read(version):
    assert isinstance(ServerFeatures.of(version), ServerFeatures)


@given(st.integers(0, 120), st.integers(0, 120), st.sampled_from(["", "dev"]))
def test_what_came_stays(one, other, suffix):
    earlier, later = sorted((one, other))
    before, after = ServerFeatures.of(f"2.{earlier}.0{suffix}"), ServerFeatures.of(f"2.{later}.0")
    for feature, _, _ in CAME:
        assert getattr(after, feature) >= getattr(before, feature)
