"""Merge fields: two ways to render that agree, and nothing to run away with (T3, T4)."""

from __future__ import annotations

import quopri
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from campaigns import quoted_printable
from campaigns.merge import (
    LARGEST_OUTPUT,
    LONGEST_VALUE,
    LetterError,
    MergeTemplate,
    plain_segment,
    url_filter,
)
from campaigns.template_source import PieceKind, UnclosedTagError, split
from campaigns.trial import Manuscript, typeset


def render(source: str, *, html: bool = False, **values: str) -> str:
    return MergeTemplate("part", source, html=html).render(values)


# --------------------------------------------------------------------- quoted-printable, in pieces

AWKWARD = st.text(st.sampled_from("ab =.\t\n\ré☃{%<&'") | st.characters(), max_size=200)
LONG_LINES = st.text(st.sampled_from("a =.\n"), min_size=60, max_size=180)


def octets(text: str) -> bytes:
    """What a text is on the wire: CRLF for every kind of line end, "?" for half a character."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").replace("\n", "\r\n")
    return lines.encode("utf-8", "replace")


def assert_quoted_printable(encoded: str) -> None:
    lines = encoded.split("\r\n")
    assert encoded.isascii()
    assert all(len(line) <= 76 for line in lines)
    assert not any("\r" in line or "\n" in line or line.endswith((" ", "\t")) for line in lines)
    assert not any(line.startswith(".") for line in lines)


@settings(deadline=None, max_examples=300)
@given(st.lists(AWKWARD | LONG_LINES, max_size=6))
def test_joined_segments_decode_to_the_joined_texts(texts: list[str]) -> None:
    encoded = "".join(map(quoted_printable.segment, texts))

    assert_quoted_printable(encoded)
    assert quopri.decodestring(encoded.encode()) == b"".join(map(octets, texts))
    assert encoded == "" or encoded.endswith("\r\n")


@settings(deadline=None)
@given(AWKWARD | LONG_LINES)
def test_a_text_decodes_to_itself(text: str) -> None:
    encoded = quoted_printable.encode(text)

    assert_quoted_printable(encoded)
    assert quopri.decodestring(encoded.encode()) == octets(text)


@pytest.mark.parametrize("before", range(4))
def test_dots_alone_are_broken_and_encoded_as_long_as_a_line_begins_with_one(before: int) -> None:
    for length in range(70, 160):
        text = "a" * before + "." * length + "\n" + "." * length
        assert_quoted_printable(quoted_printable.segment(text))
        assert quopri.decodestring(quoted_printable.segment(text).encode()) == octets(text)


def test_a_space_at_the_end_of_a_full_line_does_not_make_it_too_long() -> None:
    assert_quoted_printable(quoted_printable.encode("x" * 75 + " \ny"))


# ------------------------------------------------------------------------ the pieces of a template


def test_a_template_is_the_sum_of_its_pieces() -> None:
    source = (
        "a{{ '}}' }}{# }} #}{%- raw -%} {{ x }} {%- endraw %}\n{{ {'a': {'b': 1}} }}{% if a -%}  b"
    )

    pieces = split(source)

    assert "".join(piece.source for piece in pieces) == source
    assert [piece.kind for piece in pieces if piece.is_tag] == [
        PieceKind.EXPRESSION,
        PieceKind.COMMENT,
        PieceKind.RAW,
        PieceKind.EXPRESSION,
        PieceKind.CONTROL,
    ]
    assert pieces[-1].text == "b"
    assert next(piece.text for piece in pieces if piece.kind is PieceKind.RAW) == "{{ x }}"


@pytest.mark.parametrize("source", ["{{ a", "{% if a", "{# a", "{% raw %}x", '{{ "}}"'])
def test_a_tag_that_does_not_end_is_said_to_be_so(source: str) -> None:
    with pytest.raises(UnclosedTagError):
        split(source)


# -------------------------------------------------------------------- both renderings, any template

TEXT = st.sampled_from(
    ["Dear ", "\n", "\r\n", " ", "  \n", "é", "{", "}", "%", "=", "<p class='x'>", "x" * 80, ".\n"]
    + ["&amp;", "\t", "\u00a0", "\u2003", "\x1c", "}}", "%}", "}", "日本語"]
)
EXPRESSION = st.sampled_from(
    [
        "{{ name }}",
        "{{- name -}}",
        "{{+ name +}}",
        "{{name}}",
        "{{ missing }}",
        "{{ name | upper }}",
    ]
    + ["{{ missing | default('x' ~ name) }}", "{{ '}}' }}", '{{ "%}" ~ name }}', "{{ link | url }}"]
    + ["{{ name | e }}", "{{ (name | e) ~ name }}", "{{ [1, 2.5, true, none, name] | length }}"]
    + ["{{ true }}", "{{ 1.5 }}", "{{ [name] }}", "{{ {'a': {'b': name}}.a.b }}", "{{ name[0] }}"]
    + ["{# {{ name }} #}", "{#- x -#}", "{% raw %}{{ x }} {% y %}{# z{% endraw %}"]
    + ["{%- raw -%}  {{ x }} {%- endraw -%}", "{% set v = name %}", "{{ v }}", "{{ name ~ 1 }}"]
    + ["{% set v = '=' ~ name %}", "{{ 'y' if name else 'n' }}", "{{ name | trim | title }}"]
)


def blocks(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """A run of templates, bare or within one kind of block."""
    wrappers = st.sampled_from(
        [
            "{}",
            "{{% if name %}}{}{{% endif %}}",
            "{{%- if missing -%}}no{{%- else -%}}{}{{%- endif -%}}",
            "{{% for c in [name, 'b'] %}}{}{{{{ c }}}}{{{{ loop.index }}}}{{% endfor %}}",
            "{{% for c in [] %}}x{{% else -%}} {} {{%- endfor %}}",
            "{{% with v = name %}}{}{{% endwith %}}",
            "{{% set block %}}{}{{% endset %}}{{{{ block }}}}{{{{ block | upper }}}}",
            "{{% set block | upper %}}a=b {}{{% endset %}}{{{{ block }}}}",
            "{{% filter upper %}}{}{{% endfilter %}}",
            "{{% macro m(v) %}}{}{{{{ v }}}}{{% endmacro %}}{{{{ m(name) }}}}",
            "{{% block b %}}{}{{% endblock %}}",
            "{{% for c in [[name], []] recursive %}}{{{{ loop(c) }}}}{{% endfor %}}{}",
        ]
    )
    runs = st.lists(inner, max_size=4).map("".join)
    return st.builds(lambda wrapper, run: wrapper.format(run), wrappers, runs)


TEMPLATES = st.lists(st.recursive(TEXT | EXPRESSION, blocks, max_leaves=8), max_size=5).map("".join)
# Without halves of characters: letter.merge_text takes them out.
CHARACTERS = st.sampled_from("a <&\"'=.\t\n\r{%}é☃/") | st.characters(exclude_categories=["Cs"])
HOSTILE = st.text(CHARACTERS, max_size=120)
VALUES = st.fixed_dictionaries(
    {"name": HOSTILE},
    optional={"link": st.sampled_from(["https://a.example/?a=1&b=2", "javascript:x", "'\"<"])},
)


@settings(deadline=None, max_examples=500)
@given(TEMPLATES, VALUES, st.booleans())
def test_both_ways_to_render_give_the_same_text(
    source: str, values: dict[str, str], html: bool
) -> None:
    try:
        template = MergeTemplate("part", source, html=html)
        expected = template.render(values)
    except LetterError:
        return  # two blocks of one name: what does not compile, or renders to an error, says so

    encoded = template.render_encoded(values)

    assert_quoted_printable(encoded)
    assert quopri.decodestring(encoded.encode()) == octets(expected)


# -------------------------------------------------------------------- forms: text and fields alone

PLAIN_FIELD = st.sampled_from(
    ["{{ name }}", "{{name}}", "{{- name -}}", "{{ link }}", "{{ missing }}", "{{ naïve }}"]
    + ["{{ missing | default('a & \"b\"') }}", "{{ name|d('=\n') }}", "{{ d|default ( '' ) }}"]
    + ['{{ missing | default("it\'s") }}', "{# {{ name }} #}", "{#- x -#}", "{{ d | d('d') }}"]
    # Words that are no names, or no plain fields: these leave the form to minijinja.
    + ["{{ true }}", "{{ None }}", "{{ 7 }}", "{{ self }}", "{{ '}}' }}", "{{ name | upper }}"]
    + ["{{ missing | default('\\n') }}", "{{ missing | default(name) }}", "{{ -name }}"]
)
NAMES = ["name", "link", "missing", "naïve", "d", "self", "true"]


@settings(deadline=None, max_examples=300)
@given(
    st.lists(TEXT | PLAIN_FIELD, max_size=8).map("".join),
    st.dictionaries(st.sampled_from(NAMES), HOSTILE),
    st.booleans(),
)
def test_a_form_is_filled_to_the_octet_as_minijinja_fills_it(
    source: str, values: dict[str, str], html: bool
) -> None:
    try:
        form = MergeTemplate("part", source, html=html)
    except LetterError:
        return  # what the pieces make together does not compile
    # The same template, and a tag that does nothing but need minijinja.
    by_minijinja = MergeTemplate("part", "{% if false %}{% endif %}" + source, html=html)

    try:
        expected = by_minijinja.render_encoded(values)
    except LetterError as refused:
        with pytest.raises(LetterError, match=re.escape(str(refused))):
            form.render_encoded(values)
    else:
        assert form.render_encoded(values) == expected
        plain = {name: one for name, value in values.items() if (one := plain_segment(value))}
        assert b"".join(form.segments(values, plain)) == expected.encode("ascii")
        assert b"".join(by_minijinja.segments(values, plain)) == expected.encode("ascii")


@pytest.mark.parametrize(
    "value", ["", "x ", "a=b", "<", ">", "&", "'", '"', "é", "\t", "x" * 76, ".", ".x"]
)
def test_what_is_written_in_several_ways_is_not_plain(value: str) -> None:
    assert plain_segment(value) is None


@given(st.text(st.characters(max_codepoint=200), max_size=80))
def test_a_plain_value_is_written_in_every_letter_as_it_is(value: str) -> None:
    if (segment := plain_segment(value)) is not None:
        for html in (False, True):
            written = MergeTemplate("part", "{{ v }}", html=html).render_encoded({"v": value})
            assert written.encode("ascii") == segment


def test_a_letter_of_text_and_fields_is_filled_without_minijinja(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    form = MergeTemplate("part", "Dear {{ name | default('reader') }},\n{# hers #}{{ link }}\n")
    richer = MergeTemplate("part", "Dear {{ name | title }},\n")

    def asked(*_: object) -> str:
        raise AssertionError("minijinja was asked")

    monkeypatch.setattr(MergeTemplate, "_render", asked)

    assert form.render_encoded({"link": "x"}) == "Dear=20=\r\nreader=\r\n,\r\nx=\r\n\r\n"
    with pytest.raises(AssertionError):
        richer.render_encoded({"name": "ada"})


def test_a_form_that_grows_beyond_a_megabyte_is_refused() -> None:
    form = MergeTemplate("part", "{{ name }}" * (LARGEST_OUTPUT // LONGEST_VALUE + 2))

    with pytest.raises(LetterError, match="1024 KB"):
        form.render_encoded({"name": "x" * LONGEST_VALUE})


# ------------------------------------------------------------------------------------ values (T4)


@pytest.mark.parametrize("name", ["<img src=x onerror=1>", "\"' onclick='x", "</title><script>"])
def test_a_name_is_text_in_html_and_itself_in_text(name: str) -> None:
    written = render("<p title='{{ name }}'>{{ name }}</p>", html=True, name=name)

    assert name not in written
    assert not {"<img", "<script", "' onclick"} & {written[i : i + 8] for i in range(len(written))}
    assert written.count("<") == 2
    assert render("{{ name }}", name=name) == name


def test_no_template_can_take_escaping_off() -> None:
    for source in ("{{ name | safe }}", "{% autoescape false %}{{ name }}{% endautoescape %}"):
        with pytest.raises(LetterError):
            render(source, html=True, name="<b>")


@pytest.mark.parametrize(
    "address", ["https://example.org/?a=1&b=2", "HTTP://example.org", "mailto:a@example.org"]
)
def test_the_url_filter_keeps_web_and_mail_addresses(address: str) -> None:
    assert url_filter(address) == address


@pytest.mark.parametrize(
    "address",
    [
        "javascript:alert(1)",
        " javascript:alert(1)",
        "JaVaScRiPt:x",
        "java\nscript:x",
        "data:text/html,x",
    ]
    + [
        "vbscript:x",
        "//evil.example",
        "/path",
        "example.org",
        "",
        "https://a b",
        'https://a"onclick="x',
    ]
    + ["https://a\r\nBcc: x", "\x00https://a.example", "file:///etc/passwd"],
)
def test_the_url_filter_makes_nothing_of_everything_else(address: str) -> None:
    assert url_filter(address) == ""
    assert render('<a href="{{ link | url }}">', html=True, link=address) == '<a href="">'


def test_default_stands_in_for_what_is_missing() -> None:
    assert render("Dear {{ first_name | default('reader') }},") == "Dear reader,"
    assert render("Dear {{ first_name | default('reader') }},", first_name="Ada") == "Dear Ada,"
    assert render("Dear {{ first_name }},") == "Dear ,"


def test_values_that_are_no_strings_read_as_a_person_writes_them() -> None:
    assert render("{{ true }} {{ false }} {{ none }} {{ 3 }} {{ 2.5 }}") == "true false  3 2.5"


# ------------------------------------------------------------------------------- the fence (T3)


@pytest.mark.parametrize(
    "source",
    [
        "{{ debug() }}",
        "{{ range(10) }}",
        "{{ dict(a=1) }}",
        "{{ namespace() }}",
        "{{ cycler('a') }}",
        "{{ lipsum() }}",
        "{{ name.upper() }}",
        "{{ name.__class__.__mro__ }}",
        "{{ ''.join(name) }}",
        "{% include 'settings.py' %}",
        "{% extends 'settings.py' %}",
        "{% import 'os' as os %}",
        "{% from 'os' import environ %}",
        "{{ name | replace('a', 'b') }}",
        "{{ name | format }}",
        "{{ name | tojson }}",
        "{{ [1] | map('upper') }}",
    ],
)
def test_what_is_not_needed_is_not_there(source: str) -> None:
    with pytest.raises(LetterError):
        render(source, name="Ada")


FILTERS_OF_MINIJINJA = """
    abs attr batch bool capitalize center chain count d default dictsort e escape filesizeformat
    first float format groupby indent int items join last length lines list lower map max min
    pluralize pprint random reject rejectattr replace reverse round safe select selectattr slice
    sort split string striptags sum title tojson trim truncate unique upper urlencode wordcount
    wordwrap xmlattr zip
