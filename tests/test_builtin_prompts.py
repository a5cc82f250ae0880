"""The built-in prompts: enough, varied, and each fit to be continued."""

from itertools import combinations

import pytest

from specdec.data.sources import BUILTIN_TEMPLATES, load_texts, parse_source


def builtin_texts(domain):
    return load_texts(parse_source(domain, "builtin"), warn=print).texts


def five_grams(text):
    words = text.split()
    return {tuple(words[i : i + 5]) for i in range(len(words) - 4)}


@pytest.mark.parametrize("domain", BUILTIN_TEMPLATES)
def test_there_are_fifty_built_in_prompts_a_domain_no_two_alike(domain):
    fields = [text.field for text in builtin_texts(domain)]
    assert len(fields) == len(set(fields)) == 50
    for a, b in combinations(map(five_grams, fields), 2):
        assert len(a & b) <= 0.6 * max(1, min(len(a), len(b)))


@pytest.mark.parametrize(
    ("domain", "shortest", "longest"),
    [("code", 20, 70), ("conversation", 10, 45), ("summarization", 100, 200)],
)
def test_built_in_prompts_vary_in_length(domain, shortest, longest):
    words = sorted(len(text.field.split()) for text in builtin_texts(domain))
    assert words[0] < shortest and words[-1] > longest


def test_built_in_code_ends_where_a_body_begins():
    for text in builtin_texts("code"):
        last_line = text.prompt.rstrip("\n").rpartition("\n")[2]
        indent = " " * (len(last_line) - len(last_line.lstrip()) + 4 * last_line.endswith(":"))
        assert text.prompt.endswith("\n")
        compile(f"{text.prompt}{indent}pass\n", "prompt", "exec")


def test_a_built_in_article_is_followed_by_the_request():
    for text in builtin_texts("summarization"):
        assert text.prompt == f"{text.field}\n\nSummarize the above article:"
