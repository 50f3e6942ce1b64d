"""A folder goes to the hub, here a stand-in on this machine."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from draftopd.errors import DraftError
from draftopd.publishing.hub import check_repo, push, require_login
from hub_server import TOKEN, Hub, hub


@pytest.fixture(scope="module")
def server() -> Iterator[Hub]:
    with hub() as running:
        yield running


@pytest.fixture
def folder(folders: dict[str, Path]) -> Path:
    return folders["dflash-zlab-None"]


def test_a_folder_becomes_a_private_repository_and_is_replaced_later(server, folder, tmp_path):
    api = HfApi(endpoint=server.endpoint, token=TOKEN)
    require_login(api)
    url = push(api, folder, "me/mine", private=True)
    assert url == f"{server.endpoint}/me/mine"
    assert server.private["me/mine"]
    assert server.files["me/mine"] == {file.name: file.read_bytes() for file in folder.iterdir()}
    (tmp_path / "README.md").write_text("---\ntags: [a]\n---\n# new\n")
    push(api, tmp_path, "me/mine", private=False)
    assert server.private["me/mine"]  # it stays what it was
    assert server.files["me/mine"]["README.md"] == (tmp_path / "README.md").read_bytes()


def test_what_the_hub_refuses_is_one_line_and_the_folder_stays(server, folder):
    with pytest.raises(DraftError, match="refuses the login"):
        require_login(HfApi(endpoint=server.endpoint, token="hf_wrong"))
    with pytest.raises(DraftError, match="cannot be reached"):
        require_login(HfApi(endpoint="http://127.0.0.1:9", token=TOKEN))
    with pytest.raises(DraftError) as refused:
        push(HfApi(endpoint=server.endpoint, token=TOKEN), folder, "they/mine", private=True)
    assert str(refused.value).startswith(f"{folder} is written, but the hub does not take it as they/mine: ")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["mine", "me/my/mine", "me/my mine", "me/--"])
def test_names_are_checked_before_anything_runs(name):
    with pytest.raises(DraftError, match=f"push_to_hub={name}"):
        check_repo(name)
    check_repo("me/mine")
