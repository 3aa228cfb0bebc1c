"""The shapes world: captioned 64x64 pictures, an exact judge, a tiny SD3 pipeline and five proxy rewards, all inside the package."""

from pathlib import Path

ASSETS = Path(__file__).parent / "assets"
"""Folder of what ``genrl.worlds.shapes.build`` made."""
PIPELINE = ASSETS / "pipeline"
"""A diffusers folder: ``StableDiffusion3Pipeline.from_pretrained(PIPELINE)`` draws."""
PIPELINE_SDXL = ASSETS / "pipeline_sdxl"
"""The same of a ``StableDiffusionXLPipeline``."""
PIPELINES = {"shapes": PIPELINE, "shapes_sdxl": PIPELINE_SDXL}
"""Name in a config -> folder."""
