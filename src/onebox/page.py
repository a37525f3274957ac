"""What all pages have in common: one file that opens from disk, one style, and a policy under which no data can run."""

import base64
import functools
import hashlib
import re
from collections.abc import Sequence
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

PLOTLY = ("plotly", "package_data/plotly.min.js")
# What would steer a terminal that prints the page, or the order in which a text is read.
STEERING = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
SIDE, QUALITY = 200, 75  # of a picture: px of its longer side, JPEG


@functools.cache
def environment(package: str) -> Environment:
    """Where the templates of a package come from; each is compiled once in a process."""
    loader = ChoiceLoader([PackageLoader(package, "."), PackageLoader("onebox", ".")])
    made = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=_shown
    )
    made.policies["json.dumps_kwargs"] = {"allow_nan": False}
    return made


def render(
    package: str, template: str, *, scripts: Sequence[tuple[str, str]] = (), data: Any = None, **values: Any
) -> str:
    """A page from a template that extends `page.html`.

    Args:
        package: has the template.
        template: its name.
        scripts: package and file of each script, in the order in which they run; no other script can.
        data: what the scripts read from the element `data`: plain, without NaN.
        values: of the template, which escapes them.
    """
    texts = [files(name).joinpath(file).read_text(encoding="utf-8") for name, file in scripts]
    digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in texts]
    may_run = " ".join(f"'sha256-{digest}'" for digest in digests) or "'none'"
    policy = f"default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; script-src {may_run}"
    values |= {"policy": policy, "scripts": [Markup(text) for text in texts], "data": data}
    page = environment(package).get_template(template).render(values)
    return page.encode(errors="replace").decode()  # what is no text, as in names of files, cannot be written


def _shown(value: Any) -> Any:
    return STEERING.sub("\ufffd", value) if type(value) is str else value


def picture(image: "NDArray[np.uint8]") -> str:
    """A small picture of an image, [H, W, 3] RGB, as a page holds it: a data URI."""
    import cv2

    scale = min(1.0, SIDE / max(image.shape[:2]))
    size = [max(1, round(length * scale)) for length in image.shape[1::-1]]
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    _, jpeg = cv2.imencode(".jpg", small[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg.tobytes()).decode()}"
