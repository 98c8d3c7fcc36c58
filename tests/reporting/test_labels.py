from matplotlib.text import Text

from privguard.reporting.frontier import frontier_rows
from privguard.reporting.frontier_axes import CLIP_BELOW
from privguard.reporting.frontier_figure import frontier_figure
from privguard.reporting.style import defense_styles, figure_style
from privguard.reporting.wording import short_number
from tests.reporting.record_factory import sweep


def test_levels_are_written_short():
    texts = {0.1: "0.1", 1e-3: "1e-3", 3e-4: "3e-4", 100: "100", 4000: "4000", 1.5e4: "1.5e4"}
    assert {value: short_number(value) for value in texts} == texts


def test_a_defence_keeps_its_style_while_a_sweep_grows():
    few, many = (
        defense_styles(["none", "topk"]),
        defense_styles(["none", "gaussian", "topk", "a+b"]),
    )
    assert few["topk"] == many["topk"]
    looks = [(style.color, style.marker) for style in many.values()]
    assert len(looks) == len(set(looks))


def test_every_level_of_the_main_panel_is_labelled_apart():
    cells, attacks = sweep([0], targets=4, deployed=False)
    with figure_style():
        figure = frontier_figure(frontier_rows(cells, attacks))
        main = figure.axes[0]
        levels = [text for text in main.texts if text.get_text() not in ("", "good")]
        texts = {text.get_text() for text in levels}
        assert {"undefended", "1e-5", "0.01"} <= texts
        assert any(text.startswith("100 (return -1") for text in texts)
        assert main.get_xlim()[0] >= CLIP_BELOW - 0.1
        boxes = []
        for text in levels:
            # The annotation's own extent would include its leader line.
            text.update_positions(figure.canvas.get_renderer())
            boxes.append(Text.get_window_extent(text))
    overlaps = sum(
        one.overlaps(other) for index, one in enumerate(boxes) for other in boxes[:index]
    )
    assert overlaps <= 3
