"""Training: rows of document trees mean what inference does, runs continue, folders load where published ones do."""

from __future__ import annotations

import functools
import importlib.util
import json
import random
import runpy
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from training import corpus, session
from training.choices import FAMILIES, SIZES
from training.context import BLOCK, TreeContext, block_mask, dense_mask, tiles
from training.document_maker import Lengths
from training.folder import (
    copy_tokenizer,
    make_config,
    write_config,
    write_tokenizer,
    write_weights,
    write_wishes,
)
from training.objective import kind_weights, objective
from training.optimizer import initialise, lr_factor, make_optimizers
from training.rows import BEGIN, CUT, KINDS_OF_TARGETS, START, TARGETS, TOKENS, Batches, batch_loader, fill_rows
from training.trainer import Run
from training.trees import LLM, MARGIN, NO_MARGIN, NONE, TEXT, VERDICT, WIM, Segment, Tree

from model import InputError, KVCache, build_model
from weights import DEMOS, ChatFormat, Tokenizer
from weights.config import read_model_config
from wim.chunks import split_document
from wim.prompt_ids import PromptIds
from wim.prompts import Prompts
from wim.settings import WISHES, Wishes

SCRIPT = Path(__file__).parents[2] / "scripts" / "train_demo.py"
TINY = {
    "vocab_size": 800,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
}


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request, tmp_path_factory) -> Path:
    """A tiny checkpoint folder of each family, with random weights."""
    folder = tmp_path_factory.mktemp(request.param)
    write_tokenizer(request.param, folder, corpus.tokenizer_texts(None, 0, 150, 500), TINY["vocab_size"])
    model = build_model(read_model_config(write_config(request.param, folder, TINY)))
    initialise(model, seed=1)
    write_weights(model, folder)
    return folder


