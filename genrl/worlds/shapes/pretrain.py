"""Pre-training of the shapes world's autoencoder and generator. Run by ``genrl.worlds.shapes.build``."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.progress import Progress
from torch import Tensor, nn

from genrl.path import add_noise, shift, velocity_target
from genrl.worlds.shapes.captions import caption, pair_caption
from genrl.worlds.shapes.scenes import Scene, pair_scene, random_scene, render

SCENES = 24_000
VAE_BATCH = 24
VAE_PHASES = (("vae", 1_400, 2e-3, 5e-4), ("vae_sharp", 1_000, 1e-3, 1e-5))
"""Name, steps, learning rate and KL weight: first a smooth latent space, then sharp and true colours in it."""
FLOW_BATCH = 32


@dataclass(frozen=True)
class FlowPhase:
    """A part of the generator's training, with pictures and a learning-rate cycle of its own.

    Captions are true and complete before step ``careless_from``: the model learns what words mean; from then on they leave out and
    mistake, and it learns to doubt them. ``pairs`` of the pictures are two things of different shape and colour whose relation is
    told; before step ``ordered_until`` only "left of" and "above" are, so that what comes first in the caption stands first in the
    picture. ``above`` of the levels lie in [.75, 1], where places are decided.
    """

    name: str
    steps: int
    careless_from: int
    careless: float = 0.3
    lr: float = 3e-3
    pairs: int = 0
    ordered_until: int = 0
    above: float = 0.0


FLOW_PHASES = (
    FlowPhase("flow", 12_000, 9_000),
    FlowPhase("flow_more", 15_000, 12_000),
    FlowPhase("flow_pairs", 9_000, 7_600, 0.6, 2e-3, pairs=16_000, ordered_until=2_000, above=0.6),
)
T5_TOKENS = 256
"""Zero tokens that diffusers adds for T5 by default. Some training steps carry them, so that plain diffusers draws too."""


def draw_scenes(count: int, seed: int) -> list[Scene]:
    rng = np.random.default_rng(seed)
    return [random_scene(rng) for _ in range(count)]


def train(
    name: str, work: Path, modules: dict[str, nn.Module], steps: int, lr: float, loss_at: Callable[[int], Tensor], ema: float = 0.0
) -> None:
    """Minimise ``loss_at(step)``: AdamW, linear warm-up, cosine decay, clip 1; saved every 250 steps and resumed.

    With ``ema`` the modules hold their moving average in the end.
    """
    path = work / f"{name}.pt"
    parameters = [p for module in modules.values() for p in module.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.01, betas=(0.9, 0.99), fused=True)
    average = {key: copy.deepcopy(module).requires_grad_(False) for key, module in modules.items()} if ema else {}
    start = 0
    if path.exists():
        state = torch.load(path, weights_only=True)
        start = state["step"]
        optimizer.load_state_dict(state["optimizer"])
        for key, module in (*modules.items(), *((f"ema.{k}", m) for k, m in average.items())):
            module.load_state_dict(state["modules"][key])
    with Progress() as progress:
        bar = progress.add_task(name, total=steps, completed=start)
        for step in range(start, steps):
            torch.manual_seed(step)
            scale = min((step + 1) / 100, 0.5 + 0.5 * math.cos(math.pi * step / steps))
            for group in optimizer.param_groups:
                group["lr"] = lr * max(scale, 0.01)
            loss = loss_at(step)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            kept = min(ema, (1 + step) / (10 + step))
            for key, copied in average.items():
                torch._foreach_lerp_(list(copied.parameters()), list(modules[key].parameters()), 1 - kept)
            progress.update(bar, advance=1, description=f"{name} {loss.item():.4f}")
            if (step + 1) % 250 == 0 or step + 1 == steps:
                print(f"{name} step {step + 1}/{steps} loss {loss.item():.4f}", flush=True)
                states = {key: module.state_dict() for key, module in modules.items()}
                states |= {f"ema.{key}": module.state_dict() for key, module in average.items()}
                torch.save({"step": step + 1, "optimizer": optimizer.state_dict(), "modules": states}, path.with_suffix(".tmp"))
                path.with_suffix(".tmp").replace(path)
    for key, copied in average.items():
        modules[key].load_state_dict(copied.state_dict())


def new_vae() -> nn.Module:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 48, 64),
        layers_per_block=1,
        latent_channels=16,
        norm_num_groups=8,
        sample_size=64,
        use_quant_conv=False,
        use_post_quant_conv=False,
        shift_factor=0.0,
        scaling_factor=1.0,
    )


def build_vae(assets: Path, work: Path) -> None:
    torch.manual_seed(0)
    vae = new_vae()

    for phase, (name, steps, lr, kl) in enumerate(VAE_PHASES, start=1):

        def loss_at(step: int, phase: int = phase, kl: float = kl) -> Tensor:
            rng = np.random.default_rng((1, phase, step))
            images = torch.from_numpy(np.stack([render(random_scene(rng)) for _ in range(VAE_BATCH)])) * 2 - 1
            posterior = vae.encode(images).latent_dist
            error = vae.decode(posterior.sample()).sample - images
            return error.abs().mean() + error.square().mean() + kl * posterior.kl().mean() / 1024

        train(name, work, {"vae": vae}, steps, lr, loss_at)
    latents = encode_scenes(vae, draw_scenes(1_000, seed=2))
    vae.register_to_config(shift_factor=round(latents.mean().item(), 4), scaling_factor=round(1 / latents.std().item(), 4))
    vae.half().save_pretrained(assets / "pipeline" / "vae")


@torch.no_grad()
def encode_scenes(vae: nn.Module, scenes: list[Scene]) -> Tensor:
    """Raw posterior means, ``[N, 16, 8, 8]``."""
    chunks = [torch.from_numpy(np.stack([render(s) for s in scenes[i : i + 64]])) for i in range(0, len(scenes), 64)]
    return torch.cat([vae.encode(chunk * 2 - 1).latent_dist.mode() for chunk in chunks])


def new_text_encoder(tokenizer, width: int) -> nn.Module:
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        projection_dim=width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    encoder = CLIPTextModelWithProjection(config)
    # SD3 reads the last but one hidden state, which no norm follows: CLIP's own start (std .02) would be next to silence
    nn.init.normal_(encoder.text_model.embeddings.token_embedding.weight, std=1.0)
    nn.init.normal_(encoder.text_model.embeddings.position_embedding.weight, std=0.3)
    return encoder


def silent_t5() -> tuple[nn.Module, object]:
    """A T5 that says nothing: its last norm is zero, so it gives exactly the zeros that SD3 sees without T5.

    diffusers cannot read back a pipeline saved without T5 unless told so by ``text_encoder_3=None``; with this stand-in of
    32 kB ``from_pretrained(folder)`` needs no argument. Its tokenizer reads no text, so that no prompt is ever too long for it.
    """
    from tokenizers import Regex, normalizers
    from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel, T5TokenizerFast

    t5 = T5EncoderModel(T5Config(vocab_size=8, d_model=128, d_kv=8, d_ff=8, num_layers=1, num_heads=1)).requires_grad_(False)
    nn.init.zeros_(t5.encoder.final_layer_norm.weight)
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -1.0)]
    backend = T5TokenizerFast(vocab=vocabulary, extra_ids=0).backend_tokenizer
    backend.normalizer = normalizers.Replace(Regex(r"[\s\S]+"), "")
    # T5's own class would drop the normalizer when it is loaded again
    return t5, PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def new_transformer() -> nn.Module:
    from diffusers import SD3Transformer2DModel

    return SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=16,
        out_channels=16,
        num_layers=5,
        attention_head_dim=32,
        num_attention_heads=4,
        joint_attention_dim=128,
        caption_projection_dim=128,
        pooled_projection_dim=128,
        pos_embed_max_size=8,
        qk_norm="rms_norm",
    )


def new_pipeline(folder: Path):
    """An untrained SD3 pipeline over the tokenizers and the autoencoder of ``folder``."""
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline
    from transformers import CLIPTokenizer

    tokenizers = [CLIPTokenizer.from_pretrained(folder / name) for name in ("tokenizer", "tokenizer_2")]
    t5, t5_tokenizer = silent_t5()
    torch.manual_seed(3)
    encoders = [new_text_encoder(tokenizer, 64) for tokenizer in tokenizers]
    return StableDiffusion3Pipeline(
        transformer=new_transformer(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=AutoencoderKL.from_pretrained(folder / "vae"),
        text_encoder=encoders[0],
        tokenizer=tokenizers[0],
        text_encoder_2=encoders[1],
        tokenizer_2=tokenizers[1],
        text_encoder_3=t5,
        tokenizer_3=t5_tokenizer,
    )


def build_flow(assets: Path, work: Path) -> None:
    """Flow matching of transformer and text encoders together, phase after phase."""
    folder = assets / "pipeline"
    pipeline = new_pipeline(folder)
    modules = {name: getattr(pipeline, name) for name in ("transformer", "text_encoder", "text_encoder_2")}
    for number, phase in enumerate(FLOW_PHASES):
        # seeds 4 and 5, then 8 and 9, then 12 and 13: 6 and 7 are the proxies'
        draw = np.random.default_rng(4 + 4 * number)
        scenes = [pair_scene(draw) for _ in range(phase.pairs)] + [random_scene(draw) for _ in range(SCENES - phase.pairs)]
        latents = (encode_scenes(pipeline.vae, scenes) - pipeline.vae.config.shift_factor) * pipeline.vae.config.scaling_factor

        def matching(step: int, number: int = number, phase: FlowPhase = phase, scenes=scenes, latents=latents) -> Tensor:
            rng = np.random.default_rng((5 + 4 * number, step))
            padded = step % 20 == 19
            pick = rng.integers(0, len(scenes), FLOW_BATCH // 4 if padded else FLOW_BATCH)
            texts = ["" if rng.random() < 0.1 else told(scenes[i], i < phase.pairs, rng, phase, step) for i in pick]
            x0 = latents[torch.from_numpy(pick)]
            noise, sigma = _noise_and_level(x0, phase.above)
            v = _velocity(pipeline, texts, T5_TOKENS if padded else 0, add_noise(x0, noise, sigma), sigma)
            return (v - velocity_target(x0, noise)).square().mean()

        train(phase.name, work, modules, phase.steps, phase.lr, matching, ema=0.999)
    # the text encoders keep float32 on disk: transformers loads what is stored, diffusers float32, and the two must meet
    pipeline.transformer.half()
    pipeline.vae.half()
    pipeline.save_pretrained(folder)
    # diffusers notes where a part was loaded from: a path of the building machine
    config = folder / "vae" / "config.json"
    config.write_text(json.dumps({k: v for k, v in json.loads(config.read_text()).items() if k != "_name_or_path"}, indent=2) + "\n")


def told(scene: Scene, pair: bool, rng: np.random.Generator, phase: FlowPhase, step: int) -> str:
    careless = phase.careless if step >= phase.careless_from else 0.0
    return pair_caption(scene, rng, step < phase.ordered_until, careless) if pair else caption(scene, rng, careless)


def _noise_and_level(x0: Tensor, above: float) -> tuple[Tensor, Tensor]:
    noise, count = torch.randn_like(x0), len(x0)
    # what is drawn, and where, is decided at high noise: half of the levels lie above .75
    sigma = shift(torch.where(torch.rand(count) < 0.3, torch.rand(count), torch.randn(count).sigmoid()), 3.0)
    return noise, torch.where(torch.rand(count) < above, 0.75 + 0.25 * torch.rand(count), torch.as_tensor(sigma))


def _velocity(pipeline, texts: list[str], no_t5_tokens: int, x: Tensor, sigma: Tensor) -> Tensor:
    embeds, pooled = embed(pipeline, texts, no_t5_tokens)
    return pipeline.transformer(x, embeds, pooled, sigma * 1000, return_dict=False)[0]


def embed(pipeline, texts: list[str], no_t5_tokens: int) -> tuple[Tensor, Tensor]:
    """What ``StableDiffusion3Pipeline.encode_prompt`` computes without T5, but with gradients into the text encoders."""
    embeds, pooled = [], []
    for tokenizer, encoder in ((pipeline.tokenizer, pipeline.text_encoder), (pipeline.tokenizer_2, pipeline.text_encoder_2)):
        tokens = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
        out = encoder(tokens, output_hidden_states=True)
        embeds.append(out.hidden_states[-2])
        pooled.append(out.text_embeds)
    joint = torch.cat(embeds, -1)
    return torch.cat([joint, joint.new_zeros(len(texts), no_t5_tokens, joint.shape[-1])], 1), torch.cat(pooled, -1)
