"""What the site adds to the pages: tables of settings from the configs, and links to files outside of docs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

CONFIGS = Path(__file__).parents[1] / "bundle" / "configs"
# top-level keys with a plain value; what is built from them begins with $ or @
SETTING = re.compile(
    r"^(?P<key>[a-z]\w*): +(?P<value>[^$@\s\"#][^#\n]*?|\"[^$@\"\n]*\")(?: +# (?P<meaning>.*))?$", re.MULTILINE
)


def settings_tables() -> str:
    """Return a table of keys, defaults and meanings for each config that has some."""
    parts = []
    for path in sorted(path for path in CONFIGS.glob("*.yaml") if not path.is_symlink()):
        rows = [match.groupdict() for match in SETTING.finditer(path.read_text(encoding="utf-8"))]
        if rows:
            cells = [f"| `{r['key']}` | `{r['value']}` | {r['meaning'] or ''} |".replace("`''`", "") for r in rows]
            parts += [f"\n## {path.name}\n", "| key | default | meaning |", "|---|---|---|", *cells]
    return "\n".join(parts) + "\n"


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Fill in the settings, and show links out of docs/ as names: they lead nowhere from the site."""
    if page.file.src_path == "settings.md":
        markdown += settings_tables()
    return re.sub(r"(?<!!)\[([^\]]*)\]\((?:\.\./)+(?!\w+\.md)[^)]*\)", r"\1", markdown)
