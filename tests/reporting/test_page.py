"""The page without a browser: its numbers, its words, and what it says is missing."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from privguard.audit.examples import Example, Examples
from privguard.records import AttackRecord, CellRecord
from privguard.reporting.answer import answer
from privguard.reporting.frontier import frontier_rows
from privguard.reporting.leaks import leaked_records, leaks
from privguard.reporting.limits import Limits
from privguard.reporting.recommendation import recommend
from privguard.reporting.report import Evidence, write_page
from tests.reporting.record_factory import attack, cell, sweep


def data_of(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    assert found is not None
    return json.loads(found[1])


def examples(
    attack: str = "rgia", targets: int = 2, error: float = 0.0, state: Sequence[float] = (1, 3, 5)
) -> Examples:
    true = np.array([state], dtype=np.float32)
    action = np.array([[0.5]], dtype=np.float32)
    return Examples(
        attack=attack,
        release="probe",
        knowledge="samples (0.3%)",
        state_mean=np.array([1, 1, 5], dtype=np.float32),
        state_sigma=np.array([2, 2, 0], dtype=np.float32),
        action_mean=np.zeros(1, dtype=np.float32),
        action_sigma=np.ones(1, dtype=np.float32),
        rounds=tuple(range(targets)),
        targets=(Example(true, action, true + error, action * np.nan),) * targets,
    )


class FakePictures:
    """Stands for drawn poses, so that the page is tested without a display."""

    drawable = True

    def __init__(self) -> None:
        self.drawn: list[Any] = []

    def picture(self, state: Any) -> bytes | None:
        known = any(np.array_equal(state, one) for one in self.drawn)
        return b"picture" if known else None

    def draw(self, states: Any) -> str:
        self.drawn = list(states)
        return ""


@pytest.fixture(scope="module")
def records() -> tuple[list[CellRecord], list[AttackRecord]]:
    return sweep(range(2), targets=6)


@pytest.fixture(scope="module")
def page(records, tmp_path_factory) -> tuple[str, Path]:
    directory = tmp_path_factory.mktemp("report")
    write_page(directory, *records, command="privguard sweep --env ant", planned_cells=60)
    return (directory / "index.html").read_text(), directory


def test_every_number_of_the_charts_stands_in_the_table(page):
    text, directory = page
    table = list(csv.DictReader((directory / "frontier.csv").open()))
    shown = data_of(text)
    assert len(shown["rows"]) == len(table) > 50
    for row, line in zip(shown["rows"], table, strict=True):
        for column in shown["columns"]:
            value = row[column]
            if isinstance(value, float):
                assert value == float(line[column]), column
            else:
                assert ("" if value is None else str(value)) == line[column], column


def test_the_worst_case_of_each_measure_is_the_worst_over_the_attacks(page):
    shown = data_of(page[0])
    rows = shown["rows"]
    worse = {
        "leakage": lambda row: row["leakage_mean"],
        "ra": lambda row: row["leakage_mean"],
        "identified": lambda row: row["identified_mean"],
        "nmse": lambda row: -row["nmse_mean"],
    }
    for release, view in shown["views"].items():
        own = [row for row in rows if row["release"] == release]
        for measure, value in worse.items():
            chosen = [rows[place] for place in view["worst"][measure]]
            levels = {(row["defense"], row["level"]) for row in own}
            assert len(chosen) == len(levels)
            for row in chosen:
                rivals = [
                    value(other)
                    for other in own
                    if (other["defense"], other["level"]) == (row["defense"], row["level"])
                ]
                assert value(row) == max(rivals)


def test_every_attack_alone_can_be_chosen_and_levels_run_towards_privacy(page):
    shown = data_of(page[0])
    view = shown["views"]["probe"]
    assert view["attacks"] == ["analytic", "dlg", "geiping", "rgia"] == sorted(view["alone"])
    clips = [
        shown["rows"][place]["level"]
        for place in view["alone"]["dlg"]
        if shown["rows"][place]["defense"] == "clip"
    ]
    assert clips == [10, 1, 0.1]


class _Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.labels: list[str] = []
        self.selects = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.links += [values[name] or "" for name in ("src", "href") if name in values]
        self.ids |= {values["id"] or ""} if "id" in values else set()
        self.labels += [values["for"] or ""] if tag == "label" else []
        self.selects += tag == "select"


def test_the_page_loads_nothing_and_its_links_and_labels_lead_somewhere(page):
    text, directory = page
    found = _Page(text)
    for link in found.links:
        inside = link.startswith("#") and link[1:] in found.ids
        assert inside or link == "data:," or (directory / link).exists(), link
    assert found.selects == len(found.labels) >= 3
    assert set(found.labels) <= found.ids
    assert "url(" not in text
    assert "@import" not in text


def test_the_answer_comes_first_and_names_every_figure_with_its_interval(records):
    rows = frontier_rows(*records)
    for limits, begins in (((0.1, 0.05), "No measured level qualifies."), ((0.5, 0.2), "Deploy")):
        found = answer(
            recommend(rows, Limits(max_leakage=limits[0], max_reward_loss=limits[1])), rows
        )
        assert found.sentence.startswith(begins)
        assert [fact.name for fact in found.facts] == [
            "Leakage, worst attack",
            "Reward kept",
            "ε",
            "Upload",
        ]
        for fact in found.facts[:2]:
            assert re.fullmatch(r"-?[\d.]+ \[-?[\d.]+, -?[\d.]+\]", fact.value)
            assert fact.value in found.sentence
        assert "400 kB" in found.sentence
    assert all(fact.kept is not False for fact in found.facts)


def test_the_answer_says_so_where_nothing_was_measured():
    assert answer(recommend([]), []).facts == ()


def test_scatters_leave_out_what_cannot_be_compared():
    # The third coordinate never varies, and the action is not known to the attack.
    found = leaked_records(examples(error=1.0))
    assert [record.points for record in found] == [[(0.0, 0.5), (1.0, 1.5)]] * 2


def test_of_a_minibatch_the_records_that_were_read_best_are_shown():
    scale = (np.zeros(2), np.ones(2), np.zeros(1), np.ones(1))
    true, action = np.zeros((5, 2)), np.zeros((5, 1))
    state = true + np.array([[3.0], [0.1], [2.0], [np.nan], [0.0]])
    target = Example(true, action, state, action)
    kept = Examples(
        "map", "deployed", "samples", *scale, (0, 5, 9), (target,) * 3, records=(64, 64, 63)
    )
    found = leaked_records(kept)
    # An unknown state costs one sigma squared a coordinate: more than 0.1, less than 2.
    assert [record.state.tolist() for record in found[:2]] == [[0, 0], [0.1, 0.1]]
    assert np.isnan(found[2].state).all()
    assert [(r.target, r.round, r.rank, r.records) for r in found] == [
        (target, moment, rank, records)
        for target, moment, records in ((0, 0, 64), (1, 9, 63))
        for rank in range(3)
    ]


def test_what_leaked_is_shown_for_each_attack_the_strongest_first():
    cells = [
        cell("gaussian", level, level_name="variance", private_end="high") for level in (1.0, 0.1)
    ]
    attacks = [
        attack(one, name, leakage=leaked)
        for one in cells
        for name, leaked in (("rgia", 0.4), ("dlg", 0.2))
    ]
    rows = frontier_rows(cells, attacks)
    found = leaks(rows, cells, lambda key: [examples("dlg"), examples("rgia")], "probe")
    assert [(leak.row.level, leak.row.attack, leak.strongest) for leak in found] == [
        (0.1, "rgia", True),
        (0.1, "dlg", False),
        (1.0, "rgia", True),
        (1.0, "dlg", False),
    ]
    # Without the strongest attack's a level shows nothing: the others' would flatter it.
    assert leaks(rows, cells, lambda key: [examples("dlg")], "probe") == []


def test_a_run_without_reconstructions_says_how_to_get_them(tmp_path):
    one = cell()
    write_page(tmp_path, [one], [attack(one)], command="x")
    text = (tmp_path / "index.html").read_text()
    assert "not kept for 1 of 1 levels" in text
    assert "privguard attack DIR" in text
    assert data_of(text)["leaks"] == {}


def test_poses_are_shown_once_they_are_drawn(tmp_path):
    one = cell()
    kept, pictures = examples(), FakePictures()
    evidence = Evidence(load=lambda key: [kept], pictures=pictures, specification='{"env": "ant"}')
    write_page(tmp_path, [one], [attack(one)], command="x", evidence=evidence)
    text = (tmp_path / "index.html").read_text()
    assert "Poses are missing" in text
    assert "{&#34;env&#34;: &#34;ant&#34;}" in text
    pictures.draw([part for one in kept.targets for part in (one.true_state[0], one.state[0])])
    write_page(tmp_path, [one], [attack(one)], command="x", evidence=evidence)
    text = (tmp_path / "index.html").read_text()
    assert "Poses are missing" not in text
    shown = data_of(text)
    assert shown["pictures"] == ["data:image/webp;base64,cGljdHVyZQ=="]
    (leak,) = shown["leaks"]["probe"]
    assert [record["pictures"] for record in leak["records"]] == [[0, 0]] * 2
    assert [record["of"] for record in leak["records"]] == [1, 1]


def test_frames_need_no_display(tmp_path):
    true = np.zeros((1, 4, 20, 30), dtype=np.uint8)
    true[0, -1, :10] = 200
    unknown = np.full(true.shape, np.nan, dtype=np.float32)
    action = np.array([[2]])
    scale = (np.zeros(2400), np.ones(2400), np.zeros(1), np.ones(1))
    targets = (Example(true, action, true + 0.4, action), Example(true, action, unknown, action))
    kept = Examples("rgia", "probe", "samples (0.3%)", *scale, (0, 9), targets)
    one = cell()
    write_page(tmp_path, [one], [attack(one)], command="x", evidence=Evidence(lambda key: [kept]))
    text = (tmp_path / "index.html").read_text()
    assert "newest frame" in text
    shown = data_of(text)
    (frame,) = shown["pictures"]
    (leak,) = shown["leaks"]["probe"]
    # 0.4 grey levels are not seen; nothing is known of the other.
    assert [record["pictures"] for record in leak["records"]] == [[0, 0], [0, None]]
    image = Image.open(io.BytesIO(base64.b64decode(frame.partition(",")[2])))
    assert image.size == (30, 20)
    assert [record["psnr"] for record in leak["records"]] == [pytest.approx(56.09, abs=0.01), None]
    assert {record["mean_psnr"] for record in leak["records"]} == {11.1411}
    assert np.asarray(image.convert("L"))[[5, 15], 15].tolist() == pytest.approx([200, 0], abs=3)


def test_scores_of_images_stand_beside_guessing(tmp_path):
    one = cell()
    record = attack(one)
    extra = {"psnr": 31.0, "psnr_prior": 29.0, "ssim": 0.9, "ssim_prior": 0.8}
    extra |= {"exact_pixels": 0.6, "exact_pixels_prior": 0.5}
    scored = [t.model_copy(update={"scores": t.scores | extra}) for t in record.targets]
    seen = record.model_copy(update={"targets": scored})
    write_page(tmp_path, [one], [seen], command="x")
    text = (tmp_path / "index.html").read_text()
    assert data_of(text)["views"]["probe"]["worst"]["psnr"] == [0]
    assert "PSNR 31.0 dB (guess 29.0), exact pixels 0.60 (guess 0.50)" in text
    assert '<th scope="col">PSNR (dB)</th>' in text
    write_page(tmp_path, [one], [record], command="x")
    plain = (tmp_path / "index.html").read_text()
    assert "psnr" not in data_of(plain)["views"]["probe"]["worst"]
    assert ">PSNR (dB)<" not in plain


def test_text_from_records_cannot_end_the_data_block(tmp_path):
    one = cell()
    hostile = attack(one).model_copy(update={"attack": "</script><script>alert(1)</script>"})
    write_page(tmp_path, [one], [hostile], command="x")
    text = (tmp_path / "index.html").read_text()
    assert "<script>alert" not in text
    assert data_of(text)["attacks"][0]["name"] == hostile.attack


@pytest.mark.parametrize("broken", [{"idle": float("nan")}, {"idle": float("inf")}])
def test_numbers_that_json_cannot_hold_do_not_reach_the_page(tmp_path, broken):
    one = cell().model_copy(update={"random_return": broken["idle"], "zero_return": broken["idle"]})
    write_page(tmp_path, [one], [attack(one)], command="x")
    assert data_of((tmp_path / "index.html").read_text())["training"]["idle"] is None
