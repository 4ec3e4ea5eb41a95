"""What each detector finds and leaves alone: made items, real texts, and texts made to break things."""

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.datasets.cleaning import ChosenStep, run
from app.datasets.freezing import freeze
from app.datasets.preparing import prepare
from app.datasets.steps.boilerplate import repeated
from app.datasets.steps.catalogue import STEPS
from app.datasets.steps.language import guesses
from app.datasets.steps.personal import KINDS, PersonalParams, found, found_in, veiled_text
from benchmarks.data.personal_items import decoys, items
from benchmarks.data.personal_measure import STORED, measure
from tests.app.datasets.test_cleaning import NAUGHTY, chat, cleaned, plain
from tests.app.datasets.test_freezing import planned, quiet

ROOT = Path(__file__).parents[3]
REWRITING = ("markup", "boilerplate", "personal", "unicode", "whitespace")
PARAMS = {"boilerplate": {"lines": ["Page 1", "Kind regards", "`"]}}


def codes(name: str, example: dict, **params) -> tuple[str, ...]:
    return run(ChosenStep(name=name, params=params), [example])[0].codes


def test_made_personal_data_is_found_as_often_as_the_page_says():
    stored = json.loads((ROOT / STORED).read_bytes())
    assert measure() == stored, "measure again: python -m benchmarks.data.personal_measure --write"
    for kind, figures in stored["kinds"].items():
        assert figures["found"] >= (0.94 if kind == "phone" else 0.98) * figures["items"], kind
        assert figures["exact"] >= 0.94 * figures["items"], kind
    assert sum(figures["decoys_hit"] for figures in stored["kinds"].values()) <= 3


def test_the_gates_of_a_column_hide_nothing_that_is_found_in_a_text_alone():
    texts = [item.text for kind in KINDS for item in items(kind, 60)] + [item.text for item in decoys(60)]
    hook = "https://hooks.slack.com/services/" + "T0AB12CD3/B0EF45GH6/" + "aB3dE6gH9jK2mN5pQ8sT1vW4"
    alone = "Zx8Kq2Lw9Vb4Nm7Rt1Yp6Hs3Jd5F"
    texts += [hook, alone, f"token: {alone}"]
    column = found(texts)
    assert column == {place: spans for place, text in enumerate(texts) if (spans := found_in(text))}
    assert set(range(len(texts) - 3, len(texts))) <= set(column)


@pytest.mark.parametrize(
    "text",
    [
        "version 4.10.2.1 of 2021-03-04 12:30:45, ISBN 978-3-16-148410-0",
        "x[1::2], std::vector, a::b, 127.0.0.1, 255.255.255.0",
        "order no. 4123450131231234 costs 1,234,567.89 USD",
        "api_key = os.environ['OPENAI_KEY'] # your_api_key_here_123456",
        "commit da39a3ee5e6b4b0d3255bfef95601890afd80709, id 123e4567-e89b-12d3-a456-426614174000",
        "@ana said hi; 10:30-11:45, 3-2, 1914-1918",
    ],
)
def test_what_only_looks_personal_is_left(text):
    assert found_in(text) == []


def test_the_same_value_gets_the_same_name_in_a_row_and_no_other_row():
    rows = [chat("I am bob@x.org, call +49 30 901820", "Hello BOB@x.org or eve@y.org"), plain("eve@y.org <EMAIL_4>")]
    first, second = (o.example for o in run(ChosenStep(name="personal"), rows))
    assert [m["content"] for m in first["messages"]] == [
        "I am <EMAIL_1>, call <PHONE_1>", "Hello <EMAIL_1> or <EMAIL_2>",
    ]  # fmt: skip
    assert second["text"] == "<EMAIL_5> <EMAIL_4>", "a name that stands there is not given again"


def test_no_secret_lands_in_a_report_a_trace_or_a_manifest(tmp_path):
    secret, mail, salt = "sk-proj-abcDEF1234567890abcdEFGH", "bob@private.org", "12" * 32
    source = tmp_path / "a.csv"
    source.write_text(
        "question,answer\n" + f"  my key,it is  {secret} and  {mail}\n" + "".join(f"q{i},a{i}\n" for i in range(9))
    )
    for number, steps in enumerate([["whitespace"], ["personal"]]):
        plan = planned(tmp_path, source, steps, number)
        prepare(plan, tmp_path / f"w{number}", quiet)
        told = (tmp_path / f"w{number}" / "report.json").read_text()
        trace = (tmp_path / f"w{number}" / "trace.parquet").read_bytes().decode("latin-1")
        assert not any(value in told + trace for value in (secret, mail, "abcDEF", "private.org"))
    plan = planned(tmp_path, source, ["personal"], 7)
    plan.steps[0] = plan.steps[0].model_copy(update={"params": {"email": "hash", "salt": salt}})
    manifest = json.dumps(freeze(plan, tmp_path / "v", quiet))
    assert salt not in manifest
    assert "sha256:" in manifest