"""
FILTERS_OF_OURS = """
    abs capitalize count d default e escape first float int last length lower round title trim
    upper url urlencode
"""


def test_the_filters_are_exactly_those_that_the_readme_names() -> None:
    def is_there(name: str) -> bool:
        try:
            render(f"{{{{ name | {name} }}}}", name="1")
        except LetterError as error:
            return "unknown filter" not in str(error)
        return True

    there = {name for name in [*FILTERS_OF_MINIJINJA.split(), "url"] if is_there(name)}
    assert there == set(FILTERS_OF_OURS.split())


def test_an_endless_loop_runs_out_of_fuel() -> None:
    loop = "{% for a in 'x' * 1000 %}" * 4 + "x" + "{% endfor %}" * 4

    with pytest.raises(LetterError, match="fuel"):
        render(loop)


def test_a_letter_that_grows_beyond_a_megabyte_is_refused() -> None:
    with pytest.raises(LetterError, match="1024 KB"):
        render("{{ name }}" * (LARGEST_OUTPUT // LONGEST_VALUE + 2), name="x" * LONGEST_VALUE)


def test_an_error_names_the_part_and_the_line() -> None:
    with pytest.raises(LetterError, match="HTML, line 3: "):
        MergeTemplate("HTML", "a\nb\n{{ name.first.second }}").render_encoded({})


# ---------------------------------------------------------------------- bombs, in the child process


def bomb(html: str) -> Manuscript:
    return Manuscript(subject="s", preheader="", html=html[:200_000], text="")


BOMBS = {
    "doubling": "{% set a = 'xxxxxxxxxx' %}" + "{% set a = a ~ a %}" * 30 + "{{ a }}",
    "doubling-what-is-long": "{% set a = name %}" + "{% set a = a ~ a %}" * 20 + "{{ a | length }}",
    "product": "{{ 'x' * 10000000000 }}",
    "two-products": "{% set a = 'x' * 300000000 %}{% set b = a ~ a %}{{ b | length }}",
    "loops": "{% for a in 'x' * 100000 %}" * 5 + "{% endfor %}" * 5,
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "brackets": "{{ " + "(" * 50_000 + "1" + ")" * 50_000 + " }}",
    "not-not-not": "{{ " + "not " * 40_000 + "1 }}",
    "long-chain": "{{ a" + ".b" * 90_000 + " }}",
    "nested-elements": "<div>" * 40_000,
    "unclosed-tags": "<a " * 60_000,
    "unclosed-comments": "<!--" * 50_000,
    "power": "{{ 9 ** 9 ** 9 }}",
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_ends_in_an_error_and_this_process_lives(name: str) -> None:
    with pytest.raises(LetterError):
        typeset(bomb(BOMBS[name]))

    assert typeset(bomb("<p>still here</p>")).text == "still here\n"


def test_no_template_can_read_an_environment_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_KEY", "planted-secret")

    ready = typeset(bomb("<p>{{ SECRET_KEY }}{{ environ }}{{ self }}</p>"))

    for part in (ready.html, ready.text):
        assert "planted-secret" not in render(part)
