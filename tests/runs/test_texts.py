"""The texts that TensorBoard shows."""

import warnings
from html import unescape

from onebox.runs.results import SHOWN
from onebox.runs.texts import result_table

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # of its own copy of html5lib
    from tensorboard.plugin_util import markdown_to_safe_html


def test_a_class_is_shown_as_it_is_called_whatever_that_is():
    row = dict.fromkeys(SHOWN, 0.5)
    names = ["<script>alert(1)</script>", "a|b", "*bold*", "[link](http://x)"]
    html = markdown_to_safe_html(result_table(row, row, {name: {"images": 3, **row} for name in names}))
    assert "<script" not in html and "<a " not in html and "<em>" not in html
    assert all(f"<td>{name}</td>" in unescape(html) for name in names)
    assert html.count("<tr>") == 2 + len(SHOWN) + len(names)
