"""What people and models wrote, as it stands on a page."""

from pathlib import Path

from app.core import markdown


def test_a_column_of_numbers_stands_at_the_right() -> None:
    html = markdown.render("| Plan | Price | |\n|---|---:|:-:|\n| Basic | 3 | x |")
    assert '<th>Plan</th>\n<th class="at-right">Price</th>' in html
    assert '<td class="at-right">3</td>\n<td class="at-center">x</td>' in html
    assert "style" not in html


def test_the_words_of_a_program_have_their_colours() -> None:
    html = markdown.render("```python\ndef f(): return 'x'  # why\n```")
    styles = (Path(__file__).parents[3] / "static/css/chat/10-page.css").read_text()
    for name in ("hl-k", "hl-s1", "hl-c1"):
        assert f'class="{name}"' in html
        assert f".{name}" in styles


def test_markup_of_a_model_is_text() -> None:
    html = markdown.render('<td class="x" onclick="a()">b</td>\n\n| a |\n|---|\n| <b class="y">c</b> |')
    assert "&lt;td class" in html
    assert "&lt;b class" in html
    assert "<b " not in html
