"""The pictures in docs/ are those that `python -m tests.pictures` takes."""

import re

from tests.pictures import DEMO_VIEWS, FOLDER, MANY_VIEWS, WIDTHS
from tests.view.browsing import TABS


def test_docs_have_every_picture_and_no_other() -> None:
    views = [("demo", name) for name in DEMO_VIEWS] + [("many", name) for name in MANY_VIEWS]
    names = {f"{of}_{name}_{width}.png" for of, name in views for width in WIDTHS}
    assert {path.name for path in FOLDER.iterdir()} == names
    assert {path.split("?")[0] for path in DEMO_VIEWS.values()} == set(TABS)
    shown = re.findall(r"pictures/(\w+\.png)", (FOLDER.parent / "app.md").read_text())
    assert shown and set(shown) <= names
