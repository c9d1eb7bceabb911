"""Inputs as compressed-tensors 0.19.0 rounds them at run time, for `tests/inputs.rs`: writes `inputs.safetensors` beside this file.

run by the Python that tests/interop/setup prints

`x` [8, 64] f32: tokens of normal numbers, one with an outlier, one of zeros, one whose numbers are tiny, one that is positive, one of halves of
steps. One tensor of the same shape for each way to round; fixed scales and zero points are in its name.
"""

from pathlib import Path

import torch
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.lifecycle.forward import fake_quantize
from compressed_tensors.quantization.utils import compute_dynamic_scales_and_zp
from safetensors.torch import save_file

torch.manual_seed(5)
x = torch.randn(8, 64)
x[1, 7] = -300.0
x[2] = 0.0
x[3] *= 1e-30
x[4] = x[4].abs() + 0.1
x[5] = torch.arange(64) * 0.5 - 16.0
x[5, 0] = 127.5
x[6] *= 1000.0

found = {"x": x}
TOKENS = dict(strategy="token", dynamic=True)
FIXED = dict(strategy="tensor", dynamic=False)
for name, scale, zero, settings in [
    ("int8.token", None, None, dict(num_bits=8, type="int", symmetric=True, **TOKENS)),
    ("int8.token.asymmetric", None, None, dict(num_bits=8, type="int", symmetric=False, **TOKENS)),
    ("int4.token", None, None, dict(num_bits=4, type="int", symmetric=True, **TOKENS)),
    ("e4m3.token", None, None, dict(num_bits=8, type="float", symmetric=True, **TOKENS)),
    ("e4m3.groups", None, None, dict(num_bits=8, type="float", symmetric=True, strategy="group", group_size=16, dynamic=True)),
    ("int8.fixed", 0.02, None, dict(num_bits=8, type="int", symmetric=True, **FIXED)),
    ("int8.fixed.asymmetric", 0.03, -37, dict(num_bits=8, type="int", symmetric=False, **FIXED)),
    ("e4m3.fixed", 0.01, None, dict(num_bits=8, type="float", symmetric=True, **FIXED)),
]:
    arguments = QuantizationArgs(**settings)
    value = x[None]
    if scale is None:
        scales, zeros = compute_dynamic_scales_and_zp(value, arguments, torch.nn.Identity())
    else:
        scales = torch.tensor([scale])
        zeros = torch.tensor([zero or 0], dtype=torch.int8)
    found[name] = fake_quantize(value, scales, zeros, arguments)[0].contiguous()

save_file(found, Path(__file__).with_name("inputs.safetensors"))
