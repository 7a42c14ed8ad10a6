"""Train the demo model on the CPU: Muon for hidden matrices, AdamW for the rest, WSD schedule."""

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from data import LAST, LATE, WEIGHTS, Batch, long_rows, prompt_ids, short_rows
from heldout import heldout
from model import Config, Model
from tokens import IM_END, encode
from torch import Tensor


class Muon:
    """Momentum with orthogonalised updates; equal shapes are batched into one iteration.

    With several processes, each orthogonalises its share of the matrices.
    """

    def __init__(self, params: list[Tensor], lr: float, rank: int, world: int) -> None:
        self.lr, self.decay, self.scale = lr, 0.01, 1.0
        self.rank, self.world = rank, world
        shapes = sorted({tuple(p.shape) for p in params})
        self.groups = [[p for p in params if tuple(p.shape) == shape] for shape in shapes]
        self.state = [torch.zeros(len(g), *g[0].shape) for g in self.groups]

    @torch.no_grad()
    def step(self) -> None:
        """Apply one update from the gradients."""
        for group, momentum in zip(self.groups, self.state, strict=True):
            grad = torch.stack([p.grad for p in group])
            momentum.lerp_(grad, 0.05)
            x = grad.lerp(momentum, 0.95)[self.rank :: self.world]
            tall = x.shape[1] > x.shape[2]
            x = x.mT if tall else x
            x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
            for _ in range(5):
                gram = x @ x.mT
                x = 3.4445 * x + (-4.775 * gram + 2.0315 * gram @ gram) @ x
            update = torch.zeros_like(grad)
            update[self.rank :: self.world] = x.mT if tall else x
            if self.world > 1:
                dist.all_reduce(update)
            rate = self.lr * self.scale
            size = rate * max(1.0, grad.shape[1] / grad.shape[2]) ** 0.5
            for param, change in zip(group, update, strict=True):
                param.mul_(1 - rate * self.decay).add_(change, alpha=-size)


def add_up_gradients(model: Model) -> None:
    """Replace the gradients by their sums over all processes."""
    params = list(model.parameters())
    flat = torch.cat([p.grad.flatten() for p in params])
    dist.all_reduce(flat)
    for param, part in zip(params, flat.split([p.numel() for p in params]), strict=True):
        param.grad.copy_(part.view_as(param))


def evaluate(model: Model, n: int, seed: int) -> dict[str, float]:
    """Exact match per task: greedy decoding is right iff every answer token is the argmax."""
    scores = {}
    for task, rows in heldout(n, seed).items():
        encoded = [(prompt_ids([("user", q)]), [*encode(a), IM_END]) for q, a in rows]
        size = max(len(p) + len(a) for p, a in encoded)
        ids = torch.zeros(len(rows), size, dtype=torch.long)
        for row, (prompt, answer) in zip(ids, encoded, strict=True):
            row[: len(prompt) + len(answer)] = torch.tensor(prompt + answer)
        with torch.no_grad():
            best = torch.cat([model(part).argmax(-1) for part in ids.split(64)])
        hits = [
            best[i, len(p) - 1 : len(p) + len(a) - 1].tolist() == a
            for i, (p, a) in enumerate(encoded)
        ]
        scores[task] = sum(hits) / len(hits)
    return scores


def schedule(step: int, steps: int, warmup: int, decay: float) -> float:
    """Return the learning-rate factor: linear warm-up, flat, linear to zero."""
    return min(1.0, (step + 1) / warmup, (steps - step) / (decay * steps))


def apart(number: Tensor) -> Tensor | None:
    """Where each position may look, so that conversations side by side do not see each other."""
    if int(number.max()) <= 1:
        return None
    same = number[:, None, :, None] == number[:, None, None, :]
    return same & torch.ones(same.shape[-2:], dtype=torch.bool).tril()


