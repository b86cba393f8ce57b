from xml.etree import ElementTree as ET

from bootstrap.chart import Bar, Panel, bars, number, panels

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


def test_panels_stand_under_each_other_on_scales_of_their_own():
    few = [Bar("1 at once", 10, "a"), Bar("8 at once", 1234.5, "a")]
    picture = ET.fromstring(panels("title", [Panel("tokens/s", few), Panel("ms", [Bar("1 at once", 0.51234, "b")])]))
    drawn = picture.findall(RECT)[1:]
    tops = [float(rect.get("y")) for rect in drawn]
    assert tops == sorted(tops)
    assert len(set(tops)) == 3
    assert float(drawn[1].get("width")) == float(drawn[2].get("width"))
    texts = [text.text for text in picture.iter("{http://www.w3.org/2000/svg}text")]
    assert {"title", "tokens/s", "ms", "10", "1,234", "0.512"} <= set(texts)
    bottom = float(picture.get("viewBox").split()[3])
    assert all(float(rect.get("y")) + float(rect.get("height")) < bottom for rect in drawn)


def test_numbers_are_read_at_a_glance():
    assert [number(value) for value in (0, 0.01234, 9.876, 99.94, 123.4, 1166.3, 54321.0)] == [
        "0", "0.0123", "9.88", "99.9", "123", "1,166", "54,321",
    ]  # fmt: skip
