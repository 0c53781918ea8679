"""A Hub for tests: an HTTP server on 127.0.0.1 that `huggingface_hub` pushes models to and pulls them from (`HF_ENDPOINT`),
and that `datasets` loads and streams data sets from.

`python tests/hub_server.py FOLDER` prints its address and serves until it is killed. Everything is kept in FOLDER: contents
once, by their SHA-256; a JSON file of paths for each commit; branches and tags. One user, "tester", with one token. It
behaves as the Hub does in what the tests need: large and binary files go by LFS (basic transfer) and are answered with a
redirect, metadata of README.md is checked, private repositories do not exist for others, a revision is a commit, a branch or
a tag, files are read in part (Range). Data sets are kept as `datasets/owner/name`. Neither Xet, pull requests nor other kinds
of repositories.
"""

import base64
import hashlib
import json
import re
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

USER, TOKEN = "tester", "hf_tests"
MAX_REGULAR_FILE = 1_000_000  # bytes; the Hub's limit is 10 MB
LFS_SUFFIXES = (".safetensors", ".wav", ".flac", ".png", ".bin", ".parquet", ".tar")  # as in the Hub's .gitattributes


class NotFoundError(Exception):
    """Returned to clients with the Hub's code: RepoNotFound, RevisionNotFound or EntryNotFound."""


class Store:
    """Repositories on disk."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.lock = threading.Lock()
        (folder / "blobs").mkdir(parents=True, exist_ok=True)

    def add_blob(self, content: bytes) -> str:
        digest = hashlib.sha256(content).hexdigest()
        if not self.blob(digest).exists():
            self.blob(digest).write_bytes(content)
        return digest

    def blob(self, digest: str) -> Path:
        return self.folder / "blobs" / digest

    def refs_file(self, repo: str) -> Path:
        return self.folder / "models" / repo / "refs.json"

    def create(self, repo: str, private: bool) -> bool:
        """Returns whether it is new. A repository starts with an empty commit, as the Hub's do."""
        with self.lock:
            if self.refs_file(repo).exists():
                return False
            self.refs_file(repo).parent.mkdir(parents=True)
            self.save_refs(repo, {"private": private, "branches": {}, "tags": {}})
        self.commit(repo, "main", {}, "initial commit")
        return True

    def refs(self, repo: str) -> dict:
        if not self.refs_file(repo).exists():
            raise NotFoundError("RepoNotFound")
        return json.loads(self.refs_file(repo).read_text())

    def save_refs(self, repo: str, refs: dict) -> None:
        self.refs_file(repo).write_text(json.dumps(refs))

    def resolve(self, repo: str, revision: str) -> str:
        """A branch, tag or commit -> the commit."""
        refs = self.refs(repo)
        sha = refs["branches"].get(revision) or refs["tags"].get(revision) or revision
        if not re.fullmatch("[0-9a-f]{40}", sha) or not self.commit_file(repo, sha).exists():
            raise NotFoundError("RevisionNotFound")
        return sha

    def commit_file(self, repo: str, sha: str) -> Path:
        return self.refs_file(repo).with_name(f"{sha}.json")

    def read_commit(self, repo: str, sha: str) -> dict:
        return json.loads(self.commit_file(repo, sha).read_text())

    def files(self, repo: str, sha: str) -> dict[str, dict]:
        """Path -> `{"sha256", "size", "lfs", "oid"}`."""
        return self.read_commit(repo, sha)["files"]

    def commit(self, repo: str, branch: str, files: dict[str, dict], message: str) -> str:
        with self.lock:
            refs = self.refs(repo)
            record = {"parent": refs["branches"].get(branch), "message": message, "files": files}
            text = json.dumps(record, sort_keys=True)
            sha = hashlib.sha1(text.encode()).hexdigest()
            self.commit_file(repo, sha).write_text(text)
            refs["branches"][branch] = sha
            self.save_refs(repo, refs)
            return sha


def file_entry(content: bytes, digest: str, lfs: bool) -> dict:
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    return {"sha256": digest, "size": len(content), "lfs": lfs, "oid": blob}