def test_each_kind_has_its_own_action():
    text = "bob@x.org 4111 1111 1111 1111 sup@acme.org"
    assert cleaned("personal", text, email="mask", card="keep", reason="test cards", allowed=["acme.org"]) == (
        "[EMAIL] 4111 1111 1111 1111 sup@acme.org"
    )
    assert codes("personal", plain(text), card="out")[-1] == "out.pii"
    salt = "ab" * 32
    hashed = cleaned("personal", "bob@x.org and amy@x.org", email="hash", salt=salt)
    assert hashed.split()[0] == cleaned("personal", "now bob@x.org", email="hash", salt=salt).split()[1]
    assert hashed != cleaned("personal", "bob@x.org and amy@x.org", email="hash", salt="cd" * 32)
    with pytest.raises(ValueError, match="Say why"):
        PersonalParams(card="keep")


def test_labels_are_replaced_with_their_answers():
    row = run(ChosenStep(name="personal"), [chat("who?", "bob@x.org", label="bob@x.org")])[0].example
    assert row["label"] == row["messages"][1]["content"] == "<EMAIL_1>"


def test_columns_that_travel_with_a_row_are_cleaned_too():
    example = chat("who?", "ask bob@x.org") | {
        "meta": {"from": "Bob <bob@x.org>", "card": 4111111111111111, "n": [7, None, 0.5]}
    }
    row = run(ChosenStep(name="personal"), [example])[0]
    assert row.example["meta"] == {"from": "Bob <<EMAIL_1>>", "card": "<CARD_1>", "n": [7, None, 0.5]}
    assert set(row.codes) == {"fix.pii.email", "fix.pii.card"}
    assert run(ChosenStep(name="personal"), [row.example])[0].example == row.example


def test_a_veil_shows_no_value():
    text = "mail bob@x.org, token=sk-proj-abcDEF1234567890abcdEFGH, 4111 1111 1111 1111"
    shown = veiled_text(text)
    assert len(shown) == len(text)
    assert not any(secret in shown for secret in ("bob@x", "abcDEF", "1111"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('Add <b>salt</b>&nbsp;to <i class="x">taste</i>', "Add salt to taste"),
        ("<p>One</p><p>Two &amp; three</p><ul><li>a</li><li>b</li></ul>", "One\n\nTwo & three\n\n- a\n\n- b"),
        ("<nick> have you tried <b>x</b> </b>", "<nick> have you tried <b>x</b> </b>"),
        ("use &lt;b&gt;x&lt;/b&gt; for bold", "use &lt;b&gt;x&lt;/b&gt; for bold"),
        ("5 &lt; 6 &amp;&amp; 7 &gt; 2", "5 < 6 && 7 > 2"),
        ("List<String> a = new Map<String>()", "List<String> a = new Map<String>()"),
        ("x\n```\n<p>a</p><p>b</p>\n```\n<p>c</p><p>d</p>", "x\n```\n<p>a</p><p>b</p>\n```\nc\n\nd"),
        ("a `<b>` tag <b>y</b> <i>z</i>", "a `<b>` tag y z"),
        ("<script>alert(1)</script><p>x</p><T> a<b", "x\n\n<T> a<b"),
        ("AT&T &copy; &bogus; caf&eacute;", "AT&T © &bogus; café"),
        ("soup = parse(\"<p>1</p><p>2</p>\")", "soup = parse(\"<p>1</p><p>2</p>\")"),
    ],
)  # fmt: skip
def test_markup(text, expected):
    assert cleaned("markup", text) == expected


def test_links_are_kept_when_asked():
    assert cleaned("markup", '<p>our <a href="https://x.org/a">page</a></p>', is_link_kept=True) == (
        "our page (https://x.org/a)"
    )


def test_languages_of_the_declaration_of_human_rights():
    lines = gzip.decompress((ROOT / "benchmarks/data/udhr/paragraphs.jsonl.gz").read_bytes()).splitlines()
    rows = [json.loads(line) for line in lines]
    right = sum(g.language == row["language"] for g, row in zip(guesses([r["text"] for r in rows]), rows, strict=True))
    assert len(rows) == 3423
    assert right / len(rows) >= 0.985


