from __future__ import annotations

import logging
import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import torch
from huggingface_hub import constants

from tiny_models import smallest_llama
from tomfisher.cli.main import main
from tomfisher.models import hub, load_model
from tomfisher.models.opened import open_model

COMMIT = "a" * 40


@pytest.fixture(autouse=True)
def online(monkeypatch, tmp_path):
    """As where HF_HUB_OFFLINE is not set, with a cache of the test's own."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def answering(status):
    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_response(status)
            self.end_headers()

        def log_message(self, *args):
            pass

    return Handler


@pytest.fixture
def endpoint(request, monkeypatch):
    """A hub that refuses, hears without answering, cannot be found, or answers with a status."""
    kind = request.param
    monkeypatch.setattr(hub, "PATIENCE", 0.5)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
        if kind == "silent":
            listening.listen(50)
        elif isinstance(kind, int):
            listening.close()
            server = HTTPServer(("127.0.0.1", port), answering(kind))
            threading.Thread(target=server.serve_forever, daemon=True).start()
        host = "no-such-host.invalid" if kind == "unknown" else "127.0.0.1"
        monkeypatch.setattr(constants, "ENDPOINT", f"http://{host}:{port}")
        yield kind
        if isinstance(kind, int):
            server.shutdown()
            server.server_close()


UNREACHABLE = ["refusing", "silent", "unknown", 503, 429]


@pytest.mark.parametrize("endpoint", UNREACHABLE, indirect=True)
def test_a_hub_that_cannot_be_used_is_found_out_by_one_question(endpoint):
    why = hub.why_unreachable()
    assert why.startswith(constants.ENDPOINT)
    expected = {"refusing": "refused", "silent": "no answer", 503: "it answers 503", 429: "it answers 429"}
    assert expected.get(endpoint, ": ") in why or "timed out" in why


@pytest.mark.parametrize("endpoint", [200, 302, 404], indirect=True)
def test_a_hub_that_answers_is_used(endpoint):
    assert hub.why_unreachable() is None


def test_offline_by_the_environment_asks_nobody(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub, "_ask", lambda endpoint: pytest.fail("asked"))
    assert hub.why_unreachable() == "HF_HUB_OFFLINE is set"


@pytest.mark.parametrize("endpoint", ["refusing", "silent"], indirect=True)
def test_an_unreachable_hub_is_one_line_without_retries(endpoint, capsys, caplog):
    with caplog.at_level(logging.WARNING):
        assert main(["evaluate", "--model", "org/model"]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert "the Hugging Face hub cannot be reached (http://127.0.0.1" in lines[0]
    assert "not wholly in its cache" in lines[0]
    assert [record for record in caplog.records if "huggingface_hub" in record.name] == []
    assert not constants.HF_HUB_OFFLINE


@pytest.mark.parametrize("endpoint", ["refusing", "silent"], indirect=True)
@pytest.mark.parametrize("revision", [None, "main", COMMIT])
def test_a_model_in_the_cache_loads_without_the_hub(endpoint, cached, caplog, revision):
    model = cached("org/model")
    with caplog.at_level(logging.WARNING):
        loaded = load_model("org/model", dtype="fp32", device="cpu", revision=revision)
    assert [record for record in caplog.records if "huggingface_hub" in record.name] == []
    torch.testing.assert_close(loaded.model.lm_head.weight, model.lm_head.weight, rtol=0, atol=0)
    assert loaded.identity["revision"] == COMMIT


@pytest.mark.parametrize("endpoint", ["refusing"], indirect=True)
def test_a_model_in_the_cache_is_opened_without_the_hub(endpoint, cached):
    model = cached("org/model")
    opened = open_model("org/model", revision="main")
    opened.load(["lm_head.weight"])
    assert torch.equal(opened.model.lm_head.weight, model.lm_head.weight)
    assert opened.identity()["revision"] == COMMIT
    assert opened.tokenizer.pad_token is not None


@pytest.mark.parametrize("name", ["a b", "org/a/b", "org/..name"])
def test_a_name_that_no_hub_could_have_is_one_line(monkeypatch, capsys, name):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert main(["evaluate", "--model", name]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert repr(name) in lines[0]


@pytest.mark.parametrize("endpoint", ["refusing"], indirect=True)
@pytest.mark.parametrize("absent", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_model_partly_in_the_cache_is_not_loaded(endpoint, cached, tmp_path, absent):
    cached("org/model")
    (tmp_path / f"hub/models--org--model/snapshots/{COMMIT}/{absent}").unlink()
    with pytest.raises(ValueError, match=r"cache|the tokenizer"):
        load_model("org/model", device="cpu")


@pytest.mark.parametrize("endpoint", ["refusing"], indirect=True)
def test_an_adapter_in_the_cache_is_merged_into_its_base_in_the_cache(endpoint, cached, tmp_path):
    peft = pytest.importorskip("peft")
    base = cached("org/base")
    config = peft.LoraConfig(
        task_type="CAUSAL_LM", r=2, target_modules=["q_proj"], base_model_name_or_path="org/base"
    )
    adapted = peft.get_peft_model(base, config)
    for key, parameter in adapted.named_parameters():
        if "lora" in key:
            torch.nn.init.normal_(parameter)
    adapted.peft_config["default"].base_model_name_or_path = "org/base"
    adapted.save_pretrained(snapshot(tmp_path, "org/adapter"))
    merged = adapted.merge_and_unload()
    loaded = load_model("org/adapter", dtype="fp32", device="cpu")
    assert loaded.identity["loading"]["adapter"]["base"] == "org/base"
    for name, parameter in merged.named_parameters():
        torch.testing.assert_close(loaded.model.get_parameter(name), parameter)


def snapshot(tmp_path, name):
    repository = tmp_path / "hub" / f"models--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text(COMMIT)
    folder = repository / "snapshots" / COMMIT
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def cached(saved, tmp_path):
    """Put a small model into the hub's cache under a name."""

    def put(name):
        model = smallest_llama()
        made = saved(model, "made").path
        folder = snapshot(tmp_path, name)
        for file in made.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        return model

    return put
