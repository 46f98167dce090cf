"""The report of a forget says what its data says, shows user's texts as texts, and asks nothing of
a network."""

import copy
import functools
import html
import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from html.parser import HTMLParser

import pytest
from forget_reports import (
    ATTACKS,
    Report,
    check,
    hidden,
    render_document,
    validation,
    with_oracles,
    work,
)

from expunge.config import BASE_CHECKS, ORACLE_CHECKS
from expunge.report import drawing, plots, words
from expunge.validation_report import Depth, ValidationReport

PLOTS = ("accuracy", "strength", "layers", "attacks", "relearning")
CLAIM = re.compile(r"\b(is|are|was|were|has|have|been) (now )?forgotten\b")
VOID = {"meta", "link", "br", "img", "input", "hr"}


class Page(HTMLParser):
    """What a browser reads: texts by the id around them, ids, and every tag with its attributes."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.texts: dict[str, str] = {"": ""}
        self.ids: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self._open: list[tuple[str, str]] = []
        self.feed(text)
        self.close()
        assert not self._open, f"not closed: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append((tag, found))
        self.handle_data(" " if tag in {"td", "dd"} else "")
        if "id" in found:
            self.ids.append(found["id"] or "")
        if tag not in VOID:
            self._open.append((tag, found.get("id") or ""))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1][0] == "style":
            return
        for key in {"", *(name for _, name in self._open)}:
            self.texts[key] = self.texts.get(key, "") + data

    def plain(self, key: str = "") -> str:
        """Return the text under an id, on one line."""
        return " ".join(self.texts[key].split())


@functools.cache
def render_once(report: str, made: str) -> str:
    """Render a page once for all tests that look at the same one: its plots take a second."""
    return render_document(json.loads(report), json.loads(made))


def page(report: Report, made: Report | None = None) -> Page:
    return Page(render_once(json.dumps(report), json.dumps(work() if made is None else made)))


def failed() -> Report:
    report = validation()
    report["checks"][0] = check("forget_error", 0.4, ">=", 0.95, samples=980)
    return report | {"grade": "failed", "passed": False}


def untrustworthy() -> Report:
    problem = "The mask control, which forgot nothing, was graded forgotten."
    report = with_oracles()
    report["controls"]["mask"] = "forgotten"
    return report | {"trustworthy": False, "passed": False, "reasons": [problem]}


def bare() -> Report:
    """Only what a page cannot be written without, with values that nobody could measure."""
    report = validation()
    keys = ("classes", "class_names", "before", "after", "checks", "grade", "passed")
    kept = {key: report[key] for key in keys}
    kept["before"]["forget_error"] = kept["before"]["per_class"][2] = None
    return kept


def layers_only() -> Report:
    report = validation()
    report["attacks"] = {}
    changes = [{"name": "a", "relative_change": None}, {"name": "b", "relative_change": 0.0}]
    return report | {"depth": {"layers": changes}}


REPORTS: dict[str, Callable[[], Report]] = {
    "suppressed": validation,
    "hidden": hidden,
    "forgotten": with_oracles,
    "failed": failed,
    "untrustworthy": untrustworthy,
    "bare": bare,
    "layers only": layers_only,
    "several classes": lambda: with_oracles((1, 3, 7)),
    "two classes": lambda: validation((1,), 2),
    "1000 classes": lambda: with_oracles(tuple(range(0, 1000, 25)), 1000),
}


@pytest.fixture(params=REPORTS)
def report(request: pytest.FixtureRequest) -> Report:
    return REPORTS[request.param]()


def test_every_check_is_there_with_its_verdict_and_its_meaning(report: Report) -> None:
    read = page(report)
    for row in report["checks"]:
        text = read.plain(f"check-{row['name']}")
        assert text.startswith(row["name"])
        assert ("✓ passed" in text, "✗ failed" in text) == (row["passed"], not row["passed"])
        assert words.MEANINGS[row["name"]] in text


def test_a_page_is_whole_and_asks_nothing_of_a_network(report: Report) -> None:
    text = render_document(report, work())
    read = Page(text)
    assert len(read.ids) == len(set(read.ids))
    assert "://" not in text
    for tag, attributes in read.tags:
        assert tag not in {"script", "link", "iframe", "img", "object", "embed", "base", "form"}
        assert not any(name.startswith("on") or name == "src" for name in attributes)
        for name in ("href", "xlink:href"):
            target = attributes.get(name) or "#"
            assert target.startswith("#")
            assert target == "#" or target[1:] in read.ids
    assert set(re.findall(r"url\(([^)]*)\)", text)) <= {f"#{name}" for name in read.ids}
    assert "@import" not in text
    assert ("default-src 'none'; style-src 'unsafe-inline'") in text


def test_equal_reports_give_equal_bytes() -> None:
    first = render_document(with_oracles(), work())
    assert render_document(with_oracles(), work()) == first
    other = with_oracles()
    other["after"]["per_class"][4] -= 0.1
    assert render_document(other, work()) != first


def test_nothing_is_changed_in_what_is_rendered() -> None:
    given, made = with_oracles(), work()
    kept = copy.deepcopy((given, made))
    render_document(given, made)
    assert (given, made) == kept


def test_every_check_and_metric_has_a_meaning() -> None:
    assert set(words.MEANINGS) == {*BASE_CHECKS, *ORACLE_CHECKS, *ATTACKS, "anamnesis"}


@pytest.mark.parametrize("name", ["suppressed", "failed", "untrustworthy", "bare"])
def test_no_sentence_claims_more_than_the_grade(name: str) -> None:
    read = page(REPORTS[name]())
    assert not CLAIM.search(read.plain())
    assert words.explain_grade(ValidationReport.from_json(with_oracles())) not in read.plain()
    assert "It was not shown that the layers before the last let go of the class." in read.plain(
        "not-shown"
    )


def test_suppressed_is_about_the_outputs_alone() -> None:
    read = page(validation())
    assert read.plain("grade") == read.plain("needed") == "suppressed"
    assert read.plain("outcome") == "✓ passed"
    assert read.plain("meaning") == (
        "The outputs get class 3 wrong at least as often as is asked for. It was not shown that "
        "the layers before the last have let go."
    )
    assert "The error on class 3 is at least 99.7 %, on 980 test images" in read.plain("shown")
    assert "Nothing was compared with retrained models." in read.plain("not-shown")
    assert validation()["reasons"][0] in read.plain("not-shown")
    assert "retrained without" not in read.plain("shown")


@pytest.mark.parametrize("needed", ["suppressed", "hidden"])
def test_hidden_is_bad_news_whatever_the_policy_allows(needed: str) -> None:
    read = page(hidden(needed))
    assert read.plain("headline") == "Hidden, not removed"
    assert read.plain("grade") == "hidden"
    assert read.plain("outcome") == ("! passed" if needed == "hidden" else "✗ rejected")
    classes = {
        attributes["id"]: attributes["class"]
        for _, attributes in read.tags
        if attributes.get("id") in ("headline", "grade", "outcome")
    }
    assert classes == {"headline": "headline bad", "grade": "bad", "outcome": "bad"}
    assert "the layers before the last still hold it" in read.plain("meaning")
    assert hidden()["reasons"][0] in read.plain("not-shown")
    assert "it was found in the layers before the last" in read.plain("not-shown")
    assert not CLAIM.search(read.plain())


def test_what_new_heads_find_on_each_block_is_a_table() -> None:
    report = with_oracles()
    row = dict(zip(("unlearned", "original", "held-out"), (0.31, 0.62, 0.27), strict=True))
    report["depth"]["blocks"] = {"layer4": row | {"oracles": [0.2, 0.26], "threshold": None}}
    cells = [f"<td>{text}</td>" for text in ("0.31", "0.62", "0.27", "0.2 to 0.26")]
    assert f'<th scope="row">layer4</th>{"".join(cells)}' in render_document(report, work())


def test_forgotten_rests_on_the_comparisons_that_can_tell() -> None:
    read = page(with_oracles())
    assert "No comparison that counts told this model from" in read.plain("meaning")
    shown, not_shown = read.plain("shown"), read.plain("not-shown")
    alike = (
        "by head recovery, head recovery with little penalty, prototype recovery, layer recovery, "
        "output distance, class membership and"
    )
    assert alike in shown
    assert not any(name in shown for name in ("relearning", "tug of war", "head swap"))
    assert "so passing them shows nothing: relearning and tug of war" in not_shown
    assert "There is no value for this model in this run of: membership." in not_shown
    assert "not what each layer before it holds" in not_shown
    assert "no proof that the training data cannot be inferred" in not_shown
    assert "It was not shown that" not in not_shown


def test_a_failed_run_says_which_check_rejects_it() -> None:
    read = page(failed())
    assert read.plain("outcome") == "✗ rejected"
    assert "The error on class 3" not in read.plain("shown")
    assert (
        "The check forget_error failed: 0.4, where at least 0.95 passes; this rejects the forget."
    ) in read.plain("not-shown")


def test_an_untrustworthy_run_shows_nothing() -> None:
    read = page(untrustworthy())
    assert read.plain("outcome") == "? untrustworthy"
    assert "not to be relied on" in read.plain("meaning")
    assert read.plain("shown").startswith("What was shown Nothing:")
    assert untrustworthy()["reasons"][0] in read.plain("not-shown")


def test_a_failing_comparison_counts_only_where_it_can_tell() -> None:
    report = with_oracles()
    for name, counts in (("cmia", True), ("tow", False)):
        position = next(i for i, row in enumerate(report["checks"]) if row["name"] == name)
        report["checks"][position] |= {"value": 0.5, "passed": False, "counts": counts}
    text = page(report | {"grade": "suppressed"}).plain("not-shown")
    assert "The check cmia failed: 0.5, where at most 0.1 passes." in text
    assert "The check tow failed" not in text


def test_a_class_that_came_back_is_no_word_of_comfort() -> None:
    report = validation()
    report["checks"][-1] |= {"value": 0.9, "passed": False}
    text = page(report).plain("not-shown")
    assert "The check head_swap failed: 0.9" in text
    assert "does not come back" not in text


def test_the_plots_that_the_data_allows(report: Report) -> None:
    read = page(report)
    expected = {"accuracy", "strength"}
    expected |= {"layers"} if report.get("depth") else set()
    expected |= {"attacks", "relearning"} if report.get("oracles") else set()
    assert {name for name in PLOTS if f"plot-{name}" in read.ids} == expected
    assert sum(tag == "figure" for tag, _ in read.tags) == len(expected)
    drawings = [attributes for tag, attributes in read.tags if tag == "svg"]
    for attributes in drawings:
        assert attributes["role"] == "img"
        for key in ("aria-labelledby", "aria-describedby"):
            assert read.plain(attributes[key] or "")
    if not report.get("oracles"):
        assert "there is no plot of attacks." in read.plain()


def test_fixed_lambdas_have_no_plot_of_strengths() -> None:
    read = page(validation(), work() | {"trials": []})
    assert "plot-strength" not in read.ids
    assert "No strength was tried" in read.plain()


def test_trials_without_any_finite_value() -> None:
    unknown = {"forget_loss": None, "damage": None}
    trials = [trial | unknown for trial in work()["trials"]]
    read = page(validation(), work() | unknown | {"trials": trials})
    assert "plot-strength" not in read.ids
    assert "None of the strengths that were tried gave a finite value." in read.plain()


def test_no_damage_was_measured() -> None:
    trials = [trial | {"damage": None} for trial in work()["trials"]]
    made = work() | {"damage": None, "trials": trials}
    assert "plot-strength" in page(bare(), made).ids


def test_the_order_of_keys_in_a_file_does_not_matter() -> None:
    stored = [json.loads(json.dumps(value, sort_keys=True)) for value in (with_oracles(), work())]
    assert render_document(*stored) == render_document(with_oracles(), work())


def test_a_name_is_shown_as_it_is() -> None:
    names = ['<b>&"', "$x^2$ \\frac", "<script>alert(1)</script>", "日本", "a\nb\u202e\x00c"]
    report = validation((5,), 6)
    report["class_names"][:5] = names
    text = render_document(report, work())
    read = Page(text)
    figure = read.plain("plot-accuracy")
    for name in names[:4]:
        assert drawing.clean_name(name) in figure
        assert html.escape(name, quote=False) in text
    assert "a b\ufffd\ufffdc" in figure
    assert "<b>" not in text
    assert "<script>" not in text


def test_a_lone_surrogate_can_be_written() -> None:
    report = validation()
    report["class_names"][0] = "caf\udce9"
    assert "caf\ufffd" in render_document(report, work()).encode().decode()


def test_names_of_what_was_forgotten_stay_opaque() -> None:
    assert "digit 3" not in page(validation()).plain()
    assert "forgotten-3" in page(validation()).plain("plot-accuracy")


def test_of_many_classes_the_worst_are_drawn_and_it_says_so() -> None:
    report = validation((10, 900), 1000)
    report["after"]["per_class"][777] = 0.2
    plot = plots.plot_accuracy(ValidationReport.from_json(report))
    labels = {element.text for element in ET.fromstring(plot.svg).iter("text")}
    assert {"10 · forgotten-10", "900 · forgotten-900", "777 · digit 777"} <= labels
    assert len([label for label in labels if label and "·" in label]) == plots.MOST_ROWS
    assert plot.note.startswith("40 of 1000 classes are shown: the classes to forget, then the 38")
    assert "777" in page(report).plain()


def test_of_many_forgotten_classes_those_with_the_lowest_error_are_drawn() -> None:
    report = validation(range(0, 1000, 4), 1000)
    report["after"]["per_class"][400] = 0.3
    plot = plots.plot_accuracy(ValidationReport.from_json(report))
    assert "400 · forgotten-400" in plot.svg
    assert "20 of the 250 classes to forget, those with the lowest error" in plot.note
    assert "and 230 more" in page(report).plain()


def test_the_layers_that_changed_most_are_drawn_in_the_models_order() -> None:
    rows = [{"name": f"layer{i}.", "relative_change": float(i % 50)} for i in range(100)]
    plot = plots.plot_layers(Depth.from_json({"layers": rows}))
    found = re.findall(r"layer(\d+)\.", plot.svg)
    assert [int(i) for i in found] == [i for i in range(100) if i % 50 >= 30]
    assert "40 of 100 layers" in plot.note


def test_numbers_say_no_more_than_they_are() -> None:
    assert words.format_percent(0.99996) == "99.996 %"
    assert words.format_percent(1.0) == "100.0 %"
    assert words.format_percent(1 - 1e-9) == "over 99.9999 %"
    assert words.format_percent(1e-9) == "under 0.0001 %"
    assert words.format_percent(None) == "not measured"
    assert words.format_pair(0.949996, 0.95) == ("0.949996", "0.95")
    assert words.format_pair(0.95, 0.95) == ("0.95", "0.95")
    assert words.format_pair(None, 1.0) == ("none", "1")


def test_how_it_was_made() -> None:
    text = page(with_oracles()).plain()
    for fact in ("rule paper", "sign +1", "strength 0.0006", "lambda1, lambda2 0.0006, 100"):
        assert fact in text
    assert "trials made 33" in text
    assert f"SHA-256 of the test split {with_oracles()['data_digest']}" in text
    assert "policy: budget 0.015" in text


def test_the_rungs_of_a_ladder_stand_in_a_table() -> None:
    assert 'id="rungs"' not in render_document(validation(), work())
    rung = {
        "rule": "paper", "grade": "hidden", "passed": False, "rejections": ["grade hidden"],
        "seconds": 0.25, "judging_seconds": 4.0,
    }  # fmt: skip
    last = {**rung, "rule": "replay", "grade": "suppressed", "passed": True, "rejections": []}
    made = render_document({**validation(), "rungs": [rung, last], "next_rule": ""}, work())
    found = " ".join(Page(made).texts["rungs"].split())
    assert "1 paper hidden grade hidden 0.2 4.0" in found
    assert "2 replay suppressed passed 0.2 4.0" in found