def test_letters_are_counted_alike_whether_a_text_is_plain_ascii_or_not():
    texts = ["", "Plain words, 12 of them; (a) [b] {c} = <d> | e_f \\ g", "x" * 4000, "{}();=<>[]_|\\", "ab\nc"]
    plain_letters = [g.letters for g in guesses(texts)]
    assert plain_letters == [0, sum(map(str.isalpha, texts[1])), 4000, 0, 3]
    assert [g.letters for g in guesses(["€" + text for text in texts])] == [*plain_letters[:2], 3999, 0, 3]
    mixed = [text for pair in zip(texts, ["é" * 3] * 5, strict=True) for text in pair]
    assert [g.letters for g in guesses(mixed)] == [n for letters in plain_letters for n in (letters, 3)]


def test_language_never_removes_code_short_rows_or_allowed_ones():
    code = "for (let i = 0; i < n; i++) { total += values[i] * weights[i]; } return total / (n || 1);"
    spanish = "Esta es una frase bastante larga para saber en qué idioma está escrita."
    rows = [plain(t) for t in (code, "¿Qué tal?", spanish, spanish + "\x00\x07\ufffe", "```\n" + spanish + "\n```")]
    out = run(ChosenStep(name="language", params={"allowed": ["en"]}), rows)
    assert [o.codes for o in out] == [(), (), ("out.lang",), ("out.lang",), ()]
    assert all(o.example for o in run(ChosenStep(name="language", params={"allowed": ["es"]}), rows))
    assert all(o.example for o in run(ChosenStep(name="language"), rows))


LONG = " ".join(f"Word number {i} stands in this sentence about kitchens, gardens and rivers." for i in range(8))


@pytest.mark.parametrize(
    ("example", "code"),
    [
        (chat("Tell me", "As an AI language model, I cannot do that."), "q.refusal"),
        (chat("What is a roux in cooking?", "what is a roux, in cooking"), "q.echo"),
        (chat("Tell me", LONG + " And then the cook went to the market to buy some"), "q.cut"),
        (plain("12 34 56 78 90 :: // ++ " * 30), "q.letters"),
        (plain("\n".join(["Click here to see more of our offers today"] * 9)), "q.lines"),
        (plain("buy shoes " * 40), "q.phrases"),
        (plain("so ... it # was ... and # then ... " * 12), "q.symbols"),
    ],
)
def test_quality(example, code):
    found = run(ChosenStep(name="quality", params={"least_score": 0}), [example])[0]
    assert code in found.codes
    assert found.example is not None


def test_good_texts_have_no_quality_code():
    rows = [chat("Why is the sky blue?", LONG), chat("Label it", "spam", label="spam"), plain(LONG), plain("Kurz.")]
    assert all(not o.codes for o in run(ChosenStep(name="quality"), rows))
    out = run(ChosenStep(name="quality"), [chat("Say hello to me", "say hello to me")])
    assert out[0].codes == ("q.echo",), "a score of exactly the limit stays"
    assert (
        run(ChosenStep(name="quality", params={"least_score": 41}), [chat("Say hello to me", "say hello to me")])[
            0
        ].example
        is None
    )


def test_bad_words_are_whole_words_of_the_texts_own_language():
    hit = ("q.profane.2", "out.profane")
    assert codes("profanity", plain("what the FUCK is that")) == hit
    assert codes("profanity", plain("Scunthorpe, Dickens, cocktail, assess, shiitake")) == ()
    assert codes("profanity", plain("Vou acertar as coisas com ele Hora de colocar os pingos nos is")) == ()
    assert codes("profanity", plain("Din jävla hora, jag är så trött på dig och dina lögner")) == hit
    assert codes("profanity", plain("what the fuck"), allowed=["Fuck"]) == ()
    assert codes("profanity", plain("damn it"), least_severity=1) == ("q.profane.1", "out.profane")
    assert codes("profanity", plain("damn it")) == ()


def test_repeated_lines_are_found_and_taken_out_at_the_edges_only():
    pages = [f"ACME Handbook\nChapter text {i}\nmore of it {i * 7}\nPage {i} of 90" for i in range(40)]
    lines = repeated(pages)
    assert [(r.line, r.rows) for r in lines] == [
        ("acme handbook", 40),
        ("chapter text #", 40),
        ("more of it #", 40),
        ("page # of #", 40),
    ]
    chosen = {"lines": ["ACME Handbook", "Page 3 of 90"]}
    assert cleaned("boilerplate", pages[7], **chosen) == "Chapter text 7\nmore of it 49"
    middle = "Intro\nPage 3 of 90\nEnd"
    assert cleaned("boilerplate", middle, **chosen) == middle
    assert cleaned("boilerplate", "Page 3 of 90", **chosen) == "Page 3 of 90", "nothing is emptied"
    braces = [f"{{\n  word {i}\n}}" for i in range(50)]
    assert [r.line for r in repeated(braces)] == ["word #"], "brackets belong to code"


