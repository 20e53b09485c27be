"""dkv llama compact-slot against a real, unpatched llama-server."""

from __future__ import annotations

import json
import shutil
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from conftest import LICENCE, PROFILE, PROMPT, Server, dkv, is_sensible, model

from dkv.hf import gemma3
from dkv.hf.weights import WeightsNotFound

BY_PROFILE = ("--profile", PROFILE)
BY_KEYS = ("--policy", "keydiff")
QUARTER = ("--ratio", "0.25")


@pytest.fixture
def served(saved, tmp_path):
    """A fresh server whose slot has PROMPT, its folder, its tokens."""
    path, count = saved
    shutil.copy(path, tmp_path / "full.bin")
    with Server(tmp_path) as server:
        assert server.slot("restore", "full.bin")["n_restored"] == count
        yield server, tmp_path, count


def compact_slot(server: Server, folder, *flags, **how):
    return dkv("llama", "compact-slot", server.url, "--dir", folder, *QUARTER, *flags, **how)


def files(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.sample
def test_a_quarter_of_a_slot_is_what_the_next_request_of_a_running_server_uses(served, saved):
    server, folder, count = served

    said = json.loads(compact_slot(server, folder, *BY_PROFILE, "--json").stdout)
    going_on = server.complete(PROMPT + " And so", 24)

    assert said["seen"] == {"prompt_n": 1, "cache_n": count}
    assert said["restored"]["tokens"] == count and said["restored"]["bytes"] == said["compact"]["file_bytes_after"]
    assert said["compact"]["policy"] == "auto" and said["compact"]["lengths"][0] == [count // 4] * 3
    assert (folder / "slot-0.bin").stat().st_size < 0.26 * saved[0].stat().st_size
    assert going_on["timings"]["cache_n"] == count and going_on["timings"]["prompt_n"] <= 3
    assert is_sensible(going_on["content"]), going_on["content"]
    assert said["original_kept"] and (folder / "slot-0.full.bin").read_bytes() == saved[0].read_bytes()


def test_a_fresh_process_goes_on_from_the_compacted_file(served, saved):
    server, folder, count = served
    compact_slot(server, folder, *BY_KEYS, "--remove-original")
    assert files(folder) == ["full.bin", "slot-0.bin"]

    with Server(folder, 512) as fresh:
        assert fresh.slot("restore", "slot-0.bin")["n_restored"] == count
        reply = fresh.complete(PROMPT + " And so", 24)

    assert reply["timings"]["cache_n"] == count and reply["timings"]["prompt_n"] <= 3
    assert is_sensible(reply["content"]), reply["content"]


def test_four_compacted_slots_fit_into_a_server_of_fewer_cells(served):
    server, folder, count = served
    compact_slot(server, folder, *BY_KEYS)
    memory = {}
    for name, cells in (("full.bin", 2048), ("slot-0.bin", 512)):  # 512 are more than one slot's whole text.
        with Server(folder, cells, slots=4, flags=("--kv-unified",)) as fresh:
            for slot in range(4):
                restored = fresh.post(f"/slots/{slot}?action=restore", {"filename": name})
                assert restored["n_restored"] == count
            memory[name] = fresh.private_mib()
            assert fresh.complete(PROMPT + " And so")["timings"]["cache_n"] == count
    for name, mib in memory.items():
        print(f"\n{name}: {(folder / name).stat().st_size:,} bytes; four of them in a server: {mib} MiB of its own")
    assert memory["slot-0.bin"] < memory["full.bin"] - 20


@pytest.fixture
def quantised(tmp_path):
    """A server whose second slot, a stream of its own, has 900 characters of PROMPT in q8_0; whether its files are GGSQ 4."""
    with Server(tmp_path, slots=2, flags=("-ctk", "q8_0", "-ctv", "q8_0")) as server:
        server.complete(PROMPT[:900], 0, slot=1)
        server.post("/slots/1?action=save", {"filename": "look.bin"})
        version = int.from_bytes((tmp_path / "look.bin").read_bytes()[4:8], "little")
        (tmp_path / "look.bin").unlink()
        yield server, tmp_path, version >= 4


def test_quantised_rows_in_a_stream_of_their_own_go_the_same_way(quantised):
    server, folder, _ = quantised

    said = json.loads(compact_slot(server, folder, "--slot", 1, *BY_KEYS, "--json").stdout)
    reply = server.complete(PROMPT[:900] + " And so", slot=1)

    assert files(folder) == ["slot-1.bin", "slot-1.full.bin"]
    assert said["seen"]["prompt_n"] == 1 and reply["timings"]["cache_n"] == said["seen"]["cache_n"]


def test_a_surrogate_takes_quantised_rows_of_files_that_say_whether_they_are_rotated(quantised):
    server, folder, says_rotation = quantised

    done = compact_slot(server, folder, "--slot", 1, *BY_PROFILE, code=None)

    if says_rotation:
        assert done.returncode == 0 and "it computed 1 and found" in done.stdout, done.stderr
    else:
        assert "before GGSQ 4 do not say whether quantised rows are rotated" in done.stderr
        assert "the server was left as it was" in done.stderr and files(folder) == []


def test_a_model_with_sliding_layers_goes_on_from_the_checkpoint_that_was_kept(tmp_path):
    try:
        parts = gemma3.part_paths()
    except WeightsNotFound as missing:  # Not installed by default: 240 MB, and another licence.
        pytest.skip(str(missing))
    gemma3.join(parts, tmp_path / "gemma.gguf")
    prompt = LICENCE[:3_500]  # More than its window of 512 tokens.
    with Server(tmp_path, 2048, gguf=tmp_path / "gemma.gguf") as server:
        server.complete(prompt, 0)

        said = json.loads(compact_slot(server, tmp_path, *BY_KEYS, "--json").stdout)
        going_on = server.complete(prompt + " And so", 24)

    count = said["restored"]["tokens"]
    assert said["seen"]["cache_n"] + said["seen"]["prompt_n"] == count + 1 and said["seen"]["prompt_n"] < 10
    assert said["compact"]["lengths"] == [[count // 4]] * 3, "the full layers alone"
    assert "the newest was kept" in said["compact"]["notes"][-1]
    assert going_on["timings"]["cache_n"] >= count - 10
    assert is_sensible(going_on["content"]), going_on["content"]


def test_a_chat_goes_on_with_its_new_tokens_only(tmp_path):
    document = {"role": "user", "content": PROMPT[:800] + "\n\nWhat is this text about?"}
    with Server(tmp_path) as server:
        first = server.chat([document])
        answer = first["choices"][0]["message"]
        count = server.slot("save", "chat.bin")["n_saved"]
        compact_slot(server, tmp_path, *BY_PROFILE)
        asked = {"role": "user", "content": "Who holds the copyright?"}
        second = server.chat([document, {"role": "assistant", "content": answer["content"]}, asked])

    assert second["timings"]["cache_n"] >= count - 2  # What the template puts behind an answer may differ.
    assert second["timings"]["prompt_n"] < 40
    assert second["choices"][0]["message"]["content"].strip()


@pytest.mark.sample
def test_what_fails_before_the_restore_leaves_the_server_as_it_was(served):
    server, folder, count = served
    before = files(folder)

    for flags, message in (
        ((), "auto needs the queries of the last 32 tokens"),
        ((*BY_KEYS, "--capacity", "128"), "capacity and ratio are given"),
        (("--slot", 1, *BY_KEYS), "no slot 1: the server has 1, from 0"),
        (("--output", "full.bin", *BY_KEYS), "there is a file of this name already"),
        (("--output", "a/b.bin", *BY_KEYS), "is not the name of a file in the folder"),
        ((*BY_KEYS, "--kv-heads", "7"), "do not divide into 7 KV heads"),
        (("--model", folder / "none.gguf", *BY_KEYS), "none.gguf"),
    ):
        refused = dkv("llama", "compact-slot", server.url, "--dir", folder, *QUARTER, *flags, code=None)
        assert refused.returncode != 0 and message in refused.stderr, refused.stderr
        assert files(folder) == before

    reply = server.complete(PROMPT + " And so")
    assert reply["timings"]["cache_n"] == count


def test_a_slot_that_the_policy_keeps_whole_is_left_alone(served):
    server, folder, count = served

    refused = dkv("llama", "compact-slot", server.url, "--dir", folder, *BY_KEYS, "--capacity", "4096", code=1)

    assert f"the slot has {count} tokens, and the policy keeps all of them" in refused.stderr
    assert "the server was left as it was" in refused.stderr and files(folder) == ["full.bin"]


def test_a_folder_that_is_not_the_servers_is_named(served, tmp_path_factory):
    server, _, count = served
    other = tmp_path_factory.mktemp("other")

    refused = compact_slot(server, other, *BY_KEYS, code=1)

    assert "slot-0.full.bin: the server says that it wrote" in refused.stderr
    assert "--dir is what the server was given as --slot-save-path" in refused.stderr
    assert server.complete(PROMPT + " And so")["timings"]["cache_n"] == count


@pytest.mark.sample
def test_a_server_that_refuses_the_compacted_file_gets_the_whole_slot_back(served, tmp_path_factory):
    """It empties a slot whose file it does not find: the compacted file is written where it does not look."""
    server, folder, count = served
    other = tmp_path_factory.mktemp("other")
    (other / "slot-0.full.bin").symlink_to(folder / "slot-0.full.bin")

    refused = compact_slot(server, other, *BY_KEYS, code=1)

    assert "Unable to restore slot" in refused.stderr
    assert "the server has the whole slot again" in refused.stderr
    assert server.complete(PROMPT + " And so")["timings"]["cache_n"] == count


def test_an_empty_slot_is_refused(tmp_path):
    with Server(tmp_path) as server:
        refused = compact_slot(server, tmp_path, *BY_KEYS, code=1)

    assert "slot 0 is empty: nothing was asked of it yet" in refused.stderr and files(tmp_path) == []


def test_a_compacted_slot_is_not_compacted_again(served):
    server, folder, count = served
    compact_slot(server, folder, *BY_KEYS)

    refused = compact_slot(server, folder, *BY_KEYS, "-o", "again.bin", code=1)

    assert "tokens are missing from it already" in refused.stderr
    assert server.complete(PROMPT + " And so")["timings"]["cache_n"] == count


def test_a_busy_slot_is_refused(served):
    server, folder, _ = served
    writing = threading.Thread(target=server.complete, args=(PROMPT, 200))
    writing.start()
    time.sleep(1)

    refused = compact_slot(server, folder, *BY_KEYS, code=None)
    writing.join()

    assert refused.returncode == 1 and "slot 0 is busy with request" in refused.stderr, refused.stderr


def test_a_server_without_a_folder_for_slots_is_told_which_flag_it_lacks(tmp_path):
    with Server(None) as server:
        refused = compact_slot(server, tmp_path, *BY_KEYS, code=1)

    assert "the server does not save slots: start it with --slot-save-path" in refused.stderr


def test_a_servers_api_key_comes_from_the_environment(saved, tmp_path):
    shutil.copy(saved[0], tmp_path / "full.bin")
    with Server(tmp_path, key="secret") as server:
        server.slot("restore", "full.bin")
        refused = compact_slot(server, tmp_path, *BY_KEYS, code=None)
        compact_slot(server, tmp_path, *BY_KEYS, LLAMA_API_KEY="secret")

    assert "put it into LLAMA_API_KEY" in refused.stderr and refused.returncode != 0


class Other(BaseHTTPRequestHandler):
    def do_GET(self):  # noqa: N802
        body = b"<html>"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.mark.sample
def test_addresses_where_no_llama_server_answers_are_named(tmp_path):
    other = HTTPServer(("127.0.0.1", 0), Other)
    threading.Thread(target=other.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{other.server_port}"

    for url, message in (
        ("http://127.0.0.1:1", "no server answers there"),
        ("https://127.0.0.1:8080", "https is not supported"),
        ("http://", "is not a server's address"),
        ("http://127.0.0.1:99999", "is not a server's address"),
        (address, "is this a llama-server?"),
    ):
        refused = dkv("llama", "compact-slot", url, "--dir", tmp_path, *QUARTER, *BY_KEYS, code=None)
        assert refused.returncode != 0 and message in refused.stderr, refused.stderr
    other.shutdown()


@pytest.mark.sample
def test_a_models_gguf_says_what_slot_files_do_not(saved, tmp_path):
    path, count = saved
    dkv("compact", path, "-o", tmp_path / "by_model.bin", *QUARTER, "--model", model(), *BY_PROFILE)
    flags = ("--kv-heads", 3, "--rope-theta", 100000, "--rope-interleaved", "--profile-alpha", 0)
    dkv("compact", path, "-o", tmp_path / "by_flags.bin", *QUARTER, *flags, *BY_PROFILE)

    assert (tmp_path / "by_model.bin").read_bytes() == (tmp_path / "by_flags.bin").read_bytes()
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(model().read_bytes()[:1_000])
    refused = dkv("inspect", path, "--model", broken, code=None)
    assert "broken.gguf: " in refused.stderr and "the file ends at 1000" in refused.stderr
