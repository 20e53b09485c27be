"""Profiles on the Hugging Face Hub, by its own client: `dkv profile push FILE REPO`, `dkv profile pull REPO`.

HF_ENDPOINT chooses another hub, and the client finds the token itself (`hf auth login`, HF_TOKEN).
"""

from __future__ import annotations

import argparse
import os
import shutil
from pathlib import Path

from dkv.errors import UserError
from dkv.profile_folders import cache_root

from . import profile_file


class HubError(UserError):
    """The hub refused, or the repository has not what was asked for."""


def _call(what: str, function, *arguments, **named):
    """Raises HubError: the client's own words, in one line."""
    from huggingface_hub.errors import HFValidationError

    try:
        return function(*arguments, **named)
    except (OSError, HFValidationError) as error:  # Its HTTP errors and those of a network are OSErrors.
        raise HubError(f"{what}: {' '.join(str(error).split()) or type(error).__name__}") from None
    except Exception as error:
        if type(error).__module__.startswith("httpx"):  # A connection that was not made.
            raise HubError(f"{what}: {' '.join(str(error).split()) or type(error).__name__}") from None
        raise


def push(path: Path, repo: str, private: bool) -> str:
    """Uploads a profile, and says at which commit it is. Raises ProfileError for a file that is none."""
    from huggingface_hub import HfApi

    profile_file.load(path)
    api = HfApi()
    _call(repo, api.create_repo, repo, private=private, exist_ok=True)
    done = _call(repo, api.upload_file, path_or_fileobj=str(path), path_in_repo=path.name, repo_id=repo, commit_message=f"Add {path.name}")
    return done.oid


def pull(what: str, revision: str | None, output: Path | None) -> tuple[Path, str]:
    """Downloads a profile, checks it, and puts it where "auto" looks for it, or to `output`; and its commit."""
    from huggingface_hub import HfApi, hf_hub_download

    owner, _, rest = what.partition("/")
    name, _, file = rest.partition("/")
    repo = f"{owner}/{name}"
    info = _call(repo, HfApi().model_info, repo, revision=revision)
    files = sorted(each.rfilename for each in info.siblings or [] if each.rfilename.endswith(".json"))
    if not file and len(files) != 1:
        raise HubError(f"{repo} has {len(files)} JSON files ({', '.join(files) or 'none'}): name one, {repo}/FILE.json")
    file = file or files[0]
    fetched = Path(_call(f"{repo}/{file}", hf_hub_download, repo, file, revision=info.sha))
    made = profile_file.load(fetched)
    target = output or cache_root() / "profiles" / Path(file).name
    if target.exists() and target.read_bytes() != fetched.read_bytes():
        raise HubError(f"{target}: another file is there already: give -o")
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = target.with_name(target.name + ".part")
    shutil.copyfile(fetched, scratch)
    os.replace(scratch, target)
    return target, f"{repo} at {info.sha}: {made.model['name']}, weights {made.model['weights']}"


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog=os.environ.get("DKV_COMMAND", "python -m dkv profile"), description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    works = parser.add_subparsers(dest="work", required=True)
    pushed = works.add_parser("push", help="upload a profile; the repository is made where it is missing")
    pushed.add_argument("file", type=Path, metavar="FILE")
    pushed.add_argument("repo", metavar="REPO", help="owner/name")
    pushed.add_argument("--private", action="store_true", help="of a repository that is made")
    pulled = works.add_parser("pull", help="download a profile, for profile=\"auto\" to find")
    pulled.add_argument("repo", metavar="REPO", help="owner/name, or owner/name/FILE.json where it has several")
    pulled.add_argument("--revision", help="a commit, a tag or a branch")
    pulled.add_argument("-o", "--output", type=Path, help="where to write it; by default among the profiles of ~/.cache/dkv")
    options = parser.parse_args(arguments)
    if options.work == "push":
        print(f"{options.repo}/{options.file.name}: {push(options.file, options.repo, options.private)}")
    else:
        print(*pull(options.repo, options.revision, options.output), sep=": ")
