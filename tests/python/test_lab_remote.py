"""dkv-lab store against a real S3 server over HTTP (moto's): what dkv does to files, done to objects."""

from __future__ import annotations

import http.server
import json
import os
import signal
import struct
import subprocess
import sys
import threading
import urllib.request

import numpy as np
import pytest
from moto.server import ThreadedMotoServer
from s3fs import S3FileSystem
from safetensors.numpy import save_file

from dkv import command, programs
from dkv.errors import UserError
from dkv_lab import object_store, remote

pytestmark = pytest.mark.e2e

FILES, TOKENS = 6, 128
FLAGS = ["--", "--policy", "knorm", "--window", "8"]
PRUNE = [*FLAGS, "--unmeasured"]


@pytest.fixture(scope="module")
def server():
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    settings = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_DEFAULT_REGION": "us-east-1"
    }  # fmt: skip
    os.environ.update(settings)
    yield settings["AWS_ENDPOINT_URL"]
    for name in settings:
        del os.environ[name]
    server.stop()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Caches of normal numbers on a disk, of two sizes."""
    folder, rng = tmp_path_factory.mktemp("caches"), np.random.default_rng(1)
    for index in range(FILES):
        tokens = TOKENS * (1 + index % 2)
        rows = {f"layers.{layer}.{part}": rng.normal(size=(2, tokens, 16)).astype("f4") for layer in range(3) for part in ("keys", "values")}
        words = {"format": "dkv", "version": "1", "model": "a small one", "n_prompt": str(tokens)}
        save_file(rows, folder / f"c{index}.safetensors", words)
    return folder


@pytest.fixture
def store(server, made):
    """s3://caches/store with them, a page and a folder below."""
    urllib.request.urlopen(urllib.request.Request(f"{server}/moto-api/reset", method="POST")).read()
    made_of = remote.Store("s3://caches/store")
    made_of.fs.mkdir("caches")
    for path in made.iterdir():
        made_of.fs.put_file(str(path), f"caches/store/{path.name}")
    made_of.fs.pipe_file("caches/store/notes.txt", b"not a cache")
    made_of.fs.put_file(str(made / "c0.safetensors"), "caches/store/below/c9.safetensors")
    return made_of


