"""Finding, fetching and checking a model's folder: against a small hub on loopback that answers as the true one does.

The hub client is the true one, so are its exceptions. The models hold a few numbers per file: no weight is ever loaded.
"""

from __future__ import annotations

import contextlib
import errno
import http.server
import json
import shutil
import threading
from pathlib import Path
from urllib.parse import urlparse

import numpy as np
import pytest
from safetensors.numpy import save_file

from syn4seg.errors import UserError
from syn4seg.models import generators, hub
from syn4seg.models.generators import check_model
from syn4seg.models.hub import IMAGE, TEXT, cached_revision, locate_configs, locate_model, revision, tensors_of
from syn4seg.models.protocols import Speed

MODEL, SHA = "some/model", "0123456789abcdef0123456789abcdef01234567"
INDEX = {
    "_class_name": "StableDiffusion3Pipeline",
    "transformer": ["diffusers", "SD3Transformer2DModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "text_encoder": ["transformers", "CLIPTextModelWithProjection"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
    "tokenizer_2": ["transformers", "CLIPTokenizer"],
    "text_encoder_3": ["transformers", "T5EncoderModel"],
    "tokenizer_3": ["transformers", "T5Tokenizer"],
}


def numbers(path: Path, *names: str) -> None:
    save_file({name: np.arange(4, dtype=np.float32) for name in names}, path)


@pytest.fixture
def folder(tmp_path):
    """Stable Diffusion 3.5's layout: sharded transformer and T5, half-precision variants beside, a few numbers per file."""
    root = tmp_path / "sd3"
    for name, entry in INDEX.items():
        if not isinstance(entry, list):
            continue
        (root / name).mkdir(parents=True)
        config = {"scheduler": "scheduler_config.json"}.get(name, "config.json")
        (root / name / ("tokenizer.json" if name.startswith("tokenizer") else config)).write_text("{}")
    (root / "model_index.json").write_text(json.dumps(INDEX))
    for name, stem in (("transformer", "diffusion_pytorch_model"), ("text_encoder_3", "model")):
        shards = [f"{stem}-0000{i}-of-00002.safetensors" for i in (1, 2)]
        for i, shard in enumerate(shards):
            numbers(root / name / shard, f"layer.{i}.weight", f"layer.{i}.bias")
        where = {f"layer.{i}.{kind}": shards[i] for i in (0, 1) for kind in ("weight", "bias")}
        (root / name / f"{stem}.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    numbers(root / "vae" / "diffusion_pytorch_model.safetensors", "decoder.weight")
    for name in ("text_encoder", "text_encoder_2"):
        numbers(root / name / "model.safetensors", "text.weight")
    for name in ("text_encoder", "text_encoder_3"):
        (root / name / "model.fp16.safetensors").write_bytes(b"a variant that nobody reads")
    (root / "sd3.5_large.safetensors").write_bytes(b"16 GB that nobody needs")
    return root


# ------------------------------------------------------------------------------------------- a hub on loopback
class Hub(http.server.ThreadingHTTPServer):
    """Answers like the hub: `refuse(path, token)` gives (status, headers) or None; `sent` lists the files sent."""

    def __init__(self, files: Path, refuse):
        super().__init__(("127.0.0.1", 0), Answer)
        self.files, self.refuse, self.sent = files, refuse, []


class Answer(http.server.BaseHTTPRequestHandler):
    server: Hub

    def do_GET(self):
        path = urlparse(self.path).path
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if refused := self.server.refuse(path, token):
            return self.answer(refused[0], b"", refused[1])
        files = [p for p in sorted(self.server.files.rglob("*")) if p.is_file()]
        if path == f"/api/models/{MODEL}/revision/main":
            return self.answer(200, json.dumps({"id": MODEL, "sha": SHA}).encode(), {})
        if path.startswith(f"/api/models/{MODEL}/tree/"):
            tree = [
                {"type": "file", "path": p.relative_to(self.server.files).as_posix(), "size": p.stat().st_size, "oid": "0"}
                for p in files
            ]
            return self.answer(200, json.dumps(tree).encode(), {})
        name = path.removeprefix(f"/{MODEL}/resolve/{SHA}/")
        if name not in [p.relative_to(self.server.files).as_posix() for p in files]:
            return self.answer(404, b"", {})
        if self.command == "GET":
            self.server.sent.append(name)
        data = (self.server.files / name).read_bytes()
        return self.answer(200, data, {"ETag": f'"{name.replace("/", "-")}"', "X-Repo-Commit": SHA})

    do_HEAD = do_GET

    def answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, format, *args):
        pass


@pytest.fixture
def online(tmp_path, monkeypatch):
    """Starts hubs, points the client at them, and gives it an empty cache and no token."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)

    @contextlib.contextmanager
    def start(files: Path, refuse=lambda path, token: None):
        with Hub(files, refuse) as server:
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
            thread.start()
            address = f"http://127.0.0.1:{server.server_address[1]}"
            monkeypatch.setattr(constants, "ENDPOINT", address)
            monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
            try:
                yield server
            finally:
                server.shutdown()
                thread.join()

    return start


def error_of(call, *args) -> str:
    with pytest.raises(UserError) as caught:
        call(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ------------------------------------------------------------------------------------------------ fetching
@pytest.mark.parametrize("parts", [IMAGE, (*TEXT, "transformer/config.json")])
def test_a_half_fetches_its_own_files_and_no_other(folder, online, parts):
    def own(path: str) -> bool:
        return path == "model_index.json" or path in parts or path.split("/")[0] in parts

    every = [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()]
    with online(folder) as server:
        place, index = locate_model(MODEL, parts)
        assert sorted(server.sent) == sorted(p for p in every if own(p) and ".fp16" not in p)
        assert (place / "model_index.json").read_bytes() == (folder / "model_index.json").read_bytes()
        assert index == INDEX and revision(place) == SHA
        server.sent.clear()
        for name in (MODEL, f"{MODEL}@{SHA}"):
            assert locate_model(name, parts)[0] == place and server.sent == [] and cached_revision(name) == SHA
    with online(folder, lambda path, token: (404, {"X-Error-Code": "RevisionNotFound"})):
        assert "@other" in error_of(locate_model, f"{MODEL}@other", parts)


def test_a_plan_fetches_configurations_and_no_weight(folder, online):
    with online(folder) as server:
        assert cached_revision(MODEL) is None and cached_revision(str(folder)) is None
        place, index = locate_configs(MODEL)
        assert index == INDEX and (place / "transformer" / "config.json").is_file()
        assert server.sent and not [path for path in server.sent if path.endswith(".safetensors")]


def gated(path, token):
    """As the true hub: everyone may read what there is, but files need a token, and its account the licence."""
    if "/resolve/" in path and token != "hf_accepted":
        return (403 if token else 401), {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted"}
    return None


def test_a_gated_model_needs_a_token_then_the_licence_and_then_opens(folder, online, monkeypatch):
    with online(folder, gated):
        said = error_of(locate_model, MODEL, IMAGE)
        assert f"{MODEL}' is gated, and no token is set: accept its licence at https://huggingface.co/{MODEL}" in said
        assert "set HF_TOKEN" in said and "synthesis.model=embedded-sd3" in said
        monkeypatch.setenv("HF_TOKEN", "hf_other")
        said = error_of(locate_model, MODEL, IMAGE)
        assert "the account of your token has not accepted its licence" in said and "hf_other" not in said
        monkeypatch.setenv("HF_TOKEN", "hf_accepted")
        assert locate_model(MODEL, IMAGE)[1] == INDEX


def test_a_wrong_token_an_unknown_model_and_a_broken_hub_each_have_their_own_remedy(folder, online, monkeypatch):
    with online(folder, lambda path, token: (404, {"X-Error-Code": "RepoNotFound"})):
        assert "no such folder here and no such model on the hub, or it is private; check the spelling" in error_of(
            locate_model, MODEL, TEXT
        )
    with online(folder, lambda path, token: (500, {})):
        assert "the hub answers with status 500; try again later" in error_of(locate_model, MODEL, TEXT)
    monkeypatch.setenv("HF_TOKEN", "hf_old")
    invalid = {"X-Error-Message": "Invalid credentials in Authorization header"}
    with online(folder, lambda path, token: (401, invalid)):
        said = error_of(locate_model, MODEL, TEXT)
        assert "the hub refuses your token" in said and "wrong or expired" in said and "hf_old" not in said


def test_offline_and_unreachable_are_told_apart(folder, online, monkeypatch):
    from huggingface_hub import constants

    with online(folder):
        pass  # the hub is gone, its address stays
    said = error_of(locate_model, MODEL, IMAGE)
    assert "the hub cannot be reached" in said and "check network and proxy" in said and "synthesis.model=FOLDER" in said
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    said = error_of(locate_model, MODEL, IMAGE)
    assert "HF_HUB_OFFLINE is set: unset it, or fetch it elsewhere with `hf download some/model" in said


@pytest.mark.parametrize(
    "full",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("Data processing error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_named_with_the_cache_and_what_is_free(online, full, tmp_path):
    def fetch(repo_id, **_):
        raise full

    said = error_of(locate_model, MODEL, IMAGE, fetch)
    assert "the disk became full" in said and "GiB free at" in said and str(tmp_path / "cache") in said and "HF_HOME" in said


def test_any_other_failure_is_one_line_and_says_how_to_go_on(online):
    def fetch(repo_id, **_):
        raise OSError("Consistency check failed:\nfile should be of size 7")

    assert "could not be fetched (Consistency check failed: file should be of size 7); run the same" in error_of(
        locate_model, MODEL, IMAGE, fetch
    )


@pytest.mark.parametrize("name", ["sd35", "./nowhere/else", "a/b/c", ""])
def test_a_name_that_is_neither_folder_nor_hub_id_is_an_error(name):
    for call in (check_model, lambda n: locate_model(n, IMAGE)):
        with pytest.raises(UserError, match=r"neither a folder nor a hub id such as.*synthesis\.model=renderer"):
            call(name)


# -------------------------------------------------------------------------------------------- folders at fault
FAULTS = {
    "model_index.json": r"has no model_index\.json \(found: .*not the one above or below",
    "vae": r"the folder vae/ is missing; expected transformer, vae, scheduler",
    "vae/config.json": r"vae/config\.json is missing",
    "scheduler/scheduler_config.json": r"the folder scheduler/ is missing",
    "vae/diffusion_pytorch_model.safetensors": r"vae/ has no weights \(found: config\.json\)",
    "transformer/diffusion_pytorch_model-00002-of-00002.safetensors": r"00002-of-00002\.safetensors is missing \(1 of 2 shards",
    "transformer/diffusion_pytorch_model.safetensors.index.json": r"transformer/ has no weights \(found: .*00001-of-00002.*shards",
    "tokenizer_2": r"the folder tokenizer_2/ is missing",
    "text_encoder_3/model-00001-of-00002.safetensors": r"model-00001-of-00002\.safetensors is missing",
}


@pytest.mark.parametrize("path", FAULTS)
def test_whatever_is_missing_from_a_folder_is_named(folder, path):
    check_model(str(folder))
    shutil.rmtree(folder / path) if (folder / path).is_dir() else (folder / path).unlink()
    with pytest.raises(UserError, match=FAULTS[path]):
        check_model(str(folder))


@pytest.mark.parametrize(
    "path",
    [
        "vae/diffusion_pytorch_model.safetensors",
        "text_encoder_2/model.safetensors",
        "transformer/diffusion_pytorch_model-00001-of-00002.safetensors",
    ],
)
def test_a_file_of_any_other_length_than_its_header_says_is_named_with_both(folder, path):
    whole = (folder / path).read_bytes()
    for cut, said in (
        (whole[:-3], f"{len(whole) - 3} of {len(whole)} bytes"),
        (whole + b"x", f"of {len(whole)} bytes"),
        (whole[:20], "20 bytes, less than its own header"),
        (b"", "0 bytes"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        (b"PK\3\4" + bytes(60), "header"),
        (b"\2" + bytes(7) + b"[]", "no safetensors header"),
    ):
        (folder / path).write_bytes(cut)
        name = path.replace(".", r"\.")
        with pytest.raises(UserError, match=rf"{name} is cut short or damaged \(.*{said}.*download this file again"):
            check_model(str(folder))


def test_shards_that_lack_a_tensor_and_lists_that_lead_elsewhere_are_refused(folder):
    part, listed = folder / "transformer", "diffusion_pytorch_model.safetensors.index.json"
    numbers(part / "diffusion_pytorch_model-00001-of-00002.safetensors", "layer.0.weight")
    with pytest.raises(UserError, match=r"lacks 1 tensors that its index lists, such as layer\.0\.bias"):
        check_model(str(folder))
    for text in ("{", "[]", '{"weight_map": {}}', json.dumps({"weight_map": {"a": "../../vae/config.json"}})):
        (part / listed).write_text(text)
        with pytest.raises(UserError, match=r"index\.json is damaged: it lists no shard"):
            check_model(str(folder))


def test_another_pipeline_and_another_part_are_named_with_what_was_expected(folder):
    for change, said in (
        ({"_class_name": "FluxImg2ImgPipeline"}, "is a FluxImg2ImgPipeline; expected a text-to-image pipeline"),
        ({"transformer": ["diffusers", "FluxTransformer2DModel"]}, "is a FluxTransformer2DModel; expected SD3"),
        ({"vae": [None, None]}, "vae is a None; expected AutoencoderKL or AutoencoderTiny"),
        ({"text_encoder_3": ["my_module", "Mine"]}, "is a Mine; expected T5EncoderModel"),
    ):
        (folder / "model_index.json").write_text(json.dumps(INDEX | change))
        assert said in error_of(check_model, str(folder))
    (folder / "model_index.json").write_text("{")
    assert "model_index.json is not JSON" in error_of(check_model, str(folder))


def test_a_pipeline_without_t5_and_the_packaged_one_pass(folder):
    for name in ("text_encoder_3", "tokenizer_3"):
        shutil.rmtree(folder / name)
    (folder / "model_index.json").write_text(json.dumps(INDEX | {name: [None, None] for name in ("text_encoder_3", "tokenizer_3")}))
    check_model(str(folder))
    check_model("embedded-sd3")
    check_model("renderer")


def test_the_names_of_the_tensors_are_those_of_the_file(folder):
    assert tensors_of(folder / "vae" / "diffusion_pytorch_model.safetensors") == {"decoder.weight"}


def test_a_plain_folder_has_a_digest_of_its_configs(folder):
    before = revision(folder)
    assert before.startswith("configs:") and revision(folder) == before
    (folder / "vae" / "config.json").write_text('{"scaling_factor": 1}')
    assert revision(folder) != before


# --------------------------------------------------------------------------------------- hub ids before a run
def test_before_a_run_a_hub_model_must_be_whole_in_the_cache_or_reachable(folder, online, monkeypatch):
    from huggingface_hub import constants

    check_model(MODEL)  # not in the cache, but nothing says that it cannot be fetched
    large = "stabilityai/stable-diffusion-3.5-large"
    assert "is gated, and no token is set" in error_of(check_model, large)
    monkeypatch.setenv("HF_TOKEN", "hf_some")
    check_model(large)
    with online(folder):
        place, _ = locate_model(MODEL, IMAGE)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        assert "not (or only partly) in this machine's cache" in error_of(check_model, MODEL)  # no text encoder yet
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        locate_model(MODEL, TEXT)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    check_model(MODEL)
    shard = place / "transformer" / "diffusion_pytorch_model-00002-of-00002.safetensors"
    shard.resolve().write_bytes(shard.read_bytes()[:-1])
    assert "00002-of-00002.safetensors is cut short" in error_of(check_model, MODEL)


def test_a_speed_option_that_the_model_cannot_have_is_refused_before_a_run():
    for key, value in (("step_cache", 0.1), ("compile", True), ("attention", "native"), ("vae_slicing", True), ("weights", "nf4")):
        with pytest.raises(UserError, match=rf"synthesis\.{key}={value}: the renderer has no network"):
            check_model("renderer", Speed(**{key: value}))
        with pytest.raises(UserError, match=rf"synthesis\.{key}={value}"):
            generators.load_generator("renderer", steps=1, guidance=1.0, size=64, speed=Speed(**{key: value}))


def test_nothing_about_a_model_is_written_by_checking_it(folder):
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    hub.check(str(folder))
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*")} == before