def stream(args: argparse.Namespace, first: int) -> Iterator[Batch | None]:
    """Yield batches: short conversations, then at every fourth step long rows, some very long."""
    weights = LAST if args.last else LATE
    wide = short_rows(args.seed, args.tokens, 0.0, WEIGHTS, wide=True)
    short = short_rows(args.seed + 1, args.tokens, 0.08 if args.last else 0.0, weights)
    mixed = short_rows(args.seed, args.tokens, 0.08, LATE)
    packed = long_rows(args.seed, args.tokens, 512)
    full = long_rows(args.seed, args.tokens, 2048)
    for step in range(args.steps):
        if step < args.wide:
            # A run that goes on behind this phase need not make its batches again.
            yield None if first >= args.wide else next(wide)
        elif step < args.single:
            yield next(short)
        elif step % 4 == 0:
            yield next(full if step % 8 == 0 else packed)
        else:
            yield next(mixed)


def main() -> None:
    """Train, log and save checkpoints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--stop", type=int, help="end here, though the schedule goes on")
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--lr", type=float, default=0.02)
    parser.add_argument("--adam-lr", type=float, default=0.003)
    parser.add_argument("--wide", type=int, default=1700, help="end of the longer words and lists")
    parser.add_argument(
        "--single", type=int, default=2000, help="end of single short conversations"
    )
    parser.add_argument("--last", action="store_true", help="use the weights of the last phase")
    parser.add_argument("--decay", type=float, default=0.35)
    parser.add_argument("--every", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--resume", type=Path, help="last.pt of a run to go on with")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rank", type=int, default=0, help="number of this process")
    parser.add_argument(
        "--world", type=int, default=1, help="count of processes that share a batch"
    )
    parser.add_argument("--compile", action="store_true")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    if args.world > 1:
        meeting = f"file://{args.out.resolve()}/meeting"
        dist.init_process_group("gloo", init_method=meeting, rank=args.rank, world_size=args.world)
    model = Model(Config())
    hidden = [p for n, p in model.named_parameters() if n.startswith("blk") and p.ndim == 2]
    rest = [p for n, p in model.named_parameters() if not (n.startswith("blk") and p.ndim == 2)]
    muon = Muon(hidden, args.lr, args.rank, args.world)
    adam = torch.optim.AdamW(rest, lr=args.adam_lr, betas=(0.9, 0.95), weight_decay=0.0)
    first = 0
    if args.resume:
        saved = torch.load(args.resume)
        first, muon.state = saved["step"], saved["muon"]
        model.load_state_dict(saved["model"])
        adam.load_state_dict(saved["adam"])
    forward = torch.compile(model.hidden, dynamic=False) if args.compile else model.hidden
    began, recent = time.time(), []
    for step, batch in enumerate(stream(args, first)):
        if step < first or batch is None:
            continue
        factor = schedule(step, args.steps, 50, args.decay)
        muon.scale = factor
        adam.param_groups[0]["lr"] = args.adam_lr * factor
        whole = float(batch[2].sum())
        own = (torch.from_numpy(part[args.rank :: args.world].copy()) for part in batch)
        ids, targets, weight, number = own
        used = weight.flatten() > 0
        out = model.logits(forward(ids, apart(number)).flatten(0, 1)[used])
        loss = F.cross_entropy(out, targets.flatten()[used], reduction="none")
        total = (loss * weight.flatten()[used]).sum() / whole
        total.backward()
        if args.world > 1:
            add_up_gradients(model)
        muon.step()
        adam.step()
        model.zero_grad(set_to_none=True)
        recent.append(total.item() * args.world)
        if args.rank > 0:
            if step + 1 == args.stop:
                return
            continue
        if (step + 1) % 20 == 0:
            print(
                f"step {step + 1} loss {np.mean(recent):.4f} time {time.time() - began:.0f}",
                flush=True,
            )
            recent = []
        if (step + 1) % args.every == 0 or step + 1 == args.steps:
            weights = model.state_dict()
            torch.save(weights, args.out / f"step{step + 1:05d}.pt")
            state = {
                "step": step + 1,
                "model": weights,
                "muon": muon.state,
                "adam": adam.state_dict(),
            }
            torch.save(state, args.out / "last.pt")
            scores = evaluate(model, 40, seed=1)
            text = " ".join(f"{k}={v:.2f}" for k, v in scores.items())
            mean = sum(scores.values()) / len(scores)
            print(f"eval {step + 1} mean {mean:.3f} {text}", flush=True)
        if step + 1 == args.stop:
            return


if __name__ == "__main__":
    main()
