"""A finished export sent to the Hugging Face hub, or a server that speaks like it: large files first, one commit."""

from contextlib import ExitStack
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HfHubHTTPError, HTTPError, RepositoryNotFoundError

from app.core import hub, security
from app.core.errors import Invalid, Unavailable
from app.core.work import Lease
from app.exports.models import Export


def send(lease: Lease, row: Export, folder: Path, names: list[str]) -> str:
    """Upload `names` into the repository, made private where it is new; its address.

    Repeatable: what the hub has already is not sent again. Raises Invalid where the hub refuses the token or the
    name, Unavailable where it cannot be reached, and whatever `lease.progress` raises.
    """
    sizes = {name: (folder / name).stat().st_size for name in names}
    done, total = 0, sum(sizes.values())
    lease.progress(0, total, phase="sending")
    api = HfApi(endpoint=hub.endpoint(), token=security.decrypt(row.sealed_token))
    repository = row.hub_repository
    try:
        url = api.create_repo(repository, private=True, exist_ok=True)
        additions = []
        with ExitStack() as opened:
            for name in sorted(names, key=lambda n: sizes[n]):
                # Only the Hugging Face hub itself is sure to have Xet; open files go the way that all servers have.
                source = opened.enter_context((folder / name).open("rb")) if hub.endpoint() else folder / name
                addition = CommitOperationAdd(path_in_repo=name, path_or_fileobj=source)
                api.preupload_lfs_files(repository, additions=[addition])
                additions.append(addition)
                done += sizes[name]
                lease.progress(done, total)
            message = f"{row.model_name}, made with GPT Builder"
            api.create_commit(repository, operations=additions, commit_message=message)
    except RepositoryNotFoundError as error:
        raise Invalid(f"The hub does not know {repository} for this token. Check the name and the token.") from error
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        if status in (401, 403):
            raise Invalid("The hub refuses this token. Make one that may write, then export again.") from error
        if 400 <= status < 500:
            raise Invalid(f"The hub refuses the files of {repository} (status {status}). Check the name.") from error
        raise Unavailable("The hub could not take the files. They are kept here; try it again.") from error
    except (HTTPError, OSError, ValueError) as error:
        raise Unavailable("The hub could not be reached, or the connection broke. The files are kept here.") from error
    return str(url)
