"""AC-Flow on the shapes world, three seeds: the numbers and the picture that README shows.

    python benchmarks/acflow_shapes.py                    # the demo's config, seeds 0 1 2
    python benchmarks/acflow_shapes.py --config shapes_full --seeds 0
    python benchmarks/acflow_shapes.py --table           # only write the table from the committed results

Runs live in ``runs/`` and are resumed or reused. Writes ``benchmarks/results/<config>.json`` and the table of docs/results.md.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

from _results import RESULTS, ROOT, provenance, save, spread, train, write_table
from PIL import Image, ImageDraw

FIGURES = ("judge_before", "judge_after", "judge_gain", "diversity_kept", "w2", "wall_s")


def one(config: str, seed: int) -> dict:
    """Run a seed, or take it from a finished run folder."""
    folder = ROOT / "runs" / f"bench_{config}_seed{seed}"
    train("ac_flow", ROOT / "configs" / "ac_flow" / f"{config}.yaml", folder, seed)
    summary = json.loads((folder / "summary.json").read_text())
    summary["diversity_kept"] = summary["diversity_after"] / summary["diversity_before"]
    versions = provenance(folder, f"python benchmarks/acflow_shapes.py --config {config}")
    return {"seed": seed, "summary": summary, "versions": versions}


def picture(config: str, seed: int, path: Path) -> None:
    """Before and after at the same seeds: two prompts of each category, the first of each in the held-out file; nothing is chosen."""
    folder = ROOT / "runs" / f"bench_{config}_seed{seed}" / "evaluations"
    ends = sorted(p for p in folder.glob("round-*") if p.is_dir())
    before, after = ends[0], ends[-1]
    prompts = json.loads(folder.joinpath(before.name + ".json").read_text())["prompts"]
    shown = [i for c in dict.fromkeys(p["category"] for p in prompts) for i in [k for k, p in enumerate(prompts) if p["category"] == c][:2]]
    edge, text, columns = 128, 34, 6
    rows = math.ceil(len(shown) / columns)
    sheet = Image.new("RGB", (columns * (edge + 8), rows * (2 * edge + text + 12)), "white")
    pen = ImageDraw.Draw(sheet)
    for place, index in enumerate(shown):
        x, y = (place % columns) * (edge + 8), (place // columns) * (2 * edge + text + 12)
        for row, source in enumerate((before, after)):
            sheet.paste(Image.open(source / f"{index:05d}-0.png").resize((edge, edge), Image.Resampling.BICUBIC), (x, y + row * (edge + 2)))
        words, lines = prompts[index]["prompt"].split(), [""]
        for word in words:
            if len(lines[-1]) + len(word) > 21:
                lines.append("")
            lines[-1] = (lines[-1] + " " + word).strip()
        pen.multiline_text((x + 2, y + 2 * edge + 6), "\n".join(lines[:3]), fill="black", font_size=10, spacing=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, optimize=True)


def table() -> str:
    """The table, from the committed result files."""
    lines = [
        "| config | seeds | judge before | judge after | gain, 95 % interval | diversity of layouts kept | minutes of rounds |",
        "|---|---|---|---|---|---|---|",
    ]
    for path in sorted(RESULTS.glob("shapes*.json")):
        result = json.loads(path.read_text())
        f, rows = result["figures"], result["rows"]
        low, high = f["judge_gain"]["ci95"] or rows[0]["summary"]["judge_gain_ci95"]
        over = "over seeds" if f["judge_gain"]["ci95"] else "over prompts"
        mean = {name: figure["mean"] for name, figure in f.items()}
        lines.append(
            f"| `{path.stem}` | {len(rows)} | {mean['judge_before']:.3f} | {mean['judge_after']:.3f} "
            f"| {mean['judge_gain']:+.3f} [{low:+.3f}, {high:+.3f}] {over} | {mean['diversity_kept']:.0%} | {mean['wall_s'] / 60:.1f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="shapes")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    if not args.table:
        rows = [one(args.config, seed) for seed in args.seeds]
        figures = {name: spread([row["summary"][name] for row in rows]) for name in FIGURES}
        save(RESULTS / f"{args.config}.json", {"figures": figures, "seeds": args.seeds, "rows": rows})
        if args.config == "shapes":
            picture(args.config, args.seeds[0], ROOT / "docs" / "images" / "demo.png")
    write_table("acflow_shapes", table())


if __name__ == "__main__":
    main()
