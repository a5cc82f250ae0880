"""The formulas of docs/speculative_decoding_theory.md, written from the document.

Independent of the engine's own (`specdec.analysis.theory`, `specdec.method.rule`), which are
checked against these. A row is a dict of word to probability; with fractions in, all but the
searches are exact.
"""

from fractions import Fraction
from math import ceil, floor  # noqa: F401 (for the document's expressions)


def tau(a, k):
    return (1 - a ** (k + 1)) / (1 - a) if a != 1 else k + 1


def tau_within(a, k, n):
    a = float(a)
    rounds = [0]
    for left in range(1, int(n) + 1):
        chances = [a**j * (1 - a) for j in range(int(k))] + [a**k]
        rounds.append(1 + sum(p * rounds[max(0, left - j - 1)] for j, p in enumerate(chances)))
    return n / rounds[-1]


def speedup(a, k, c, v=1, h=0, h0=0):
    return tau(a, k) * (1 + h0) / (k * c + v + h)


def simple(accepted, draft_share):
    return (accepted + 1) / (1 + draft_share)


def break_even(k, c, v=1, h=0):
    low, high = 0.0, 1.0
    c, v, h = float(c), float(v), float(h)
    if speedup(high, k, c, v, h) <= 1:
        return "none"
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if speedup(middle, k, c, v, h) > 1 else (middle, high)
    return high


def best_k(a, c, candidates):
    return max(candidates, key=lambda k: speedup(float(a), k, float(c)))


def up_to(n):
    return range(1, int(n) + 1)


def verify_ratio(batch, k, ridge):
    """A pass takes the longer of reading (1) and computing (rows ÷ ridge)."""
    return max(1, batch * (k + 1) / ridge) / max(1, batch / ridge)


def overlap(p, q):
    return sum(min(p[x], q[x]) for x in p)


def excess(p, q):
    return {x: max(p[x] - q[x], Fraction(0)) for x in p}


def total(row):
    return sum(row.values())


def residual(p, q):
    rest = excess(p, q)
    return {x: rest[x] / total(rest) for x in rest}


def dot(p, q):
    return sum(p[x] * q[x] for x in p)


def distance(p, q):
    return sum(abs(p[x] - q[x]) for x in p) / 2


def warped(p):
    """Temperature 0.5: probabilities squared."""
    return {x: p[x] ** 2 / sum(y**2 for y in p.values()) for x in p}


def coupled(p, q):
    """P(two Gumbel maxima with the same noise agree): the draws are races of exponentials."""
    return sum(1 / sum(max(p[y] / p[x], q[y] / q[x]) for y in p) for x in p)


def invert(row, uniform):
    for word, (_, end) in intervals(row).items():
        if uniform < end:
            return word


def intervals(row):
    """The part of [0, 1) that each word is drawn from."""
    ends, start = {}, Fraction(0)
    for word, weight in row.items():
        ends[word] = (start, start + weight)
        start += weight
    return ends


def scored_soft(p, q):
    """Mistake: the draft takes its most likely word, the rule believes it was drawn from q."""
    word = max(q, key=q.get)
    kept = min(Fraction(1), p[word] / q[word])
    return {x: kept * (x == word) + (1 - kept) * residual(p, q)[x] for x in p}


def uniform_reused(p, q):
    """Mistake: one uniform draws the draft's word and, if that is refused, the replacement."""
    out = {x: min(p[x], q[x]) for x in p}
    for drafted, (start, end) in intervals(q).items():
        refused = 1 - min(Fraction(1), p[drafted] / q[drafted])
        for x, (low, high) in intervals(residual(p, q)).items():
            out[x] += refused * max(Fraction(0), min(end, high) - max(start, low))
    return out


def mean_emitted(p, q, word, k):
    mean = dict.fromkeys(p, Fraction(1))  # with no drafts left: the bonus
    for _ in range(int(k)):
        mean = {w: 1 + sum(min(p[w][x], q[w][x]) * mean[x] for x in p) for w in p}
    return mean[word]


def emitted(p, q, drafted, uniforms, noise):
    """The words of one round after "the", as text."""
    out, last = [], "the"
    for word, u in zip(drafted, uniforms, strict=True):
        if u * q[last][word] > p[last][word]:
            return " ".join([*out, invert(residual(p[last], q[last]), noise)])
        out.append(word)
        last = word
    return " ".join([*out, invert(p[last], noise)])


def with_third(uniforms, u):
    return [*uniforms[:2], u, *uniforms[3:]]


def count(text):
    return len(text.split())
