"""A lesson: what a KV cache is, why it is fast, and why it can forget. Run it, then read it.

    python scripts/kv_cache.py

Attention compares the query of a token with the *keys* of the tokens up to it and mixes their *values*. No token looks at a
later one: keys and values of position i depend only on the tokens up to i. Two things follow.

- What comes later cannot change them. So compute them once and keep them: that is the cache.
- What comes later has not changed them. So to forget it, move a pointer back: that is the rollback.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import cli.start  # noqa: F401  (before torch)
import torch
from cli.options import Parser, exit_code

from model import CausalLM, KVCache
from weights import Checkpoint

STORY = Path(__file__).with_name("demo.txt")
PARAGRAPHS = 6  # of the story, read at first
NEW_TOKENS = 16  # that the model writes
CAPACITY = 1024  # positions of the cache
QUESTION = "Where is Mary?"
ASK = f"\n\n---\nThe document ends here. Answer this question in as few words as possible.\nQuestion: {QUESTION}"


@torch.inference_mode()
def write_without_cache(model: CausalLM, prompt: list[int], n_tokens: int) -> list[int]:
    """Continue a prompt, always with the likeliest token, and read everything anew for each."""
    written: list[int] = []
    for _ in range(n_tokens):
        logits = model(torch.tensor([prompt + written]))  # (1, 1, vocab_size): what may follow the last token
        written.append(logits.argmax().item())
    return written


@torch.inference_mode()
def write_with_cache(
    model: CausalLM, cache: KVCache, prompt: list[int], n_tokens: int, stop_ids: frozenset[int] = frozenset()
) -> list[int]:
    """The same; but the model reads only what the cache does not hold: the prompt, then each token once.

    `model(token_ids, cache)` puts the tokens at the positions from `cache.length` on, stores their keys and values there,
    attends to everything up to them, and moves `cache.length` behind them. The last token is written, but not read.
    """
    written: list[int] = []
    unread = prompt
    for _ in range(n_tokens):
        logits = model(torch.tensor([unread]), cache)
        unread = [logits.argmax().item()]
        if unread[0] in stop_ids:
            break
        written += unread
    return written


@torch.inference_mode()
def ask_and_forget(model: CausalLM, cache: KVCache, question: list[int], stop_ids: frozenset[int]) -> tuple[list[int], int]:
    """Ask behind what has been read, then roll back. Returns the reply, and the cache's length before the rollback."""
    start = cache.length
    reply = write_with_cache(model, cache, question, NEW_TOKENS, stop_ids)
    asked = cache.length
    cache.rollback(start)  # one integer is assigned; the bytes behind it stay and are overwritten by what is read next
    return reply, asked


@torch.inference_mode()
def main() -> None:
    torch.set_num_threads(1)  # a busy machine then slows both clocks alike
    checkpoint = Checkpoint.open("demo-llama")
    model, tokenizer = checkpoint.load_model("cpu", torch.float32, CAPACITY), checkpoint.tokenizer
    header, _, closing = checkpoint.chat.prompt_pieces(None)  # what the chat format writes before and behind a user's text
    paragraphs = STORY.read_text(encoding="utf-8").split("\n\n")
    story = header + tokenizer.encode("Here is a document.\n\n" + "\n\n".join(paragraphs[:PARAGRAPHS]))
    sequel = tokenizer.encode("\n\n" + paragraphs[PARAGRAPHS])
    model(torch.tensor([story]))  # the first forward pass of a process is slower; no clock runs yet

    print(f"demo-llama has read {len(story)} tokens of a story and continues it with {NEW_TOKENS}.\n")

    print("1. Without a cache it reads the whole story again for every token that it writes.")
    start = time.perf_counter()
    naive = write_without_cache(model, story, NEW_TOKENS)
    naive_seconds = time.perf_counter() - start
    n_read = sum(len(story) + n_written for n_written in range(NEW_TOKENS))
    print(f"   {n_read:,} tokens read, {naive_seconds:.2f} s: {' '.join(tokenizer.decode(naive).split())} …\n")

    print("2. No token looks at a later one: keys and values of position i depend only on the tokens up to i. New tokens")
    print("   cannot change them, so they are kept, and every token is read once.")
    cache = KVCache(model.config, CAPACITY)
    print(f"   The cache is one tensor {tuple(cache.storage.shape)}, {cache.nbytes / 1e6:.1f} MB, and one pointer.")
    start = time.perf_counter()
    cached = write_with_cache(model, cache, story, NEW_TOKENS)
    seconds = time.perf_counter() - start
    print(f"   {cache.length:,} tokens read, {seconds:.2f} s: {naive_seconds / seconds:.0f} times as fast.")
    print(f"   The same {NEW_TOKENS} tokens: {'yes' if cached == naive else 'NO'}.\n")

    print("3. And so the cache can forget. What the model wrote itself goes first: the story stays read.")
    print(f"   cache {cache.length} -> {len(story)}")
    cache.rollback(len(story))
    address = cache.storage.data_ptr()
    reply, asked = ask_and_forget(model, cache, tokenizer.encode(ASK) + closing, checkpoint.chat.stop_ids)
    print(f"   {QUESTION} {tokenizer.decode(reply).strip()}")
    print(f"   cache {asked} -> {cache.length}, its storage at {address:#x} before and {cache.storage.data_ptr():#x} after")
    after = model(torch.tensor([sequel]), cache)
    print(f"   It reads on, as if nothing had been asked: {len(sequel)} tokens more.")
    never_asked = KVCache(model.config, CAPACITY)
    model(torch.tensor([story]), never_asked)
    before = model(torch.tensor([sequel]), never_asked)
    print(f"   The same logits as with a cache that was never asked: {'yes' if torch.equal(after, before) else 'NO'}.")


if __name__ == "__main__":
    Parser(__doc__).parse_args()
    sys.exit(exit_code(main))
