"""README and docs: links resolve, commands name jobs and options that exist, README stays short."""

import importlib
import re
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import get_type_hints

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "SECURITY.md",
    ROOT / "caan" / "starter" / "MODEL_CARD.md",
    *sorted((ROOT / "docs").glob("*.md")),
]


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.strip().replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_lead_to_files_and_headings(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.name}: {target}"
        assert not anchor or anchor in anchors(file), f"{page.name}: {target}"


def options(kind: type, prefix: str = "") -> set[str]:
    """Names of the options of a dataclass, nested ones with a dot."""
    hints = get_type_hints(kind)
    names = set()
    for field in fields(kind):
        name = prefix + field.name.replace("_", "-")
        names |= {name, name.replace("-", "_")}
        if is_dataclass(hints[field.name]):
            names |= options(hints[field.name], f"{name}.")
    return names


COMMANDS = [
    (page.name, command)
    for page in PAGES
    for command in re.findall(
        r"python -m jobs\.([a-z]+ [^`\n|]*(?:\\\n[^`\n|]*)*)", page.read_text()
    )
]


@pytest.mark.parametrize(("page", "command"), COMMANDS, ids=lambda text: text[:40])
def test_commands_name_options_that_exist(page: str, command: str) -> None:
    name, *words = command.split("#")[0].split()
    module = importlib.import_module(f"jobs.{name}")
    kinds = [module.Job]
    if name == "annotate":
        kinds = [getattr(module, f"{words.pop(0).title()}Job")]
    known = {option for kind in kinds for option in options(kind)} | {"help", "help-all"}
    for option in (word[2:] for word in words if re.match(r"--[a-z]", word)):
        assert option in known, f"{page}: jobs.{name} has no --{option}"


def test_readme_is_short() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 120
    assert len(text.split()) <= 1200