@pytest.fixture(scope="module")
def source(folder):
    return corpus.make_source(folder, None, Lengths.parse("100-250:0.5,250-700:0.5"))


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("train_demo", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def load(folder: Path):
    model = build_model(read_model_config(json.loads((folder / "config.json").read_text())))
    weights = {name: tensor.float() for name, tensor in load_file(folder / "model.safetensors").items()}
    model.load_state_dict(weights, strict=False)  # the head is the embedding
    return model.eval()


def random_trees(rng: random.Random, n: int) -> list[Tree]:
    """Trees of tokens that appear nowhere else, so that a place in a row tells where it came from."""
    fresh = iter(range(1, 1 << 30))
    trees = []
    for _ in range(n):
        length = rng.randint(2, 90)
        document = Segment(TEXT, [next(fresh) for _ in range(length)], rng.randint(1, length - 1))
        groups = []
        for _ in range(rng.randint(0, 4)):
            group = []
            for _ in range(rng.randint(1, 2)):
                n_prompt, n_reply = rng.randint(1, 20), rng.randint(1, 8)
                ids = [next(fresh) for _ in range(n_prompt + n_reply)]
                group.append(Segment(MARGIN, ids, n_prompt, rng.choice((0, rng.randint(1, length)))))
            groups.append(group)
        trees.append(Tree(document, groups))
    return trees


def segments(batch: torch.Tensor) -> list[tuple[int, int, int]]:
    """(row, first, end) of every segment of a batch, padding left out."""
    found = []
    for row in range(batch.shape[1]):
        begins = batch[BEGIN, row]
        for first in begins.unique().tolist():
            places = (begins == first).nonzero().flatten()
            assert places.tolist() == list(range(first, first + len(places)))  # in one piece, from its own begin on
            if batch[TOKENS, row, first] or batch[KINDS_OF_TARGETS, row, places].any():
                found.append((row, first, first + len(places)))
    return found


def test_the_mask_is_its_definition():
    trees = random_trees(random.Random(0), 6)
    stream = iter(trees)
    batch = fill_rows(lambda: next(stream), 1, 256)
    owner = {token: (tree, segment) for tree in trees for segment in branches(tree, True) for token in segment.ids}
    tokens = batch[TOKENS, 0].tolist()
    expected = torch.zeros(256, 256, dtype=torch.bool)
    for q in range(256):
        for k in range(256):
            if not tokens[q] or not tokens[k]:
                expected[q, k] = not tokens[q] and not tokens[k] and k <= q  # padding sees padding
                continue
            (tree, segment), (_, other) = owner[tokens[q]], owner[tokens[k]]
            before = other is tree.document and segment is not other and other.ids.index(tokens[k]) < segment.cut
            expected[q, k] = (segment is other and k <= q) or before
    fields = batch[BEGIN], batch[START], batch[CUT]
    assert torch.equal(dense_mask(*fields)[0], expected)
    assert expected.any(dim=1).all()  # nobody sees nothing, or attention would give NaN


def test_tiles_agree_with_the_mask():
    rng = random.Random(1)
    for _ in range(3):
        batch = fill_rows(lambda: random_trees(rng, 1)[0], 2, 4 * BLOCK)
        fields = batch[BEGIN], batch[START], batch[CUT]
        by_tile = dense_mask(*fields).view(2, 4, BLOCK, 4, BLOCK)
        some, full = tiles(*fields)
        assert torch.equal(some, by_tile.any(dim=4).any(dim=2))
        assert not (full & ~by_tile.all(dim=4).all(dim=2)).any()
        mask = block_mask(*fields)
        listed = mask.kv_num_blocks + mask.full_kv_num_blocks
        assert torch.equal(listed[:, 0].long(), some.sum(dim=-1))


def test_packing_keeps_trees_whole():
    for seed in range(20):
        rng = random.Random(seed)
        trees = random_trees(rng, 200)
        stream = iter(trees)
        batch = fill_rows(lambda stream=stream: next(stream), 3, 256)
        known = {segment.ids[0]: (tree, segment) for tree in trees for segment in branches(tree, True)}
        documents = {}
        for row, first, end in segments(batch):
            tree, segment = known[batch[TOKENS, row, first].item()]
            assert batch[TOKENS, row, first:end].tolist() == segment.ids[: segment.size]
            if segment is tree.document:
                documents[id(tree)] = (row, first)
            else:
                assert documents[id(tree)] == (row, batch[START, row, first].item())
                group = next(group for group in tree.groups if any(branch is segment for branch in group))
                kept = set(batch[TOKENS, row].tolist())
                assert all(branch.ids[0] in kept for branch in group)
        assert (batch[TOKENS] != 0).float().mean() > 0.8


def branches(tree: Tree, with_document: bool = False) -> list[Segment]:
    return [tree.document] * with_document + [branch for group in tree.groups for branch in group]


def test_loss_lies_on_replies_and_a_little_on_text(source):
    rng = random.Random(0)
    trees = []

    def next_tree() -> Tree:
        trees.append(source.tree(rng))
        return trees[-1]

    batch = fill_rows(next_tree, 2, 2048)
    known = {tuple(segment.ids[: segment.size]): segment for tree in trees for segment in branches(tree, True)}
    for row, first, end in segments(batch):
        tokens, targets, kinds = (batch[field, row, first:end] for field in (TOKENS, TARGETS, KINDS_OF_TARGETS))
        segment = known[tuple(tokens.tolist())]
        assert targets[kinds != NONE].tolist() == segment.ids[segment.n_prompt :]
        assert set(kinds.tolist()) == {NONE, segment.kind} and (kinds[: segment.n_prompt - 1] == NONE).all()
        assert kinds[segment.n_prompt - 1] == segment.kind  # the last token of the prompt gives the first of the reply
        if segment.kind != TEXT:
            assert targets[-1] == source.grower.end_of_turn
    weights = kind_weights(0.1)
    assert weights[NONE] == 0 and weights[TEXT] == 0.1 and set(weights[TEXT + 1 :]) == {1.0}


def test_branches_are_what_the_loop_asks(folder, source):
    """Prompts as wim.prompt_ids makes them, and as many final questions with margins as without."""
    tokenizer = Tokenizer.from_folder(folder)
    chat = ChatFormat.from_folder(folder, tokenizer)
    prompts = PromptIds(SimpleNamespace(tokenizer=tokenizer, chat=chat, name="tiny"), Prompts(), margin_tokens=1000)
    rng = random.Random(5)
    seen = set()
    for _ in range(30):
        document = source.maker.make(rng, rng.randint(100, 700))
        tree = source.grower.grow(document, rng)
        whole = prompts.header + tokenizer.encode(document.text)
        assert tree.document.ids == whole and tree.document.n_prompt == len(prompts.header)
        asked = [question.query for question in document.questions]
        chunks = split_document(document.text, tokenizer, source.grower.chunk_tokens)
        beginnings = {len(prompts.header) + chunk.end: chunk.beginning for chunk in chunks}
        for segment in branches(tree):
            prompt, reply = segment.ids[: segment.n_prompt], tokenizer.decode(segment.ids[segment.n_prompt :])
            seen.add(segment.kind)
            if segment.kind in (MARGIN, NO_MARGIN):
                assert prompt in [prompts.margin(query, beginnings[segment.cut]) for query in asked]
            if segment.kind == LLM:
                assert prompt in [prompts.answer(query) for query in asked]
            if segment.kind == MARGIN:
                assert reply in document.text or all(part in document.text for part in reply.split(". "))
            if segment.kind == NO_MARGIN:
                assert reply == "None."
            if segment.kind in (LLM, WIM):
                assert segment.cut == len(whole)
                assert reply in [question.answer for question in document.questions]
            if segment.kind == VERDICT:
                assert (
                    prompt[: len(prompts.chat_header)] == prompts.chat_header
                    and reply in ("YES", "NO")
                    and segment.cut == 0
                )
        kinds = [segment.kind for segment in branches(tree)]
        assert kinds.count(LLM) == kinds.count(WIM) and kinds.count(VERDICT) % 2 == 0
    assert len(seen) == 6


@torch.no_grad()
def test_training_is_inference(folder, source):
    """Each branch of a row gets the logits that it gets after a KV cache that was filled up to its cut."""
    model = load(folder)
    for parameter in model.parameters():
        parameter.mul_(8 if parameter.dim() == 2 else 1)  # as fresh ones, they hardly look at positions
    batch = fill_rows(functools.partial(source.tree, random.Random(3)), 1, 2048)
    tokens, _, kinds, positions, begin, start, cut = (field.long() for field in batch)
    logits = model(tokens, TreeContext(positions, begin, start, cut), all_logits=True)[0]
    compared = set()
    for row, first, end in segments(batch):
        cache = KVCache(model.config, capacity=2048)
        from_, to = start[row, first].item(), cut[row, first].item()
        if to > from_:
            model(tokens[:, from_:to], cache)
        assert torch.equal(positions[row, first:end], cache.positions(end - first)[0])
        expected = model(tokens[:, first:end], cache, all_logits=True)[0]
        assert (logits[first:end] - expected).abs().max() < 1e-4
        compared.add(kinds[row, end - 1].item())
    assert {MARGIN, LLM, WIM, VERDICT} <= compared


def test_figures_count_what_is_right(source):
    """What the log says of a fresh model, and of one that knows every target."""
    batch = fill_rows(functools.partial(source.tree, random.Random(3)), 1, 1024)
    model = build_model(read_model_config({**TINY, "model_type": "llama", "tie_word_embeddings": True}))
    initialise(model, 0)
    weights = torch.tensor(kind_weights(0.1))
    loss, figures = objective(model, weights, *batch.unbind(0))
    counts = torch.bincount(batch[KINDS_OF_TARGETS].flatten(), minlength=len(weights))
    assert figures[:, 0].tolist() == counts.tolist()
    mean = (figures[:, 1] * weights).sum() / (figures[:, 0] * weights).sum()
    assert torch.allclose(loss, mean) and figures[:, 4].sum() == 0
    n_replies = sum(batch[KINDS_OF_TARGETS, row, end - 1] > TEXT for row, _, end in segments(batch))
    assert figures[:, 3].sum() == n_replies

    class Oracle(torch.nn.Module):
        def forward(self, tokens, context, *, all_logits):
            return torch.nn.functional.one_hot(batch[TARGETS].long(), TINY["vocab_size"]).float()

    _, figures = objective(Oracle(), weights, *batch.unbind(0))
    assert torch.equal(figures[TEXT + 1 :, 3], figures[TEXT + 1 :, 4]) and figures[:, 4].sum() == n_replies


def test_batches_depend_on_the_step_alone(source):
    batches = Batches(source, 1, 1024, seed=7)
    wanted = [batches.batch(step) for step in range(5)]
    for first, n_workers in ((0, 2), (2, 0)):
        loader = batch_loader(Batches(source, 1, 1024, seed=7, first=first), n_workers)
        for step, batch in zip(range(first, 5), loader, strict=False):
            assert torch.equal(batch, wanted[step])


def test_lengths_get_their_share(source):
    lengths = Lengths.parse("64-100:0.5,400-700:0.5")
    sized = type(source)(source.maker, source.grower, lengths)
    rng, short, total = random.Random(0), 0, 0
    for _ in range(300):
        tree = sized.tree(rng)
        total += tree.size
        short += tree.size if tree.document.size < 250 else 0
    assert 0.35 < short / total < 0.65


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_an_interrupted_run_ends_as_if_it_had_not_been(script, tmp_path, monkeypatch, optimizer):
    monkeypatch.setattr(session, "tokenizer_texts", functools.partial(corpus.tokenizer_texts, n_documents=100))
    common = ["--steps", "7", "--row", "1024", "--batch", "1", "--lengths", "100-400:1", "--workers", "0"]
    common += ["--device", "cpu", "--save-every", "0", "--log-every", "0", "--warmup", "2", "--optimizer", optimizer]
    common += [option for name, value in TINY.items() for option in ("--size", f"{name}={value}")]

    def train(name: str, *more: str) -> dict:
        out, state = tmp_path / name, tmp_path / f"{name}.pt"
        script.run(script.arguments([*common, "--out", str(out), "--state", str(state), *more]))
        return torch.load(state, weights_only=True)

    whole = train("whole")
    save = Run.save

    def save_and_die(run, path):
        save(run, path)
        raise KeyboardInterrupt

    monkeypatch.setattr(Run, "save", save_and_die)
    with pytest.raises(KeyboardInterrupt):
        train("halves")
    monkeypatch.setattr(Run, "save", save)
    with pytest.raises(InputError, match="--resume"):
        train("halves")
    halves = train("halves", "--resume")
    assert whole["step"] == halves["step"] == 7
    assert all(torch.equal(halves["model"][name], tensor) for name, tensor in whole["model"].items())
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "halves")]
    assert files[0] == files[1]
    config = (tmp_path / "halves" / "config.json").read_bytes()
    with pytest.raises(InputError, match="family"):
        train("halves", "--resume", "--family", "qwen2")
    assert (tmp_path / "halves" / "config.json").read_bytes() == config
    shutil.copy(tmp_path / "halves.pt", tmp_path / "nothing.pt")
    with pytest.raises(InputError, match="has its tokenizer in its own --out, and --out .* has none"):
        train("nothing", "--resume")
    assert not (tmp_path / "nothing").exists()
    shutil.copytree(DEMOS["demo-llama"], tmp_path / "nothing")
    with pytest.raises(InputError, match="is of a run with tokenizer"):
        train("nothing", "--resume")


