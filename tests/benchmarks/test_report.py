import re
from html.parser import HTMLParser
from xml.etree import ElementTree as ET

import pytest

from benchmarks import charts, report, tables
from benchmarks.goals import judge
from benchmarks.samples import Figure
from tests.benchmarks.made import results, rounds


def made():
    run = results(
        *rounds("rows-1024", "ours", {"rows_per_s": [4e5, 5e5], "cpu_us_per_row": [2.5, 2.6]}),
        *rounds("rows-1024", "aio", {"rows_per_s": [9e3, 9e3], "cpu_us_per_row": [98.0, 99.0]}),
        *rounds("stall-send", "ours", {"stall_ms": [4.0]}),
        *rounds("open", "tritony", {"rows_per_s": [1.0]}, errors=2),
    )
    run.skipped["batched"] = "no <network>"
    run.figures["wire"] = [Figure("encode <x>", "µs", [1.0], [4.0], 0.25)]
    return run


class Tags(HTMLParser):
    """Collects tags with their attributes, and what is open at the end."""

    VOID = frozenset({"meta", "br", "img", "link"})

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def parsed(page: str) -> Tags:
    tags = Tags()
    tags.feed(page)
    tags.close()
    assert not tags.open
    return tags


def test_the_page_refers_to_nothing_outside_itself():
    page = report.page(made(), judge(made()))
    tags = parsed(page)
    assert not {tag for tag, _ in tags.seen} & {"script", "link", "img", "iframe", "object", "use"}
    names = {name for _, attributes in tags.seen for name in attributes}
    assert not names & {"src", "href", "xlink:href", "srcset", "data"}
    assert not re.search(r"https?:|//\w|url\(|@import", page)


def test_what_libraries_say_cannot_become_markup():
    page = report.page(made(), judge(made()))
    for text in ("no &lt;network&gt;", "encode &lt;x&gt;", "a &lt;fast&gt; one"):
        assert text in page
    assert "<network>" not in page


def test_the_page_reads_on_light_and_on_dark():
    page = report.page(made(), judge(made()))
    assert "color-scheme: light dark" in page
    assert page.count("prefers-color-scheme: dark") >= 2  # the page's own, and the charts'


def test_every_goal_and_every_workload_is_on_the_page():
    page = report.page(made(), judge(made()))
    for verdict in judge(made()):
        assert verdict.wanted in page
    assert "64 B rows, 1,024 callers" in page
    assert "2 errors" in page or "4 errors" in page


def test_charts_are_documents_of_their_own():
    drawn = report.plots(made())
    assert {"rows-1024-rows_per_s", "rows-1024-latency", "stall-send-stall_ms"} <= drawn.keys()
    for chart in drawn.values():
        root = ET.fromstring(chart)
        assert root.tag == "{http://www.w3.org/2000/svg}svg"


def test_every_client_of_a_workload_has_its_dot():
    chart = report.plots(made())["rows-1024-rows_per_s"]
    assert "tritonasync" in chart
    assert "tritonclient grpc.aio" in chart
    assert chart.count('class="dot"') == 2


def test_values_far_apart_get_a_logarithmic_scale():
    assert charts.scale_for([1.0, 100.0], 0, 100).logarithmic
    assert not charts.scale_for([50.0, 100.0], 0, 100).logarithmic


@pytest.mark.parametrize("values", [[1.0, 100.0], [50.0, 100.0], [0.0], [], [3.0], [1e-3, 7e5]])
def test_a_scale_shows_every_value_within_its_ends_and_has_ticks(values: list[float]):
    scale = charts.scale_for(values, 10.0, 90.0)
    assert all(10.0 <= scale(value) <= 90.0 for value in values)
    assert len(scale.ticks()) >= 1
    assert all(10.0 <= scale(tick) <= 90.0 for tick in scale.ticks())


def test_greater_values_lie_further_along():
    for scale in (charts.scale_for([1.0, 100.0], 0, 100), charts.scale_for([50.0, 99.0], 0, 100)):
        assert scale(50.0) < scale(60.0) < scale(90.0)


def test_columns_of_a_table_are_of_one_width():
    lines = list(tables.aligned([["", "rate"], ["ours", "1,000"], ["a longer one", "7"]]))
    assert lines == ["               rate", "ours          1,000", "a longer one      7"]


def test_a_table_shows_only_measures_that_someone_has():
    lines = list(tables.workload_lines(made(), "rows-1024"))
    assert "rows/s" in lines[2]
    assert "stall" not in lines[2]
    assert any("450,000 (400,000 to 500,000)" in line for line in lines)
