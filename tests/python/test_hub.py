"""Profiles to and from a hub: the Hub's own client against a stand-in server. The real hub is not reached."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading

import pytest

import huggingface_hub
from dkv import command
from dkv import profile_folders
from dkv.hf import commands, hub, profile_file

REPO = "someone/tiny"


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the hub as its client asks for: repositories of small files, one commit a push."""

    repos: dict[str, dict[str, bytes]] = {}
    commits: list[str] = []

    def log_message(self, *_):
        pass

    def answer(self, code: int, body: bytes = b"", **headers) -> None:
        self.send_response(code)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def answer_json(self, facts, code: int = 200, **headers) -> None:
        self.answer(code, json.dumps(facts).encode(), Content_Type="application/json", **headers)

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Authorization") != "Bearer hf_test":
            return self.answer_json({"error": "Invalid username or password."}, 401)
        if self.path == "/api/repos/create":
            facts = json.loads(body)
            name = f"{facts['organization']}/{facts['name']}" if facts.get("organization") else facts["name"]
            self.repos.setdefault(name, {})
            return self.answer_json({"url": f"http://{self.headers['Host']}/{name}"})
        name = "/".join(self.path.split("/")[3:5])
        if "/preupload/" in self.path:
            files = [{"path": one["path"], "uploadMode": "regular", "shouldIgnore": False} for one in json.loads(body)["files"]]
            return self.answer_json({"files": files})
        if "/commit/" in self.path:
            import base64

            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.repos[name][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self.commits.append(hashlib.sha1(body).hexdigest())
            url = f"http://{self.headers['Host']}/{name}/commit/{self.commits[-1]}"
            return self.answer_json({"success": True, "commitUrl": url, "commitOid": self.commits[-1], "hookOutput": ""})
        self.answer(404)

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = self.path.split("?")[0]
        if path.startswith("/api/models/"):
            name = "/".join(path.split("/")[3:5])
            if name not in self.repos:
                return self.answer_json({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
            siblings = [{"rfilename": file} for file in self.repos[name]]
            return self.answer_json({"id": name, "sha": self.commits[-1], "siblings": siblings, "tags": [], "private": False})
        owner, name, resolve, _, file = path.lstrip("/").split("/", 4)
        data = self.repos.get(f"{owner}/{name}", {}).get(file)
        if resolve != "resolve" or data is None:
            return self.answer_json({"error": "Entry not found"}, 404, X_Error_Code="EntryNotFound")
        self.answer(200, data, ETag=f'"{hashlib.sha1(data).hexdigest()}"', X_Repo_Commit=self.commits[-1])


@pytest.fixture
def server(monkeypatch, tmp_path):
    Hub.repos, Hub.commits = {}, []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    settings = {"HF_ENDPOINT": url, "HF_TOKEN": "hf_test", "HF_HOME": str(tmp_path / "hf"), "DKV_CACHE": str(tmp_path / "cache")}
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    # The client reads its variables once, when it is imported.
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))
    yield url
    server.shutdown()
    server.server_close()


@pytest.fixture
def mine(tmp_path):
    geometry = {"layers": 1, "compressed": [0], "q_heads": 1, "kv_heads": 1, "head_dim": 4}
    model = {"name": "tiny", "geometry": geometry, "config": "c0", "weights": "w0"}
    profile_file.Profile(model, {}, "head", 1.0, 0.2, [[1.0]]).save(tmp_path / "mine.json")
    return tmp_path / "mine.json"


def run(*arguments) -> int:
    return command.run(lambda: commands.profile([str(one) for one in arguments]))


def test_a_profile_that_was_pushed_is_pulled_and_found(server, mine, tmp_path, capsys):
    assert run("push", mine, REPO) == 0
    assert Hub.repos == {REPO: {"mine.json": mine.read_bytes()}}
    assert run("pull", REPO) == 0

    pulled = tmp_path / "cache" / "profiles" / "mine.json"
    assert pulled.read_bytes() == mine.read_bytes()
    assert capsys.readouterr().out.splitlines() == [
        f"{REPO}/mine.json: {Hub.commits[-1]}",
        f"{pulled}: {REPO} at {Hub.commits[-1]}: tiny, weights w0",
    ]
    assert pulled in profile_folders.paths()
    assert run("pull", REPO) == 0  # The same file is no other one.
    pulled.write_text("mine")
    assert run("pull", REPO) == 1 and pulled.read_text() == "mine"
    assert f"dkv: {pulled}: another file is there already: give -o\n" == capsys.readouterr().err


@pytest.mark.long
def test_the_environment_alone_chooses_the_hub(server, mine):
    done = subprocess.run([sys.executable, "-m", "dkv", "profile", "push", mine, REPO], env=os.environ, capture_output=True, text=True)

    assert done.stdout == f"{REPO}/mine.json: {Hub.commits[-1]}\n", done.stderr


def test_of_several_files_one_is_named(server, mine, tmp_path):
    Hub.repos[REPO], Hub.commits = {"a.json": mine.read_bytes(), "b/c.json": b"{}", "README.md": b"# x"}, ["0" * 40]

    with pytest.raises(hub.HubError, match=rf"^{REPO} has 2 JSON files \(a.json, b/c.json\): name one, {REPO}/FILE.json$"):
        hub.pull(REPO, None, tmp_path / "out.json")
    assert hub.pull(f"{REPO}/a.json", None, tmp_path / "out.json")[0].read_bytes() == mine.read_bytes()
    with pytest.raises(profile_file.ProfileError, match="c.json is not a dkv-profile file"):
        hub.pull(f"{REPO}/b/c.json", None, tmp_path / "other.json")
    assert not (tmp_path / "other.json").exists()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["pull", "someone/none"], "dkv: someone/none: 404 Client Error"),
        (["pull", "someone/tiny/none.json"], "dkv: someone/tiny/none.json: "),
        (["pull", "not a name/x"], "dkv: not a name/x: Repo id must use alphanumeric chars"),
        (["push", "FILE", "someone/tiny"], "is not a dkv-profile file"),
    ],
)
def test_what_the_hub_refuses_is_one_line(server, tmp_path, capsys, arguments, message):
    Hub.repos[REPO], Hub.commits = {"a.json": b"{}"}, ["0" * 40]
    (tmp_path / "FILE").write_text("{}")

    assert run(*[str(tmp_path / "FILE") if word == "FILE" else word for word in arguments]) == 1
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1


def test_without_a_token_nothing_is_pushed(server, mine, capsys, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")

    assert run("push", mine, REPO) == 1
    assert "401" in capsys.readouterr().err and Hub.repos == {}


def test_a_hub_that_is_not_there_is_one_line(mine, capsys, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:1")

    assert run("push", mine, REPO) == 1
    assert capsys.readouterr().err.startswith(f"dkv: {REPO}: ")