LAYERS, HEADS, DIM, CHUNK = 3, 2, 16, 64


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """What engines make of two prompts: a folder of vLLM's ExampleConnector, and one of LMCache's chunks."""
    root, rng = tmp_path_factory.mktemp("folders"), np.random.default_rng(2)
    (root / "vllm" / "0f3a").mkdir(parents=True)
    (root / "lmcache" / "p0").mkdir(parents=True)
    both = rng.normal(size=(2, LAYERS, TOKENS, HEADS, DIM)).astype("f4")
    for layer in range(LAYERS):
        save_file({"kv_cache": np.ascontiguousarray(both[:, layer])}, root / f"vllm/0f3a/model.layers.{layer}.self_attn.attn.safetensors")
    for index in range(TOKENS // CHUNK):
        chunk = both[:, :, index * CHUNK : (index + 1) * CHUNK].reshape(2, LAYERS, CHUNK, HEADS * DIM)
        (root / f"lmcache/p0/{index}.data").write_bytes(struct.pack("iiiiiii", chunk.nbytes, 1, 4, *chunk.shape) + chunk.tobytes())
    return root


@pytest.fixture
def engines(store, folders):
    """Both beside the store's caches."""
    for path in folders.rglob("*.*"):
        store.fs.put_file(str(path), f"caches/store/{path.relative_to(folders)}")
    return store


def run(*arguments) -> int:
    return command.run(lambda: remote.main([str(one) for one in arguments]))


def objects(store, folder="caches/store") -> dict[str, bytes]:
    return {path.rsplit("/", 1)[-1]: store.fs.cat_file(path) for path in store.fs.find(folder, maxdepth=1)}


def events(capsys) -> list[dict]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_ls_reads_headers_of_caches_and_passes_over_the_rest(store, capsys, monkeypatch):
    monkeypatch.setattr(remote.Store, "get", lambda *_: pytest.fail("all of an object was read"))
    assert run("ls", store.url, "-r", "--json") == 0

    found = {one["file"]: one for one in events(capsys)}
    assert set(found) == {f"{store.url}/{name}" for name in [*(f"c{i}.safetensors" for i in range(FILES)), "below/c9.safetensors"]}
    one = found[f"{store.url}/c1.safetensors"]
    assert (one["tokens"], one["model"], one["whole"], one["format"]) == (2 * TOKENS, "a small one", True, "dkv")
    assert run("ls", store.url) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith(f"{FILES} caches, ")


def test_verify_names_what_is_damaged(store, made, capsys):
    whole = (made / "c2.safetensors").read_bytes()
    store.fs.pipe_file("caches/store/c2.safetensors", whole[:-4] + np.float32("nan").tobytes())
    assert run("verify", store.url) == 1

    seen = capsys.readouterr()
    assert f"dkv-lab store: {store.url}/c2.safetensors: " in seen.err and "dkv-store-" not in seen.err
    assert seen.out.splitlines()[2] == f"{store.url}/c2.safetensors: damaged" and seen.out.count(": good\n") == FILES - 1


def test_compact_writes_what_dkv_writes_and_goes_on_where_it_was_stopped(store, made, tmp_path, capsys, monkeypatch):
    flags = [*FLAGS, "--capacity", "32"]
    before = objects(store)
    subprocess.run([programs.find("dkv"), "compact", made, "-o", f"{tmp_path}/", *flags[1:]], check=True, capture_output=True)
    put = remote.Store.put

    def stop(self, source, path, *more):
        if path.endswith("c3.safetensors"):
            raise KeyboardInterrupt
        put(self, source, path, *more)

    monkeypatch.setattr(remote.Store, "put", stop)
    assert run("compact", store.url, "-o", "s3://caches/small", *flags) == 130
    monkeypatch.setattr(remote.Store, "put", put)
    capsys.readouterr()
    assert run("compact", store.url, "-o", "s3://caches/small", "--json", *flags) == 0

    assert [one["event"] for one in events(capsys)] == ["there"] * 3 + ["compacted"] * 3
    assert objects(store, "caches/small") == {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert objects(store) == before
    # What is there and was made otherwise is not written over, nor is what came there meanwhile.
    assert run("compact", store.url, "-o", "s3://caches/small", *FLAGS, "--capacity", "16") == 1
    assert capsys.readouterr().err.count("was made of something else or with other flags: give another output") == FILES
    monkeypatch.setattr(remote.Store, "facts", lambda *_: None)
    assert run("compact", f"{store.url}/c0.safetensors", "-o", "s3://caches/small", *flags) == 1
    assert capsys.readouterr().err == "dkv-lab store: s3://caches/small/c0.safetensors: it changed meanwhile: left as it is\n"


def test_prune_brings_a_store_under_its_budget(store, capsys):
    before = objects(store)
    del before["notes.txt"]
    size = sum(map(len, before.values()))
    assert run("prune", store.url, "--budget", size * 7 // 10, "--dry-run", "--json", *PRUNE) == 0
    planned = events(capsys)
    assert objects(store)["c1.safetensors"] == before["c1.safetensors"]

    assert run("prune", store.url, "--budget", size * 7 // 10, "--json", *PRUNE) == 0

    done = events(capsys)
    assert [(one["event"], one.get("file")) for one in done] == [(one["event"], one.get("file")) for one in planned]
    after = objects(store)
    assert after.pop("notes.txt") == b"not a cache"
    assert done[-1]["bytes_after"] == sum(map(len, after.values())) <= size * 7 // 10
    changed = {name for name in before if before[name] != after[name]}
    assert {one["file"].rsplit("/", 1)[-1] for one in done[:-1]} == changed and 0 < len(changed) < FILES
    assert run("verify", store.url) == 0
    assert run("prune", store.url, "--budget", "1KiB", *PRUNE) == 1  # No cache is compacted twice, and none deleted.
    assert set(objects(store)) == {*before, "notes.txt"}
    assert run("prune", store.url, "--budget", "1KiB", "--delete", *PRUNE) == 0
    assert set(objects(store)) == {"notes.txt"}


@pytest.mark.parametrize("when", ["while it is read", "while it is compacted"])
def test_an_object_that_changes_meanwhile_is_left_to_who_changed_it(store, made, capsys, monkeypatch, when):
    url, theirs = f"{store.url}/c0.safetensors", (made / "c1.safetensors").read_bytes()
    original = remote._dkv
    if when == "while it is read":
        get_file = store.fs.get_file  # fsspec has one instance for all who ask.
        monkeypatch.setattr(store.fs, "get_file", lambda *a: (get_file(*a), store.fs.pipe_file("caches/store/c0.safetensors", theirs)))
    else:
        monkeypatch.setattr(
            remote, "_dkv", lambda *a: (a[0] == "prune" and store.fs.pipe_file("caches/store/c0.safetensors", theirs), original(*a))[1]
        )

    assert run("prune", url, "--budget", "1KiB", *PRUNE) == 1

    assert store.fs.cat_file("caches/store/c0.safetensors") == theirs
    assert "changed" in capsys.readouterr().err


def test_a_killed_prune_leaves_whole_objects_and_is_gone_on_with(store, capsys):
    arguments = ["-m", "dkv_lab", "store", "prune", store.url, "--budget", "600KiB", "--json", *PRUNE]
    process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.PIPE, text=True)
    assert json.loads(process.stdout.readline())["event"] == "compacted"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert run("verify", store.url) == 0
    capsys.readouterr()

    run("ls", store.url, "--json")
    smaller = [one["file"] for one in events(capsys) if not one["whole"]]
    assert smaller
    run("prune", store.url, "--budget", "600KiB", "--json", *PRUNE)
    assert not set(smaller) & {one.get("file") for one in events(capsys)}


def test_an_object_that_s3_does_not_take_at_once_is_left(store, tmp_path, monkeypatch):
    monkeypatch.setattr(object_store, "_OBJECT_MAX", 9)
    (tmp_path / "big").write_bytes(b"0123456789")

    with pytest.raises(UserError, match="^s3://caches/big: 10 bytes are more than S3 takes at once: left as it is$"):
        store.put(tmp_path / "big", "caches/big", {"IfNoneMatch": "*"}, {})


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["ls", "/tmp"], "^/tmp: a URL was expected, s3://bucket/folder; paths of this machine are dkv's own: dkv ls, verify, prune$"),
        (["ls", "nosuch://x"], "^nosuch://x: "),
        (["prune", "memory://x", "--budget", "1"], "^memory://x: read only: what is written must be conditional"),
        (["compact", "s3://caches/x", "-o", "memory://y"], "^memory://y: read only"),
    ],
)
def test_places_that_are_not_served_are_refused(server, arguments, message):
    with pytest.raises(UserError, match=message):
        remote.main(arguments)


