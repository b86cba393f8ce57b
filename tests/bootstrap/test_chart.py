from xml.etree import ElementTree as ET

from bootstrap.chart import Bar, bars

RECT = "{http://www.w3.org/2000/svg}rect"


def test_bars_are_as_long_as_their_values_and_coloured_by_group():
    picture = ET.fromstring(bars("a <title>", "tokens/s", [Bar("x & y", 10, "a"), Bar("z", 5, "b"), Bar("w", 0, "a")]))
    drawn = picture.findall(RECT)[1:]
    widths = [float(rect.get("width")) for rect in drawn]
    assert widths[0] == 2 * widths[1] > widths[2] == 0
    assert drawn[0].get("fill") == drawn[2].get("fill") != drawn[1].get("fill")
    assert "x & y" in [text.text for text in picture.iter("{http://www.w3.org/2000/svg}text")]


def test_nothing_to_draw_is_a_picture_too():
    assert ET.fromstring(bars("t", "u", [])) is not None