def tiny_run(optimizer: str = "muon"):
    """A run of one step."""
    model = build_model(read_model_config(make_config("llama", TINY)))
    initialise(model, 0)
    run = Run(model, make_optimizers(model, optimizer, 1e-3, fused=False), {"family": "llama"})
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    for one in run.optimizers:
        one.step()
    run.step = 1
    return run


def other_tensor(state):
    state["model"]["model.norm.weight"] = torch.ones(7)


def not_a_number(state):
    state["model"]["model.norm.weight"][0] = float("nan")


def other_average(state):
    state["optimizers"][0]["state"][0]["exp_avg"] = torch.ones(3)


def other_decay(state):
    state["optimizers"][0]["param_groups"][0]["weight_decay"] = "0.1"


@pytest.mark.parametrize(
    "damage",
    [
        other_tensor,
        not_a_number,
        other_average,
        other_decay,
        lambda state: state["model"].pop("model.norm.weight"),
        lambda state: state["optimizers"].pop(),
        lambda state: state["optimizers"][0]["state"].pop(0),
        lambda state: state.update(model=3),
        lambda state: state.update(optimizers=[1, 2]),
        lambda state: state.update(step=-1),
        lambda state: state.update(elapsed=float("nan")),
    ],
)
def test_a_state_that_holds_the_wrong_things(damage, tmp_path):
    path = tmp_path / "state.pt"
    tiny_run().save(path)
    tiny_run().load(path)
    state = torch.load(path, weights_only=True)
    damage(state)
    torch.save(state, path)
    with pytest.raises(InputError, match="state.pt (does not hold the state of this run|is not the state of a run)"):
        tiny_run().load(path)


