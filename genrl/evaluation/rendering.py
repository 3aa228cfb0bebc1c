"""Pages as one file: a template with the style sheet, the script and the pictures inside, and a policy that lets nothing else run.

The Content-Security-Policy names the hash of the one script, so markup that slips into a prompt, a label or a configuration stays dead
even if escaping failed; nothing may be loaded, not even from the same folder.
"""

from __future__ import annotations

import base64
import hashlib
import os
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from genrl.evaluation import plots
from genrl.evaluation.pictures import Album

PAGES = Path(__file__).parent / "pages"
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{}'; base-uri 'none'; form-action 'none'"


def write(target: Path, template: Path, context: dict[str, Any], album: Album) -> Path:
    """Render ``template``, which may extend and import what lies in ``pages``, and put it at ``target`` whole or not at all."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([template.parent, PAGES]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": plots.number,
        "fine": plots.fine,
        "signed": plots.signed,
        "count": plots.count,
        "duration": plots.duration,
        "percent": plots.percent,
        "size": plots.size,
    }
    script = (PAGES / "page.js").read_text(encoding="utf-8")
    frame = {
        "style": Markup((PAGES / "style.css").read_text(encoding="utf-8")),
        "script": Markup(script),
        "policy": Markup(POLICY.format(base64.b64encode(hashlib.sha256(script.encode()).digest()).decode())),
        "album": album.entries,
    }
    draft = target.with_suffix(".html.part")
    draft.write_text(environment.get_template(template.name).render(context | frame), encoding="utf-8")
    os.replace(draft, target)
    return target
