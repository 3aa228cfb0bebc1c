"""Fused kernels of the denoising chain, each beside the plain torch it must agree with.

On a CUDA device the Triton form runs, anywhere else the reference; ``using`` decides otherwise. Inputs may be float32, bfloat16 or
float16, of any shape and memory order; arithmetic inside is float32. This package knows nothing of the rest of genrl.

Module          What it fuses
``noise``       counter-based standard normal numbers, a seed per sample
``chain``       guidance, the step of a chain, its noise and its log-probability; the log-probability again with gradient
``matching``    noise on finished samples; the weighted matching loss and the distribution matching surrogate, with gradient
``modulation``  what an MM-DiT block does between its matrix products, forward and backward
``quantise``    rows in float8, for matrix products
"""

from genrl.kernels.dispatch import fused, using

__all__ = ["fused", "using"]
