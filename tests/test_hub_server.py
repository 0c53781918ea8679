"""The Hub that other tests push to keeps what `huggingface_hub` gives it, and answers as the real one does."""

import json

CODE = """
import json, sys
from pathlib import Path
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError
)

api, folder, repo = HfApi(), Path(sys.argv[1]), "tester/first"

def name_of_error(action, *args, **kwargs):
    try:
        action(*args, **kwargs)
    except HfHubHTTPError as error:
        return type(error).__name__
    except ValueError as error:
        return str(error)

found = {"user": api.whoami()["name"], "missing": name_of_error(api.model_info, repo)}
found["url"] = str(api.create_repo(repo))
api.create_repo(repo, exist_ok=True)
first = api.upload_folder(repo_id=repo, folder_path=folder).oid
(folder / "config.json").write_text("{}")
second = api.upload_folder(repo_id=repo, folder_path=folder, commit_message="another config").oid
found["unchanged"] = api.upload_folder(repo_id=repo, folder_path=folder).oid == second
api.create_tag(repo, tag="v1", revision=first)
api.create_branch(repo, branch="trial/one", revision=first)
(folder / "notes.txt").write_text("on a branch")
api.upload_file(repo_id=repo, path_or_fileobj=folder / "notes.txt", path_in_repo="notes.txt", revision="trial/one")
api.delete_file("notes.txt", repo, revision="trial/one")

found["shas"] = [first, second]
found["tree"] = {
    entry.path: [entry.size, entry.lfs is not None]
    for entry in api.list_repo_tree(repo, recursive=True, revision=first) if hasattr(entry, "size")
}
found["top"] = sorted(entry.path for entry in api.list_repo_tree(repo))
found["commits"] = [commit.title for commit in api.list_repo_commits(repo)]
found["branches"] = sorted(branch.name for branch in api.list_repo_refs(repo).branches)
texts = {}
for revision in ("main", "v1", "trial/one", first, second):
    path = Path(hf_hub_download(repo, "config.json", revision=revision))
    texts[revision] = [path.read_text(), path.parts[-2]]
found["texts"] = texts
snapshot = Path(snapshot_download(repo, revision="v1"))
found["same"] = (snapshot / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
found["no entry"] = name_of_error(hf_hub_download, repo, "other.json")
found["no revision"] = name_of_error(hf_hub_download, repo, "config.json", revision="v2")
found["not mine"] = name_of_error(api.create_repo, "somebody/model")
found["bad card"] = name_of_error(
    api.upload_file, repo_id=repo, path_or_fileobj=b"---\\nlicense: [\\n---\\n", path_in_repo="README.md"
)

api.create_repo("tester/secret", private=True)
found["private"] = [api.model_info("tester/secret").private, name_of_error(HfApi(token=False).model_info, "tester/secret")]
found["stranger"] = name_of_error(HfApi(token="hf_wrong").upload_folder, repo_id=repo, folder_path=folder)
print(json.dumps(found))
"""


def test_pushing_and_pulling(hub, tmp_path, run_python):
    folder = tmp_path / "model"
    (folder / "examples").mkdir(parents=True)
    (folder / "config.json").write_text('{"first": 1}')
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# Model\n")
    (folder / "model.safetensors").write_bytes(bytes(range(256)) * 5000)
    (folder / "examples/a.txt").write_text("a")
    found = json.loads(run_python(CODE, folder, env=hub.env(tmp_path / "home")))
    first, second = found["shas"]
    assert found["user"] == "tester" and found["url"] == f"{hub.address}/tester/first"
    assert first != second and found["unchanged"]
    sizes = {"config.json": [12, False], "model.safetensors": [1_280_000, True], "examples/a.txt": [1, False]}
    assert sizes.items() <= found["tree"].items()
    assert found["top"] == ["README.md", "config.json", "examples", "model.safetensors"]
    assert found["commits"] == ["another config", "Upload folder using huggingface_hub", "initial commit"]
    assert found["branches"] == ["main", "trial/one"]
    assert found["texts"]["main"] == found["texts"][second] == ["{}", second]
    assert found["texts"]["v1"] == found["texts"][first] == ['{"first": 1}', first]
    assert found["texts"]["trial/one"][0] == '{"first": 1}'
    assert found["same"]
    assert found["missing"] == "RepositoryNotFoundError"
    assert (found["no entry"], found["no revision"]) == ("RemoteEntryNotFoundError", "RevisionNotFoundError")
    assert found["private"] == [True, "RepositoryNotFoundError"]
    assert found["not mine"] == "HfHubHTTPError" and found["stranger"] == "HfHubHTTPError"
    assert "YAML is invalid" in found["bad card"]
