"""Our transformer block against MONAI's: the same weights and values, time of forward and backward passes in turns.

python benchmarks/attention.py                        # ViT-B's block, 197 tokens, batch 8
python benchmarks/attention.py --dim 192 --heads 3 --tokens 65 --batch 16
python benchmarks/attention.py --device cuda --precision bfloat16 --batch 256
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from monai.networks.blocks import SABlock
from torch import Tensor, nn

from afire_monai.networks.blocks import transformer_block


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--tokens", type=int, default=197)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="float32", choices=("float32", "bfloat16"))
    args = parser.parse_args()
    torch.manual_seed(0)
    ours = transformer_block(args.dim, args.heads, 4.0, 1e-6).to(args.device)
    theirs = transformer_block(args.dim, args.heads, 4.0, 1e-6).to(args.device)
    theirs.attn = SABlock(args.dim, args.heads, qkv_bias=True, use_flash_attention=True).to(args.device)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(args.batch, args.tokens, args.dim, device=args.device)

    def once(block: nn.Module) -> tuple[float, Tensor]:
        start = time.perf_counter()
        with torch.autocast(args.device, torch.bfloat16, enabled=args.precision == "bfloat16"):
            out: Tensor = block(x)
        out.float().square().mean().backward()
        if args.device == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start
        block.zero_grad(set_to_none=True)
        return seconds, out.detach()

    for block in (ours, theirs):
        once(block)
    apart = (once(ours)[1] - once(theirs)[1]).abs().max().item()
    pairs = [(once(ours)[0], once(theirs)[0]) for _ in range(args.repeats)]
    a, b = (statistics.median(side) * 1e3 for side in zip(*pairs, strict=True))
    ratio = statistics.median(monai / mine for mine, monai in pairs)
    shape = f"({args.batch}, {args.tokens}, {args.dim}), {args.heads} heads"
    print(f"{args.device}, {args.precision}, {shape}, {args.repeats} pairs")
    print(
        f"ours {a:.2f} ms, MONAI's {b:.2f} ms: {ratio:.3f} x (median of pairs); outputs differ by at most {apart:.1e}"
    )


if __name__ == "__main__":
    main()
