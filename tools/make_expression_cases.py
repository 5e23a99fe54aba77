"""Writes tests/data/template_expressions.json: string methods and formats in templates, and what Python's jinja2 makes of them.

    pip install jinja2==3.1.6
    python3 tools/make_expression_cases.py

Where jinja2 raises, so must we; the message is not compared.
"""
import json
from pathlib import Path

from jinja2.sandbox import ImmutableSandboxedEnvironment

METHODS = {
    "upper": ["'aßé1'.upper()"],
    "title": ["'the quick  brown-fox'.title()", "'ABC dEF'.capitalize()", "''.capitalize()", "'aBc1'.swapcase()"],
    "strip": [
        "'  x y \\n'.strip()", "'  x '.lstrip()", "'  x '.rstrip()", "'xxaxx'.strip('x')", "'abcba'.lstrip('ab')",
        "'abcba'.rstrip('ab')", "'x'.strip(none)", "''.strip()", "'x'.strip(1)",
    ],
    "starts": [
        "'abc'.startswith('ab')", "'abc'.startswith(('x', 'a'))", "'abc'.endswith('bc')", "'abc'.endswith(('x', 'y'))",
        "'abc'.startswith(1)", "'abc'.endswith(none)",
    ],
    "split": [
        "'a b  c '.split()", "'a b  c '.split(none, 1)", "'a,b,c'.split(',')", "'a,b,c'.split(',', 1)",
        "'a,b,c'.split(',', maxsplit=1)", "'a,b'.split(sep=',')", "''.split()", "''.split(',')", "'a'.split('')",
        "'a b c'.rsplit(none, 1)", "'a b c'.rsplit()", "'a,b,c'.rsplit(',', 1)", "'a,b,c'.rsplit(',')",
        "'a,b,c'.rsplit(',', 9)", "'a b c'.rsplit(none, 9)", "'a,b'.split(1)", "'a,b'.split(',', 'x')",
        "'a\\nb\\r\\nc'.splitlines()", "'a\\nb\\n'.splitlines(true)", "''.splitlines()",
    ],
    "replace": [
        "'aaa'.replace('a', 'b')", "'aaa'.replace('a', 'b', 2)", "'abc'.replace('', '-')", "'aaa'.replace('a', 'b', 0)",
        "'aaa'.replace('x', 'b')", "'aaa'.replace('a')", "'aaa'.replace(1, 'b')",
    ],
    "find": [
        "'abcabc'.find('c')", "'abcabc'.rfind('c')", "'abc'.find('x')", "'😀bc'.find('c')", "'abcabc'.index('b')",
        "'abcabc'.rindex('b')", "'abc'.index('x')", "'abc'.rindex('x')", "'ababa'.count('a')", "'abc'.count('')",
        "'😀b'.rfind('b')",
    ],
    "join": ["'-'.join(['a', 'b'])", "'-'.join('abc')", "'-'.join([1])", "''.join([])", "'-'.join(('x',))"],
    "is": [
        "'12'.isdigit()", "'1a'.isdigit()", "''.isdigit()", "'½'.isnumeric()", "'12'.isdecimal()", "'ab'.isalpha()",
        "'a1'.isalpha()", "'a1'.isalnum()", "'a-'.isalnum()", "' \\t'.isspace()", "''.isspace()", "'AB1'.isupper()",
        "'Ab'.isupper()", "'1'.isupper()", "'ab1'.islower()", "'aB'.islower()",
    ],
    "fill": [
        "'7'.zfill(3)", "'-7'.zfill(4)", "'+7'.zfill(4)", "'1234'.zfill(2)", "'x'.ljust(4) + '|'", "'x'.ljust(4, '.')",
        "'x'.rjust(4, '.')", "'x'.rjust(4)", "'xyz'.rjust(2)", "'x'.center(4, '*')", "'xy'.center(5, '*')",
        "'x'.center(4) + '|'", "'xyz'.center(2)", "'x'.ljust('y')", "'x'.ljust(3, 1)",
    ],
    "partition": [
        "'a=b=c'.partition('=')", "'abc'.partition('=')", "'a=b=c'.rpartition('=')", "'abc'.rpartition('=')",
        "'abc'.removeprefix('ab')", "'abc'.removeprefix('x')", "'abc'.removesuffix('bc')", "'abc'.removesuffix('x')",
        "'abc'.removesuffix('')",
    ],
    "format": [
        "'{} {}'.format('a', 1)", "'{1}{0}'.format('a', 'b')", "'{x}'.format(x=2)", "'{{}}'.format()", "'{:>5}|'.format('a')",
        "'{:<5}|'.format('a')", "'{:^5}|'.format('a')", "'{:*^6}|'.format('a')", "'{:5}|'.format('a')", "'{:5}|'.format(1)",
        "'{:05}'.format(42)", "'{:.2f}'.format(2.675)", "'{:.2f}'.format(0.125)", "'{:.0f}'.format(2.5)",
        "'{:.0f}'.format(3.5)", "'{:.2f}'.format(3)", "'{:.3}'.format('abcdef')", "'{!r}'.format('a')", "'{}'.format()",
        "'{x}'.format()", "'{:d}'.format(3)", "'{:8.3f}|'.format(3.14159)", "'{:s}'.format('x')", "'{}'.format(true)",
        "'{}'.format(none)", "'{}'.format([1, 'a'])",
    ],
    "percent": [
        "'%s and %s' % ('a', 1)", "'%d' % 3.7", "'%05d' % 42", "'%5s|' % 'a'", "'%.2f' % 2.5", "'%.1f' % 0.25", "'%r' % 'a'",
        "'%%' % ()", "'%s' % ('a', 'b')", "'%s %s' % 'a'", "'%(x)s' % {'x': 5}", "'%i' % 4", "'%s' % none", "'%6.2f|' % 3.14159",
    ],
    "missing": ["'a'.nothing()", "'a'.nothing is defined", "'a'.upper is callable", "'ab' * 3", "'ab' * 0"],
}


def main() -> None:
    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    cases = []
    for expression in [each for group in METHODS.values() for each in group]:
        template = "{{ " + expression + " }}"
        try:
            cases.append({"template": template, "text": env.from_string(template).render()})
        except Exception as error:  # Whatever Python raises is what a template would meet.
            cases.append({"template": template, "error": type(error).__name__})
    target = Path(__file__).resolve().parent.parent / "tests/data/template_expressions.json"
    target.write_text(json.dumps(cases, ensure_ascii=True, indent=1) + "\n")
    print(f"{len(cases)} expressions, {sum('error' in case for case in cases)} of them raise")


main()