@pytest.fixture
def small_files():
    """As a full disk, for whatever is written: no file can grow beyond some bytes."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_leaves_no_half_file(tmp_path, small_files):
    run = tiny_run()
    for name in ("state.pt", "model.safetensors"):
        (tmp_path / name).write_bytes(b"before")
    with pytest.raises(InputError, match=r"state.pt cannot be written \("):
        run.save(tmp_path / "state.pt")
    with pytest.raises(InputError, match=r"model.safetensors cannot be written \("):
        write_weights(run.model, tmp_path)
    with pytest.raises(InputError, match="tokenizer.json cannot be written"):
        copy_tokenizer(DEMOS["demo-llama"], tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == dict.fromkeys(
        ("state.pt", "model.safetensors"), b"before"
    )


def test_a_run_starts_from_a_checkpoint(script, folder, tmp_path, capsys):
    """With a learning rate of zero the weights stay as they were, and so does the tokenizer."""
    sizes = [option for name, size in TINY.items() for option in ("--size", f"{name}={size}")]
    common = [*sizes, "--steps", "1", "--lr", "0", "--row", "512", "--batch", "1", "--workers", "0", "--device", "cpu"]
    common += ["--lengths", "100-300:1", "--start-from", str(folder)]
    family = json.loads((folder / "config.json").read_text())["model_type"]
    script.run(script.arguments(["--family", family, "--out", str(tmp_path / "new"), *common]))
    before, after = load_file(folder / "model.safetensors"), load_file(tmp_path / "new" / "model.safetensors")
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    text = "Mary went to the kitchen. 17"
    assert Tokenizer.from_folder(tmp_path / "new").encode(text) == Tokenizer.from_folder(folder).encode(text)
    with pytest.raises(InputError, match="holds a checkpoint already"):
        script.run(script.arguments(["--family", family, "--out", str(folder), *common]))
    with pytest.raises(InputError, match="is not of the family and the sizes"):
        script.run(
            script.arguments(["--family", family, "--out", str(tmp_path / "other"), *common, "--size", "hidden_size=64"])
        )


def test_a_checkpoint_says_how_it_was_trained_to_be_asked(script, folder, tmp_path):
    """And who trains on from it asks in the same way."""
    write_wishes(folder, tmp_path)
    assert Wishes.of(tmp_path) == Wishes({"chunk_tokens": 256, "margin_tokens": 64, "margins": "written"}, Prompts())
    shutil.copytree(folder, tmp_path / "start")
    changed = {"chunk_tokens": 100, "prompts": {"answer": "Now tell me. {query}"}}
    (tmp_path / "start" / WISHES).write_text(json.dumps(changed))
    sizes = [option for name, size in TINY.items() for option in ("--size", f"{name}={size}")]
    family = json.loads((folder / "config.json").read_text())["model_type"]
    run = ["--family", family, "--steps", "1", "--row", "512", "--batch", "1", "--workers", "0", "--device", "cpu"]
    run += ["--lengths", "100-300:1", "--start-from", str(tmp_path / "start"), "--out", str(tmp_path / "out")]
    script.run(script.arguments([*run, *sizes]))
    wishes = Wishes.of(tmp_path / "out")
    assert wishes.values == {"chunk_tokens": 100, "margin_tokens": 64, "margins": "written"}
    assert wishes.prompts.answer == "Now tell me. {query}"
    grower = corpus.make_source(tmp_path / "out", None, Lengths.parse("100-250:1")).grower
    assert (grower.prompts, grower.chunk_tokens) == (wishes.prompts, 100)


def test_the_folder_loads_in_transformers(folder):
    transformers = pytest.importorskip("transformers")
    if folder.name.startswith("phi3"):
        pytest.importorskip("google.protobuf", reason="transformers reads tokenizer.model through protobuf")
    tokenizer = Tokenizer.from_folder(folder)
    header, _, closing = ChatFormat.from_folder(folder, tokenizer).prompt_pieces(None)
    prompts = Prompts()
    document = '"Ah!" said Pip, 4713 times; it’s Émile—really…  Mary went to the kitchen.\n\n(No.)'
    question = prompts.answer.replace("{query}", "Where is Mary?")
    ours = [*header]
    for text in (prompts.opening, document, question):
        ours += tokenizer.encode(text)
    ours += closing
    other = transformers.AutoTokenizer.from_pretrained(folder)
    message = {"role": "user", "content": prompts.opening + document + question}
    assert other.apply_chat_template([message], add_generation_prompt=True, return_dict=False) == ours

    ids = torch.tensor([ours])
    oracle = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        assert (load(folder)(ids, all_logits=True) - oracle(ids).logits).abs().max() < 1e-4
    assert oracle.generation_config.eos_token_id == tokenizer.token_id("<|end|>")


def test_the_shipped_size_is_small():
    """The default sizes stay under 13.2 MB: two bytes a weight, and some room for the tokenizer."""
    for family in FAMILIES:
        with torch.device("meta"):
            config = {**SIZES, "model_type": family, "tie_word_embeddings": True}
            model = build_model(read_model_config(config))
        assert sum(parameter.numel() for parameter in model.parameters()) * 2 < 12_700_000


def test_learning_rate_and_optimizers():
    assert [round(lr_factor(done, 1000, 100), 2) for done in (0.0, 0.6, 0.8, 1.0)] == [1.0, 1.0, 0.5, 0.0]
    assert lr_factor(0.0, 9, 100) == 0.1
    model = build_model(read_model_config({**TINY, "model_type": "qwen2", "tie_word_embeddings": True}))
    n_parameters = len(list(model.parameters()))
    for name in ("adamw", "muon"):
        groups = [group for opt in make_optimizers(model, name, 1e-3, fused=False) for group in opt.param_groups]
        assert sum(len(group["params"]) for group in groups) == n_parameters
        for group in groups:
            assert all((group["weight_decay"] > 0) == (parameter.dim() == 2) for parameter in group["params"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--family", "mamba"], "llama, phi3, qwen2"),
        (["--text", "nowhere"], "nowhere"),
        (["--text", "."], ".txt"),
        (["--hold-out", "emma"], "--text"),
        (["--steps", "0"], "--minutes or --steps"),
        (["--minutes", "1"], "--minutes or --steps"),
        (["--lengths", "16-8"], "LEAST-MOST:SHARE"),
        (["--lengths", "16-9999:1"], "9999"),
        (["--row", "1000"], "multiple of 128"),
        (["--optimizer", "sgd"], "adamw"),
        (["--size", "depth=3"], "depth"),
        (["--device", "toaster"], "toaster"),
        (["--size", "vocab_size=inf"], "vocab_size=inf"),
        (["--size", "rope_theta=1e400"], "rope_theta=1e400"),
        (["--minutes", "nan"], "--minutes is nan"),
        (["--lr", "nan"], "--lr is nan"),
        (["--workers", "-1"], "--workers is -1"),
        (["--workers", "99999"], "--workers is 99999; give at most 1,024"),
        (["--size", "num_hidden_layers=1000", "--size", "hidden_size=65536"], "GiB for parameters"),
        (["--size", "vocab_size=100000000", "--size", "hidden_size=8192"], "GiB for parameters"),
        (["--batch", "999999999"], "give a smaller --size, --batch or --row"),
        (["--lengths", f"{'9' * 5000}-9:1"], "LEAST-MOST:SHARE"),
        (["--lengths", f"64-99:{'9' * 400}"], "LEAST-MOST:SHARE"),
        (["--out", "file"], "cannot be written to"),
        (["--out", "file/below"], "cannot be written to"),
        (["--state", "file/below/s.pt"], "cannot be written to"),
        (["--state", "."], "is no file"),
        (["--state", ".", "--resume"], "is no file"),
        (["--state", "file", "--resume"], "is not the state of a run"),
        (["--state", "tensor.pt", "--resume"], "is not the state of a run"),
    ],
)
def test_bad_input_is_one_sentence(options, words, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("not a state")
    torch.save(torch.zeros(3, 3), tmp_path / "tensor.pt")
    error = refusal(options, tmp_path, monkeypatch, capsys)
    assert words in error and len(error.strip().splitlines()) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"file", "tensor.pt"}


def refusal(options, cwd, monkeypatch, capsys) -> str:
    """What the script says before it ends with 2."""
    monkeypatch.chdir(cwd)
    monkeypatch.setattr(sys, "argv", ["train_demo.py", "--out", "out", "--steps", "1", "--device", "cpu", *options])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert stopped.value.code == 2
    return capsys.readouterr().err


def several_ends(start: Path) -> None:
    (start / "generation_config.json").write_text('{"eos_token_id": [5, 1]}')


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda start: [path.unlink() for path in start.iterdir()], "no config.json"),
        (lambda start: (start / "generation_config.json").unlink(), "generation_config.json cannot be read"),
        (lambda start: (start / "model.safetensors").unlink(), "no model.safetensors"),
        (lambda start: (start / "model.safetensors").write_text("junk"), "damaged"),
        (several_ends, "names 1, 5"),
    ],
)
def test_a_start_that_is_no_whole_checkpoint(damage, words, tmp_path, monkeypatch, capsys):
    shutil.copytree(DEMOS["demo-llama"], tmp_path / "start")
    damage(tmp_path / "start")
    error = refusal(["--start-from", "start"], tmp_path, monkeypatch, capsys)
    assert words in error and len(error.strip().splitlines()) == 1
    assert not any(tmp_path.glob("out/*"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--start-from", "demo-llama"], "holds a checkpoint already"),
        (["--family", "phi3", "--resume"], "holds a checkpoint already"),
        (["--state", "state.pt", "--resume"], "is not the state of a run"),
        (["--start-from", "demo-phi3", "--out", "new"], "is not of the family and the sizes"),
        (["--start-from", "out", "--size", "hidden_size=128", "--out", "new"], "is not of the family and the sizes"),
        (
            ["--start-from", "out", "--size", "num_attention_heads=4", "--size", "num_key_value_heads=2", "--out", "new"],
            "is not of the family and the sizes",
        ),
    ],
)
def test_a_finished_checkpoint_stays_as_it_was(options, words, tmp_path, monkeypatch, capsys):
    shutil.copytree(DEMOS["demo-llama"], tmp_path / "out")
    (tmp_path / "state.pt").write_text("junk")
    before = {path: path.read_bytes() for path in tmp_path.glob("*/*")}
    assert words in refusal(options, tmp_path, monkeypatch, capsys)
    assert {path: path.read_bytes() for path in tmp_path.glob("*/*")} == before and not (tmp_path / "new").exists()


@pytest.mark.parametrize(("family", "size"), [("llama", 100), ("phi3", 300), ("phi3", 100_000)])
def test_a_vocabulary_that_cannot_be_learnt(family, size, tmp_path):
    with pytest.raises(InputError, match="vocabulary of 100 is too small|pieces can be learnt"):
        write_tokenizer(family, tmp_path, corpus.tokenizer_texts(None, 0, 20, 100), size)


def test_a_tokenizer_of_another_kind_is_not_left(tmp_path):
    """A tokenizer.json would be read instead of the tokenizer.model that is written."""
    (tmp_path / "tokenizer.json").write_text("{}")
    copy_tokenizer(DEMOS["demo-phi3"], tmp_path)
    assert Tokenizer.from_folder(tmp_path).encode("Mary") and not (tmp_path / "tokenizer.json").exists()