def test_a_bucket_or_a_server_that_is_not_there_is_one_line(server, capsys, monkeypatch):
    assert run("ls", "s3://nosuch/x") == 1
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    S3FileSystem.clear_instance_cache()
    assert run("ls", "s3://caches/store") == 1
    S3FileSystem.clear_instance_cache()

    bucket, endpoint = capsys.readouterr().err.splitlines()
    assert bucket.startswith("dkv: ") and "nosuch" in bucket
    assert endpoint.startswith('dkv: s3://caches/store: Could not connect to the endpoint URL: "http://127.0.0.1:1/')


@pytest.mark.parametrize("arguments", [["compact", "s3://b"], ["prune", "s3://b"], ["ls", "s3://b", "--delete"], ["ls", "s3://b", "--", "-r"], ["prune", "s3://b", "--budget", "1", "--", "--watch"]])
def test_flags_that_do_not_belong_are_refused(arguments, capsys):
    with pytest.raises(SystemExit, match="^2$"):
        remote.parse(arguments)

    assert "error: " in capsys.readouterr().err


class OnceBusy(http.server.BaseHTTPRequestHandler):
    """Refuses a first upload as S3 does under load, and takes the next."""

    protocol_version = "HTTP/1.1"
    taken: list[int] = []

    def do_PUT(self):
        OnceBusy.taken.append(len(self.rfile.read(int(self.headers["Content-Length"]))))
        busy = len(OnceBusy.taken) == 1
        body = b"<Error><Code>SlowDown</Code><Message>Reduce your request rate.</Message></Error>" if busy else b""
        self.send_response(503 if busy else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        pass


def test_an_upload_that_is_refused_once_is_never_sent_again_from_its_end(tmp_path, monkeypatch):
    """One attempt of botocore's; s3fs's own would begin where the file ended, and store nothing."""
    busy = http.server.ThreadingHTTPServer(("127.0.0.1", 0), OnceBusy)
    threading.Thread(target=busy.serve_forever, daemon=True).start()
    for name, value in {"ENDPOINT_URL": f"http://127.0.0.1:{busy.server_port}", "ACCESS_KEY_ID": "a", "SECRET_ACCESS_KEY": "b",
                        "DEFAULT_REGION": "us-east-1", "MAX_ATTEMPTS": "1"}.items():  # fmt: skip
        monkeypatch.setenv(f"AWS_{name}", value)
    S3FileSystem.clear_instance_cache()
    source = tmp_path / "cache.safetensors"
    source.write_bytes(b"x" * 5000)

    with pytest.raises(UserError, match="s3://caches/cache.safetensors: not written: .*Reduce your request rate"):
        remote.Store("s3://caches").writes().put(source, "caches/cache.safetensors", {"IfNoneMatch": "*"}, {})

    busy.shutdown()
    S3FileSystem.clear_instance_cache()
    assert min(OnceBusy.taken) >= 5000


def test_a_name_that_would_leave_the_folder_is_refused(store, monkeypatch):
    monkeypatch.setattr(store.fs, "find", lambda *_, **__: {"caches/store/a/../../x": {"type": "file", "size": 1}})
    with pytest.raises(UserError, match=r"s3://caches/store/a/\.\./\.\./x: no file can have this name: rename the object"):
        store.objects(True)


def test_delete_leaves_what_dkv_cannot_read(store, capsys):
    store.fs.pipe_file("caches/store/c2.safetensors", b"\x10\0\0\0\0\0\0\0{\"not\": header")
    assert run("prune", store.url, "--budget", "1", "--delete", *PRUNE) == 1

    assert list(objects(store)) == ["c2.safetensors", "notes.txt"]


HEADS_FLAG = ["--kv-heads", HEADS]


def test_folders_of_vllm_and_lmcache_are_caches_as_they_are_on_a_disk(engines, folders, made, tmp_path, capsys, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(remote.Store, "get_object", lambda *_: pytest.fail("all of an object was read"))
        assert run("ls", engines.url, "-r", "--json", "--", *HEADS_FLAG) == 0
    found = {one["file"].removeprefix(f"{engines.url}/"): one for one in events(capsys)}
    local = subprocess.run([programs.find("dkv"), "ls", folders, "-r", "--json", *map(str, HEADS_FLAG)], check=True, capture_output=True)
    local = {one["file"].removeprefix(f"{folders}/"): one for one in json.loads(local.stdout)["caches"]}

    assert set(local) == {"vllm", "lmcache/p0"} and set(found) == {*local, *(f"c{i}.safetensors" for i in range(FILES)), "below/c9.safetensors"}
    for name, one in local.items():
        facts = ("format", "tokens", "bytes", "whole", "policy")
        assert [found[name][fact] for fact in facts] == [one[fact] for fact in facts]
        assert (one["format"], one["tokens"]) == (name.split("/")[0], TOKENS)

    # Verified, and named when one of their objects is damaged.
    assert run("verify", f"{engines.url}/lmcache", "-r", "--", *HEADS_FLAG) == 0
    assert capsys.readouterr().out == f"{engines.url}/lmcache/p0: good\n"
    chunk = (folders / "lmcache/p0/1.data").read_bytes()
    engines.fs.pipe_file("caches/store/lmcache/p0/1.data", chunk[:-4] + np.float32("nan").tobytes())
    assert run("verify", engines.url, "-r", "--", *HEADS_FLAG) == 1
    seen = capsys.readouterr()
    assert f"{engines.url}/lmcache/p0: damaged\n" in seen.out and seen.out.count(": good\n") == FILES + 2
    assert seen.err.startswith(f"dkv-lab store: {engines.url}/lmcache/p0/1.data: ") and "dkv-store-" not in seen.err
    engines.fs.pipe_file("caches/store/lmcache/p0/1.data", chunk)

    # Compacted to what dkv makes of them, once.
    flags = ["--policy", "knorm", "--window", "8", "--capacity", "32", *map(str, HEADS_FLAG)]
    subprocess.run([programs.find("dkv"), "compact", folders, "-r", "-o", f"{tmp_path}/", *flags], check=True, capture_output=True)
    for expected in ("compacted", "there"):
        assert run("compact", engines.url, "-r", "-o", "s3://caches/small", "--json", "--", *flags) == 0
        assert {one["event"] for one in events(capsys)} == {expected}
    for name in ("vllm", "lmcache/p0"):
        assert engines.fs.cat_file(f"caches/small/{name}.safetensors") == (tmp_path / f"{name}.safetensors").read_bytes()
    engines.fs.pipe_file("caches/store/lmcache/p0/1.data", chunk[:-4] + np.float32(7).tobytes())
    assert run("compact", engines.url, "-r", "-o", "s3://caches/small", "--", *flags) == 1
    assert "small/lmcache/p0.safetensors: is there already, and was made of something else" in capsys.readouterr().err


def test_prune_counts_folders_and_leaves_them(engines, capsys):
    before = set(engines.fs.find("caches/store"))
    assert run("prune", engines.url, "-r", "--budget", "1KiB", "--delete", "--json", *PRUNE, *HEADS_FLAG) == 1

    said = events(capsys)
    kept = {path for path in before if "/vllm/" in path or "/lmcache/" in path or path.endswith("notes.txt")}
    assert set(engines.fs.find("caches/store")) == kept and len(kept) == LAYERS + TOKENS // CHUNK + 1
    left = {one["file"]: one["why"] for one in said if one["event"] == "left"}
    assert left == {f"{engines.url}/vllm": "dkv does not write vllm", f"{engines.url}/lmcache/p0": "dkv does not write lmcache"}
    assert said[-1]["caches"] == FILES + 3 and said[-1]["bytes_after"] == sum(engines.fs.size(path) for path in kept if not path.endswith(".txt"))


def test_a_url_that_is_one_cache(engines, tmp_path):
    for name, parts in {"vllm": LAYERS, "lmcache/p0": 2, "c0.safetensors": 1}.items():
        (cache,) = remote.caches_of(remote.Store(f"{engines.url}/{name}"), name == "vllm", list(map(str, HEADS_FLAG)), tmp_path / name)
        assert (cache.url, len(cache.parts), cache.file) == (f"{engines.url}/{name}", parts, name.rsplit("/", 1)[-1])


def test_an_object_in_the_place_of_a_folder_is_refused(store):
    store.fs.pipe_file("caches/store/below", b"x")
    with pytest.raises(UserError, match="^s3://caches/store/below/c9.safetensors: another object has the name of its folder: rename one"):
        remote.main(["ls", store.url, "-r"])


def test_files_of_llama_are_on_the_disk_one_at_a_time(store, made, tmp_path, capsys, monkeypatch):
    slot = tmp_path / "slot.bin"
    convert = [programs.find("dkv"), "convert", made / "c0.safetensors", "-o", slot, "--format", "llama-slot", "--key-order", "pairs"]
    subprocess.run(convert, check=True, capture_output=True)
    for name in ("slot-0.bin", "slot-1.bin"):
        store.fs.put_file(str(slot), f"caches/store/{name}")
    seen, original = [], remote._dkv
    monkeypatch.setattr(remote, "_dkv", lambda *a: (seen.append([path.name for path in a[-3].rglob("*.bin")]), original(*a))[1])

    assert run("ls", store.url, "--json", "--", *HEADS_FLAG) == 0

    assert seen == [[], ["slot-0.bin"], ["slot-1.bin"]]
    found = {one["file"].rsplit("/", 1)[-1]: one for one in events(capsys)}
    assert set(found) == {*(f"c{i}.safetensors" for i in range(FILES)), "slot-0.bin", "slot-1.bin"}
    assert (found["slot-1.bin"]["format"], found["slot-1.bin"]["tokens"]) == ("llama-slot", TOKENS)
