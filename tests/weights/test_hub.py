"""weights/hub.py: which folder a name means, which files are fetched, and what is said when there is none."""

from __future__ import annotations

import shutil

import huggingface_hub
import pytest
from huggingface_hub import constants, errors
from weights_helpers import write_checkpoint, write_json

from model.errors import InputError
from weights import hub
from weights.safetensors_loader import read_headers


def test_a_local_folder_is_used_as_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner" / "name").mkdir(parents=True)
    assert hub.resolve(str(tmp_path)) == tmp_path
    assert hub.resolve("owner/name").resolve() == tmp_path / "owner" / "name"  # before the hub is asked


def test_a_demo_has_a_short_name(tmp_path, monkeypatch):
    monkeypatch.setitem(hub.DEMOS, "demo-llama", tmp_path)
    assert hub.resolve("demo-llama") == tmp_path
    assert all(folder.is_dir() for folder in hub.DEMOS.values())


def test_only_what_is_needed_is_fetched_and_the_small_files_first(tmp_path, monkeypatch):
    calls = []

    def snapshot_download(repo_id, *, revision, allow_patterns):
        calls.append((repo_id, revision, allow_patterns))
        for name in ("config.json", "tokenizer.model", "chat_template.jinja"):
            (tmp_path / name).touch()
        shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
        write_json(tmp_path / "model.safetensors.index.json", {"weight_map": shards})
        for name in set(shards.values()) & set(allow_patterns):
            (tmp_path / name).touch()
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert hub.resolve("owner/name", "v1", weights=False) == tmp_path
    assert [(repo_id, revision) for repo_id, revision, _ in calls] == [("owner/name", "v1")]
    assert "config.json" in calls[0][2] and not any(file.endswith(".safetensors") for file in calls[0][2])
    hub.resolve("owner/name", "v1", weights=True)
    assert calls[-1][2] == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An offline machine and its empty cache."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "cache"


def test_offline_the_cache_is_enough(cache, tmp_path):
    folder = write_checkpoint(tmp_path / "made", "llama")
    repository = cache / "models--owner--name"
    shutil.copytree(folder, repository / "snapshots" / "0123abc")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123abc")
    found = hub.resolve("owner/name")
    assert found == repository / "snapshots" / "0123abc"
    assert (found / "model.safetensors").exists()


def test_offline_with_the_small_files_alone_the_weights_are_not_in_the_cache(cache, tmp_path):
    folder = write_checkpoint(tmp_path / "made", "llama")
    (folder / "model.safetensors").unlink()
    repository = cache / "models--owner--name"
    shutil.copytree(folder, repository / "snapshots" / "0123abc")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123abc")
    assert (hub.resolve("owner/name", weights=False) / "config.json").exists()
    with pytest.raises(InputError, match="The weights of 'owner/name' are not in the local cache") as caught:
        hub.resolve("owner/name")
    assert "pickle" not in str(caught.value)


@pytest.mark.parametrize("absent", ["config.json", "tokenizer.json", "tokenizer_config.json"])
def test_offline_a_snapshot_of_which_another_program_wanted_less_is_not_complete(cache, tmp_path, absent):
    folder = write_checkpoint(tmp_path / "made", "llama")
    (folder / absent).unlink()
    repository = cache / "models--owner--name"
    shutil.copytree(folder, repository / "snapshots" / "0123abc")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123abc")
    with pytest.raises(InputError, match="cannot be reached to download 'owner/name', which is not complete in the local"):
        hub.resolve("owner/name", weights=False)


def test_what_the_hub_has_not_is_told_from_the_folder(tmp_path, monkeypatch):
    (tmp_path / "pytorch_model.bin").touch()

    def absent(*args, **kwargs):
        raise bare(
            errors.RemoteEntryNotFoundError if hasattr(errors, "RemoteEntryNotFoundError") else errors.EntryNotFoundError
        )

    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *args, **kwargs: str(tmp_path))
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", absent)
    assert hub.resolve("owner/name") == tmp_path
    with pytest.raises(InputError, match="pytorch_model.bin, a pickle"):
        read_headers(tmp_path)


def test_offline_without_a_cache_gets_a_sentence(cache):
    with pytest.raises(InputError, match="the hub cannot be reached to download 'owner/name'.*connect to the network"):
        hub.resolve("owner/name")


def bare(kind):
    """An error of the hub's library, without the response that its constructor wants."""
    error = kind.__new__(kind)
    error.args = ("first line\nsecond line",)
    return error


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (
            bare(errors.GatedRepoError),
            "'owner/name' at revision 'v9' is gated; ask for access at https://.*hf auth login",
        ),
        (bare(errors.RepositoryNotFoundError), "no folder and no hub repository 'owner/name'.*check the spelling"),
        (bare(errors.RevisionNotFoundError), "no 'owner/name' at revision 'v9'; the revisions"),
        (errors.HFValidationError("no"), "neither a folder nor a valid hub id"),
        (errors.LocalEntryNotFoundError("no"), "hub cannot be reached"),
        (errors.OfflineModeIsEnabled("no"), "hub cannot be reached"),
        (bare(errors.HfHubHTTPError), r"failed \(first line\); run again to resume"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (ConnectionError(), r"failed \(ConnectionError\)"),
    ],
)
def test_what_the_hub_refuses_gets_a_sentence(monkeypatch, error, sentence):
    def snapshot_download(*args, **kwargs):
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    with pytest.raises(InputError, match=sentence) as caught:
        hub.resolve("owner/name", "v9")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("", "There is no folder ''"),
        ("gpt2", "There is no folder 'gpt2'; give a checkpoint folder, a hub id like 'owner/name'"),
        ("./nowhere", "There is no folder './nowhere'"),
        ("/no/where/at/all", "There is no folder"),
        ("~/no-such-folder", "There is no folder"),
        ("owner/name/", "There is no folder"),
        ("C:\\models\\llama", "There is no folder"),
        ("null\0byte", "neither a folder nor a hub id|There is no folder"),
        ("x" * 5000, "neither a folder nor a hub id|There is no folder"),
        ("~nobody-of-that-name/x", "neither a folder nor a hub id|There is no folder"),
        ("own er/na me", "neither a folder nor a valid hub id"),
        ("owner/na--me..", "neither a folder nor a valid hub id"),
    ],
)
def test_names_that_mean_nothing_get_a_sentence(cache, name, sentence):
    with pytest.raises(InputError, match=sentence):
        hub.resolve(name)


def test_a_file_and_a_revision_of_a_folder_get_a_sentence(tmp_path):
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(InputError, match="is a file; give the checkpoint folder"):
        hub.resolve(str(tmp_path / "model.safetensors"))
    (tmp_path / "model-Q4_K_M.gguf").touch()
    with pytest.raises(InputError, match="is a GGUF file, which is not read here; take"):
        hub.resolve(str(tmp_path / "model-Q4_K_M.gguf"))
    with pytest.raises(InputError, match="A revision .'v1'. was given for the local folder"):
        hub.resolve(str(tmp_path), "v1")