def test_what_a_table_or_a_program_begins_with_is_no_repeated_line():
    table = [f"| Product | Price |\n|---|---:|\n| Tea {'x' * i} | 3 |\n| Cup {'y' * i} | 9 |" for i in range(40)]
    bare = [f"Product | Price\n--- | ---\nTea {'x' * i} | 3\nThat was all about {'z' * i}." for i in range(40)]
    code = [f"```python\nimport turtle\nprint({'x' * i!r})\n```" for i in range(40)]
    waves = [f"~~~~sql\nselect everything\n~~~\nfrom t{'x' * i}\n~~~~" for i in range(40)]
    for texts in (table, bare, code, waves):
        assert repeated(texts) == []
    around = [f"ACME Handbook\n\n{text}\n\nKind regards" for text in (*table, *code)]
    assert {(r.line, r.rows) for r in repeated(around)} == {("acme handbook", 80), ("kind regards", 80)}
    after = [f"A rule\n---\nIntro {'x' * i}\nACME | Handbook" for i in range(40)]
    assert {r.line for r in repeated(after)} == {"a rule", "acme | handbook"}, "no table without its second line"


def test_a_cap_keeps_so_many_of_each_label_in_any_order():
    rows = [chat(f"q{i}", "a", label="spam" if i % 5 else "ham") for i in range(50)] + [chat("x", "y")]
    kept = {
        o.example["messages"][0]["content"] for o in run(ChosenStep(name="cap", params={"most": 4}), rows) if o.example
    }
    again = run(ChosenStep(name="cap", params={"most": 4}), rows[::-1])
    assert len(kept) == 9
    assert {o.example["messages"][0]["content"] for o in again if o.example} == kept
    other = run(ChosenStep(name="cap", params={"most": 4, "seed": 2}), rows)
    assert {o.example["messages"][0]["content"] for o in other if o.example} != kept
    balanced = run(ChosenStep(name="cap", params={"ratio": 2}), rows)
    assert sum(o.example is not None and o.example["label"] == "spam" for o in balanced) == 20
    assert all(o.example for o in run(ChosenStep(name="cap"), rows)), "no limit takes nothing"


def test_naughty_strings_through_every_step_and_twice_is_once():
    rows = [plain(t) for t in NAUGHTY] + [chat(t, t) for t in NAUGHTY]
    for name, step in STEPS.items():
        chosen = ChosenStep(name=name, params=PARAMS.get(name, {}))
        once = run(chosen, rows)
        kept = [o.example for o in once if o.example]
        twice = run(chosen, kept)
        assert [o.example for o in twice] == kept, name
        assert all(set(o.codes) <= set(step.codes) for o in once), name
        assert all(o.codes for o in once if o.example is None), "no row goes without a reason"


PIECES = [
    "<b>",
    "</b>",
    "<p>",
    "&lt;",
    "&amp;",
    "gt;",
    "&#60;",
    "b",
    ">",
    "\n",
    "```\n",
    "`",
    " ",
    "<!--",
    "-->",
    "a@b.co",
    "<EMAIL_1>",
    '"',
    "://u:p@h.org",
    "key: ",
    "aB3dE5fG7hI9jK1lM3nO5",
    "4111111111111111",
    "Page 3",
    "é",
    "\u2028",
]


@settings(max_examples=120, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=14).map("".join))
def test_rewriting_twice_is_once_for_texts_full_of_traps(text):
    for name in REWRITING[:3]:
        once = cleaned(name, text, **PARAMS.get(name, {}))
        assert cleaned(name, once, **PARAMS.get(name, {})) == once, name


@pytest.mark.parametrize("name", ["markup", "boilerplate"])
@pytest.mark.parametrize("inside", ["<p>a</p>\n<p>b</p>", "&amp;  &lt;", "Page 3\nKind regards"])
def test_code_fences_are_left_alone(name, inside):
    text = f"Look:\n```html\n{inside}\n```\nDone &amp; <b>dusted</b> <i>now</i>."
    assert inside in cleaned(name, text, **PARAMS.get(name, {}))


@pytest.mark.timeout(120)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "text",
    [
        "1" * 30_000,
        "1-" * 15_000,
        "a@" * 15_000,
        "a." * 15_000 + "@",
        "key " * 8_000,
        ":" * 30_000,
        "sk-" * 9_000,
        "-----BEGIN PRIVATE KEY-----" * 900,
        "(1) " * 8_000,
        "1 1 1 1 1x" * 3_000,
    ],
)
def test_no_text_makes_a_detector_slow(kind, text):
    """A pattern that goes back and forth would take hours here."""
    list(KINDS[kind].find(text))
