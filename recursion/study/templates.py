"""The templates of a report: ``sentences.j2`` has its sentences, ``page.html.j2`` its page."""

import math
import re
from functools import cache
from importlib.resources import files

from jinja2 import Environment, FunctionLoader, StrictUndefined

from recursion.study import words
from recursion.study.sensitivity import WITHIN

GAPS = re.compile(r"\s+(?=[.,;:)](?:[\s.,;]|$))")  # in front of a mark


@cache
def environment() -> Environment:
    """Jinja with the words of a report as filters; only pages are escaped."""
    jinja = Environment(
        loader=FunctionLoader(lambda name: files("recursion.study").joinpath(name).read_text()),
        autoescape=lambda name: name == "page.html.j2",
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    jinja.filters |= {name: getattr(words, name) for name in words.__all__}
    jinja.tests["match"] = lambda text, pattern: re.match(pattern, text) is not None
    jinja.globals |= {"say": say, "infinity": math.inf, "within": WITHIN}
    return jinja


def say(name: str, *subjects: object) -> str:
    """The sentence that is called so, about these findings; empty if there is nothing to say."""
    text = getattr(environment().get_template("sentences.j2").module, name)(*subjects)
    return GAPS.sub("", " ".join(str(text).split()))