def metadata_problem(card: str) -> str | None:
    """What the Hub would find wrong with a README.md, as far as it can be checked here."""
    block = re.match(r"---\n(.*?)\n---(\n|$)", card, flags=re.DOTALL)
    try:
        metadata = yaml.safe_load(block[1]) if block else {}
    except yaml.YAMLError as error:
        return f"YAML is invalid: {error}"
    if not isinstance(metadata, dict):
        return "metadata must be a mapping"
    for name in ("license", "library_name", "pipeline_tag"):
        if not isinstance(metadata.get(name, ""), str):
            return f'"{name}" must be a string'
    if metadata.get("license") == "other" and "license_name" not in metadata:
        return '"license_name" is required for the license "other"'
    return None


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    @property
    def store(self) -> Store:
        return self.server.store

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    @property
    def is_user(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def answer(self, status: int, body=b"", **headers) -> None:
        if not isinstance(body, bytes):
            body = json.dumps(body).encode()
            headers["Content-Type"] = "application/json"
        self.send_response(status)
        headers.setdefault("Content-Length", len(body))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, status: int, code: str, message: str, **headers) -> None:
        self.answer(status, {"error": message}, X_Error_Code=code, X_Error_Message=message, **headers)

    def read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            chunks = []
            while size := int(self.rfile.readline(), 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(chunks)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def handle_request(self) -> None:
        url = urlsplit(self.path)
        self.query = {name: values[-1] for name, values in parse_qs(url.query).items()}
        body = self.read_body()
        for methods, pattern, action in ROUTES:
            match = re.fullmatch(pattern, url.path)
            if match is not None and self.command in methods.split():
                try:
                    parts = [None if part is None else unquote(part).removeprefix("models/") for part in match.groups()]
                    return action(self, body, *parts)
                except NotFoundError as error:
                    return self.refuse(404, str(error), f"{error}: {self.path}")
        return self.refuse(404, "NotFound", f"this test server has no {self.command} {self.path}")

    do_GET = do_HEAD = do_POST = do_PUT = handle_request  # noqa: N815

    # --- Who ------------------------------------------------------------------------------------------------------------

    def whoami(self, body):
        if not self.is_user:
            return self.refuse(401, "Unauthorized", "Invalid user token.")
        return self.answer(200, {"type": "user", "name": USER, "orgs": [], "auth": {"accessToken": {"role": "write"}}})

    def may_write(self, repo: str) -> bool:
        if not self.is_user:
            self.refuse(401, "Unauthorized", "Invalid username or password.")
        elif not repo.removeprefix("datasets/").startswith(f"{USER}/"):
            self.refuse(403, "Forbidden", f"{USER} has no right to write to {repo}")
        else:
            return True
        return False

    def check_readable(self, repo: str) -> None:
        if self.store.refs(repo)["private"] and not self.is_user:
            raise NotFoundError("RepoNotFound")

    # --- Writing --------------------------------------------------------------------------------------------------------

    def create(self, body):
        asked = json.loads(body)
        repo = f"{asked.get('organization') or USER}/{asked['name']}"
        if asked.get("type") == "dataset":
            repo = f"datasets/{repo}"
        if not self.may_write(repo):
            return None
        new = self.store.create(repo, asked.get("visibility") == "private")
        answer = {"url": f"{self.address}/{repo}", "name": repo}
        if not new:
            answer["error"] = "You already created this model repo"
        return self.answer(200 if new else 409, answer)

    def validate(self, body):
        problem = metadata_problem(json.loads(body)["content"])
        errors = [] if problem is None else [{"message": problem}]
        return self.answer(400 if errors else 200, {"errors": errors, "warnings": []})

    def preupload(self, body, repo, revision):
        if not self.may_write(repo):
            return None
        files = self.store.files(repo, self.store.resolve(repo, revision))
        modes = []
        for file in json.loads(body)["files"]:
            lfs = file["path"].endswith(LFS_SUFFIXES) or file["size"] > MAX_REGULAR_FILE
            entry = files.get(file["path"])
            known = None if entry is None else entry["sha256"] if entry["lfs"] else entry["oid"]
            modes.append({"path": file["path"], "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False, "oid": known})
        return self.answer(200, {"files": modes})

    def lfs_batch(self, body, repo):
        if not self.may_write(repo):
            return None
        self.store.refs(repo)
        objects = json.loads(body)["objects"]
        for item in objects:
            if not self.store.blob(item["oid"]).exists():
                item["actions"] = {"upload": {"href": f"{self.address}/upload/{item['oid']}"}}
        return self.answer(200, {"transfer": "basic", "objects": objects})

    def lfs_upload(self, body, digest):
        if hashlib.sha256(body).hexdigest() != digest:
            return self.refuse(400, "BadDigest", "the content is not what was announced")
        self.store.add_blob(body)
        return self.answer(200)

    def commit(self, body, repo, branch):
        if not self.may_write(repo):
            return None
        if branch not in self.store.refs(repo)["branches"]:
            raise NotFoundError("RevisionNotFound")
        files = self.store.files(repo, self.store.resolve(repo, branch))
        message = ""
        for line in body.splitlines():
            operation = json.loads(line)
            kind, value = operation["key"], operation["value"]
            if kind == "header":
                message = value["summary"]
            elif kind == "file":
                content = base64.b64decode(value["content"])
                files[value["path"]] = file_entry(content, self.store.add_blob(content), lfs=False)
            elif kind == "lfsFile":
                content = self.store.blob(value["oid"]).read_bytes()
                files[value["path"]] = file_entry(content, value["oid"], lfs=True)
            elif kind == "deletedFile":
                del files[value["path"]]
            else:
                return self.refuse(400, "BadRequest", f"this test server has no {kind}")
        sha = self.store.commit(repo, branch, files, message)
        return self.answer(200, {"success": True, "commitOid": sha, "commitUrl": f"{self.address}/{repo}/commit/{sha}"})

    def add_ref(self, body, repo, kind, name):
        if not self.may_write(repo):
            return None
        refs, asked = self.store.refs(repo), json.loads(body)
        # A tag's address holds the revision it is for, a branch's its own name.
        start, name = (name, asked["tag"]) if kind == "tag" else (asked.get("startingPoint", "main"), name)
        known = refs["tags" if kind == "tag" else "branches"]
        if name in known:
            return self.refuse(409, "Conflict", f"Reference {name} already exists")
        known[name] = self.store.resolve(repo, start)
        self.store.save_refs(repo, refs)
        return self.answer(200, {})

    # --- Reading --------------------------------------------------------------------------------------------------------

    def info(self, body, repo, revision):
        self.check_readable(repo)
        sha = self.store.resolve(repo, revision or "main")
        siblings = [{"rfilename": path} for path in self.store.files(repo, sha)]
        facts = {
            "id": repo.removeprefix("datasets/"),
            "sha": sha,
            "private": self.store.refs(repo)["private"],
            "siblings": siblings,
            "tags": [],
        }
        return self.answer(200, facts)

    def tree(self, body, repo, revision, folder):
        self.check_readable(repo)
        prefix = f"{folder}/" if folder else ""
        entries = {}
        for path, file in self.store.files(repo, self.store.resolve(repo, revision)).items():
            if not path.startswith(prefix):
                continue
            below = path.removeprefix(prefix)
            if "/" in below and self.query.get("recursive", "").lower() != "true":
                name = prefix + below.partition("/")[0]
                entries[name] = {"type": "directory", "path": name, "size": 0, "oid": hashlib.sha1(name.encode()).hexdigest()}
                continue
            entries[path] = self.entry(path, file)
        if folder and not entries:
            raise NotFoundError("EntryNotFound")
        return self.answer(200, list(entries.values()))

    def list_refs(self, body, repo):
        self.check_readable(repo)
        refs = self.store.refs(repo)
        answer = {
            kind: [{"name": name, "ref": f"refs/{place}/{name}", "targetCommit": sha} for name, sha in refs[kind].items()]
            for kind, place in (("branches", "heads"), ("tags", "tags"))
        }
        return self.answer(200, {**answer, "converts": []})

    def list_commits(self, body, repo, revision):
        self.check_readable(repo)
        commits, sha = [], self.store.resolve(repo, revision)
        while sha:
            record = self.store.read_commit(repo, sha)
            commit = {"id": sha, "title": record["message"], "message": "", "authors": [{"user": USER}]}
            commits.append({**commit, "date": "2026-01-01T00:00:00.000Z"})
            sha = record["parent"]
        return self.answer(200, commits)

    def resolve(self, body, repo, revision, path):
        self.check_readable(repo)
        sha = self.store.resolve(repo, revision)
        file = self.store.files(repo, sha).get(path)
        if file is None:
            return self.refuse(404, "EntryNotFound", f"no {path} in {revision}", X_Repo_Commit=sha)
        if file["lfs"]:  # lies on another host than the Hub: clients then take the metadata from here and send no token there
            linked = {"X_Linked_Size": file["size"], "X_Linked_ETag": f'"{file["sha256"]}"'}
            storage = self.address.replace("127.0.0.1", "localhost")
            return self.answer(302, X_Repo_Commit=sha, Location=f"{storage}/storage/{file['sha256']}", **linked)
        content = self.store.blob(file["sha256"]).read_bytes()
        return self.answer_part(content, X_Repo_Commit=sha, ETag=f'"{file["oid"]}"')

    def answer_part(self, content: bytes, **headers):
        """The bytes that were asked for: all, or a range."""
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if asked is None:
            return self.answer(200, content, **headers, Accept_Ranges="bytes")
        first, last = int(asked[1]), min(int(asked[2] or len(content)), len(content) - 1)
        if first > last:
            return self.refuse(416, "BadRange", "no such bytes")
        return self.answer(206, content[first : last + 1], Content_Range=f"bytes {first}-{last}/{len(content)}", **headers)

    def paths_info(self, body, repo, revision):
        self.check_readable(repo)
        asked = json.loads(body) if body.startswith(b"{") else parse_qs(body.decode())
        files = self.store.files(repo, self.store.resolve(repo, revision))
        return self.answer(200, [self.entry(path, files[path]) for path in asked["paths"] if path in files])

    @staticmethod
    def entry(path: str, file: dict) -> dict:
        entry = {"type": "file", "path": path, "size": file["size"], "oid": file["oid"]}
        if file["lfs"]:
            entry["lfs"] = {"oid": file["sha256"], "size": file["size"], "pointerSize": 135}
        return entry

    def storage(self, body, digest):
        if not self.store.blob(digest).exists():
            raise NotFoundError("EntryNotFound")
        return self.answer_part(self.store.blob(digest).read_bytes(), ETag=f'"{digest}"')


REPO = r"((?:datasets/)?[\w.-]+/[\w.-]+)"
API = r"/api/((?:models|datasets)/[\w.-]+/[\w.-]+)"
ROUTES = [
    ("GET", r"/api/whoami-v2", Handler.whoami),
    ("POST", r"/api/repos/create", Handler.create),
    ("POST", r"/api/validate-yaml", Handler.validate),
    ("POST", rf"{API}/preupload/([^/]+)", Handler.preupload),
    ("POST", rf"/{REPO}\.git/info/lfs/objects/batch", Handler.lfs_batch),
    ("PUT", r"/upload/([0-9a-f]{64})", Handler.lfs_upload),
    ("POST", rf"{API}/commit/([^/]+)", Handler.commit),
    ("POST", rf"{API}/(branch|tag)/([^/]+)", Handler.add_ref),
    ("GET", rf"{API}(?:/revision/([^/]+))?", Handler.info),
    ("GET", rf"{API}/tree/([^/]+)(?:/(.+))?", Handler.tree),
    ("POST", rf"{API}/paths-info/([^/]+)", Handler.paths_info),
    ("GET", rf"{API}/refs", Handler.list_refs),
    ("GET", rf"{API}/commits/([^/]+)", Handler.list_commits),
    ("GET HEAD", rf"/{REPO}/resolve/([^/]+)/(.+)", Handler.resolve),
    ("GET HEAD", r"/storage/([0-9a-f]{64})", Handler.storage),
]


def main(folder: str) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.store = Store(Path(folder))
    print(f"http://127.0.0.1:{server.server_address[1]}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main(sys.argv[1])
