"""From a name to a folder on this machine: a shipped demo, a local folder, or a repository on the Hugging Face hub.

This module knows which files are needed, and nothing of what is in them. huggingface_hub downloads them: it resumes, shows
its progress bar, and takes them from its cache when there is no network.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from model.errors import InputError, reason, shown
from weights.files import ADAPTER, GGUF, GGUF_IS_NOT_READ, SMALL_FILES, weight_files

# Of each group a checkpoint has one.
Needed = Sequence[tuple[str, ...]]
NEEDED: Needed = (
    ("config.json", ADAPTER),
    ("tokenizer.json", "tokenizer.model"),
    ("tokenizer_config.json", "chat_template.jinja"),
)
DEMOS = {
    name: folder
    for name in ("demo-llama", "demo-phi3", "demo-qwen2")
    if (folder := Path(__file__).resolve().parent / name).is_dir()
}


def resolve(name: str, revision: str | None = None, *, weights: bool = True) -> Path:
    """The folder of a checkpoint, downloaded if need be.

    name: a key of DEMOS, a local folder, or a hub id `owner/name`
    revision: branch, tag or commit of a hub repository
    weights: False fetches the small files only, so that a wrong configuration is found before gigabytes are fetched
    Raises InputError when there is no such checkpoint, or it cannot be had.
    """
    path = DEMOS.get(name) or local_folder(name)
    if path is None:
        path = _download(name, revision, SMALL_FILES, NEEDED)
        if not weights:
            return path
        files = weight_files(path)
        return _download(name, revision, files, [(file,) for file in files], weights=True)
    if revision is not None:
        raise InputError(
            f"A revision ({shown(revision)}) was given for the local folder {path}; revisions name versions on the hub, "
            "leave it out."
        )
    return path


def local_folder(name: str) -> Path | None:
    """The local folder of that name; None when the name is a hub id. Raises InputError when it can be neither."""
    try:
        path = Path(name).expanduser()
        if name and path.is_dir():
            return path.resolve()  # so that two names of one folder are one checkpoint
        is_file = path.is_file()
    except (OSError, ValueError, RuntimeError):  # too long for a path, a null byte, no such user's home
        raise InputError(f"{shown(name)} is neither a folder nor a hub id; give one of the two.") from None
    if is_file and path.suffix == GGUF:
        raise InputError(f"{shown(name)} is a GGUF file, {GGUF_IS_NOT_READ}")
    if is_file:
        raise InputError(f"{shown(name)} is a file; give the checkpoint folder that it is in.")
    if not name or name[0] in "./~" or "\\" in name or name.count("/") != 1 or name.endswith("/"):
        demos = f" or one of {', '.join(DEMOS)}" if DEMOS else ""
        raise InputError(f"There is no folder {shown(name)}; give a checkpoint folder, a hub id like 'owner/name'{demos}.")
    return None


def _download(name: str, revision: str | None, files: list[str], needed: Needed, weights: bool = False) -> Path:
    """The snapshot's folder, with those of `files` that the repository has.

    needed: raise InputError where none of a group is in the cache and the hub cannot be reached. Without the network a
        snapshot is otherwise handed out as it is in the cache, which may hold what another program wanted of it
    weights: the files are those, and the small ones are there
    """
    # Imported here, since a local folder does without, and it takes a third of a second.
    from huggingface_hub import errors, hf_hub_download, snapshot_download

    where = shown(name) + (f" at revision {shown(revision)}" if revision else "")
    page = f"https://huggingface.co/{name}"
    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=files))
        for group in needed:
            if not any(os.path.lexists(folder / file) for file in group):
                hf_hub_download(name, group[0], revision=revision)
        return folder
    except errors.GatedRepoError:
        raise InputError(
            f"The repository {where} is gated; ask for access at {page}, then log in with `hf auth login`."
        ) from None
    except errors.RepositoryNotFoundError:
        raise InputError(
            f"There is no folder and no hub repository {where}; check the spelling, or log in with `hf auth login` "
            "if it is private."
        ) from None
    except errors.RevisionNotFoundError:
        raise InputError(f"The hub has no {where}; the revisions of the repository are listed at {page}.") from None
    except errors.HFValidationError:
        raise InputError(f"{shown(name)} is neither a folder nor a valid hub id; hub ids look like 'owner/name'.") from None
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled):
        if weights:
            raise InputError(
                f"The weights of {where} are not in the local cache, or not all of them, and the hub cannot be reached; "
                "connect to the network (and unset HF_HUB_OFFLINE), or give a local folder."
            ) from None
        raise InputError(
            f"There is no folder {shown(name)}, and the hub cannot be reached to download {where}, which is not complete "
            "in the local cache; connect to the network (and unset HF_HUB_OFFLINE), or give a local folder."
        ) from None
    except errors.EntryNotFoundError:
        return folder  # the hub has no such file; what the folder has instead is told when it is read
    except (errors.HfHubHTTPError, OSError) as error:  # a server error, a broken connection, a full disk
        raise InputError(f"Downloading {where} failed ({reason(error)}); run again to resume.") from None
