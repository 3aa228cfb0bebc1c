"""Build everything that ships with the shapes world, from nothing but this package: ``python -m genrl.worlds.shapes.build``.

Stages, in order, each resumed where it stopped when the command is run again:

``prompts``     the train and held-out prompt sets (JSON lines)
``tokenizers``  two small BPE vocabularies in CLIP's format
``vae``         AutoencoderKL, 8x, 16 channels
``flow``        SD3Transformer2DModel and two CLIP text encoders, trained together by flow matching
``proxies``     five tiny CLIPs (open_clip), different seeds and halves of the data
``sdxl``        UNet2DConditionModel, trained to predict noise beside the frozen encoders and autoencoder of ``flow``

Weights are written as safetensors, float16 but for the text encoders, into ``genrl/worlds/shapes/assets``; what is
unfinished lives in ``--work``. Two cores need a little over two hours. Seeds are fixed; another machine or thread count rounds
differently and so ends at other, equally good weights.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from genrl.worlds.shapes import ASSETS
from genrl.worlds.shapes.captions import CATEGORIES, prompt_sets, prompt_text, targets

STAGES = ("prompts", "tokenizers", "vae", "flow", "proxies", "sdxl")
TOKENS = 18
"""Length of a prompt in tokens, both encoders: the longest caption has seventeen."""


def build_prompts(assets: Path) -> None:
    folder = assets / "prompts"
    folder.mkdir(parents=True, exist_ok=True)
    for name, records in prompt_sets().items():
        lines = [json.dumps(record, separators=(",", ":")) for record in records]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")


def build_tokenizers(assets: Path) -> None:
    """Two tokenizers with vocabularies of different size: the second splits rare words, as SD3's two encoders disagree too."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    texts = [
        prompt_text(target, "a picture drawing image painting print of an ") for category in CATEGORIES for target in targets(category)
    ]
    texts += ["some several many"] * 200
    for folder, size in (("tokenizer", 2000), ("tokenizer_2", 142)):
        bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
        bpe.pre_tokenizer = pre_tokenizers.Whitespace()
        letters = list("abcdefghijklmnopqrstuvwxyz")
        trainer = trainers.BpeTrainer(
            vocab_size=size,
            special_tokens=["<|startoftext|>", "<|endoftext|>"],
            end_of_word_suffix="</w>",
            initial_alphabet=letters,
            show_progress=False,
        )
        bpe.train_from_iterator(texts, trainer)
        model = json.loads(bpe.to_str())["model"]
        tokenizer = CLIPTokenizer(vocab=model["vocab"], merges=[tuple(pair) for pair in model["merges"]], model_max_length=TOKENS)
        tokenizer.save_pretrained(assets / "pipeline" / folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES)
    parser.add_argument("--assets", type=Path, default=ASSETS, help="where the finished files go")
    parser.add_argument("--work", type=Path, default=Path("build/shapes"), help="unfinished training states")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    for stage in args.stages:
        print(f"-- {stage}", flush=True)
        if stage == "prompts":
            build_prompts(args.assets)
        elif stage == "tokenizers":
            build_tokenizers(args.assets)
        elif stage == "vae":
            from genrl.worlds.shapes.pretrain import build_vae

            build_vae(args.assets, args.work)
        elif stage == "flow":
            from genrl.worlds.shapes.pretrain import build_flow

            build_flow(args.assets, args.work)
        elif stage == "proxies":
            from genrl.worlds.shapes.proxies import build_proxies

            build_proxies(args.assets, args.work)
        else:
            from genrl.worlds.shapes.pretrain_sdxl import build_sdxl

            build_sdxl(args.assets, args.work)


if __name__ == "__main__":
    main()
