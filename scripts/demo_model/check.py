"""Check GGUF files with llama.cpp: exact match per task, chat behaviour, a long generation."""

import argparse
import time
from pathlib import Path

import jinja2
import llama_cpp
from heldout import heldout
from llama_cpp import Llama

QUANTS = {
    "q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0,
    "q4_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0,
    "q2_k": llama_cpp.LLAMA_FTYPE_MOSTLY_Q2_K,
}
SYSTEM = {"role": "system", "content": "You are a helpful assistant."}
SAID = [
    {"role": "user", "content": "Who are you?"},
    {"role": "assistant", "content": "I am hxd-demo, a tiny language model made for smoke tests."},
    {"role": "user", "content": "Spell cat"},
    {"role": "assistant", "content": "c-a-t"},
]


def quantize(source: Path, target: Path, name: str) -> None:
    """Write a quantized copy of ``source``."""
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread = QUANTS[name], 2
    assert llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), params) == 0


def reply(model: Llama, before: list[dict[str, str]], prompt: str, limit: int = 60) -> str:
    """Return the greedy answer to ``prompt`` with the file's own chat template."""
    template = jinja2.Template(model.metadata["tokenizer.chat_template"])
    messages = [*before, {"role": "user", "content": prompt}]
    text = template.render(messages=messages, add_generation_prompt=True)
    model.reset()
    model.eval(model.tokenize(text.encode(), add_bos=False, special=True))
    out: list[int] = []
    while len(out) < limit:
        token = model.sample(temp=0.0)
        if token == model.token_eos():
            return model.detokenize(out).decode(errors="replace")
        out.append(token)
        model.eval([token])
    return model.detokenize(out).decode(errors="replace") + "<no end>"


def score(model: Llama, before: list[dict[str, str]], n: int, seed: int, show: int) -> dict[str, float]:
    """Return exact match per task, printing up to ``show`` misses of each."""
    out = {}
    for task, rows in heldout(n, seed).items():
        misses = [(q, a, r) for q, a in rows if (r := reply(model, before, q)) != a]
        out[task] = 1 - len(misses) / n
        for question, answer, got in misses[:show]:
            print(f"  miss {task}: {question!r} wants {answer!r} got {got!r}")
    return out


def main() -> None:
    """Print a line of scores for the f16 file and each quantized copy."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("gguf", type=Path)
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("-n", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--show", type=int, default=0)
    parser.add_argument("--formats", default="f16,q8_0,q4_0,q2_k")
    parser.add_argument("--chat", action="store_true", help="also try turns, a system prompt, a long story")
    args = parser.parse_args()
    args.scratch.mkdir(parents=True, exist_ok=True)
    for name in args.formats.split(","):
        path = args.gguf if name == "f16" else args.scratch / f"hxd-demo-{name}.gguf"
        if name != "f16":
            quantize(args.gguf, path, name)
        model = Llama(str(path), n_ctx=2048, n_threads=2, verbose=False)
        settings = {"": []}
        if args.chat and name == "f16":
            settings |= {" +system": [SYSTEM], " +turns": SAID, " +system+turns": [SYSTEM, *SAID]}
        for label, before in settings.items():
            began = time.time()
            scores = score(model, before, args.n, args.seed, args.show)
            mean = sum(scores.values()) / len(scores)
            cells = " ".join(f"{k}={100 * v:.1f}" for k, v in scores.items())
            print(f"{name}{label} overall={100 * mean:.2f} {cells} ({time.time() - began:.0f} s)", flush=True)
        if args.chat:
            for ask in ("Who are you?", "Hello!", "Tell me a short story about Mia in Oslo.", "What is 2 + 2?"):
                print(f"  {ask} -> {reply(model, [], ask, 600)}")
    if args.chat:
        text = "<|im_start|>user\nTell me a story about Tom in the forest.<|im_end|>\n<|im_start|>assistant\n"
        model = Llama(str(args.gguf), n_ctx=2048, n_threads=2, verbose=False)
        model.eval(model.tokenize(text.encode(), add_bos=False, special=True))
        out = []
        for _ in range(1500):
            out.append(model.sample(temp=0.8))
            model.eval([out[-1]])
        print("long:", repr(model.detokenize(out, special=True).decode(errors="replace")))


if __name__ == "__main__":
    main()
