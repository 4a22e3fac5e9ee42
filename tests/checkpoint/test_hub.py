from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from ghn_fast.checkpoint import CheckpointError, from_pretrained, list_models, save
from ghn_fast.ghn import GHN, GHN3, ghn2, ghn3, hub
from tests.graphs import SmallClassifier, small_classifier

COMMIT = "0" * 40


@pytest.fixture
def ghn() -> GHN:
    return ghn2(hid=8, max_shape=(8, 8, 3, 3))


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in place of the weights that are shipped with the package."""
    folder = tmp_path / "weights"
    folder.mkdir()
    monkeypatch.setattr(hub, "weights_folder", lambda: folder)
    return folder


def cached(cache: Path, repository: str, file: str) -> Path:
    """Where the Hugging Face cache has a file of a repository."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(COMMIT)
    path = folder / "snapshots" / COMMIT / file
    path.parent.mkdir(parents=True)
    return path


def assert_same(found: GHN, expected: GHN) -> None:
    assert found.config == expected.config
    assert not found.training
    for name, value in expected.state_dict().items():
        assert torch.equal(found.state_dict()[name], value), name


def test_shipped_name(weights: Path, ghn: GHN) -> None:
    save(ghn, weights / "ghn2-cifar10.safetensors")
    (weights / "ghn2-cifar10.md").write_text("a card")
    assert_same(from_pretrained(), ghn)
    assert_same(from_pretrained("ghn2-cifar10", device="cpu"), ghn)
    assert "ghn2-cifar10" in list_models()


def test_a_shipped_name_wins_over_a_path(
    weights: Path, ghn: GHN, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(ghn, weights / "ghn2-cifar10.safetensors")
    (tmp_path / "ghn2-cifar10").write_text("something else")
    monkeypatch.chdir(tmp_path)
    assert_same(from_pretrained("ghn2-cifar10"), ghn)


def test_path(tmp_path: Path, ghn: GHN) -> None:
    save(ghn, tmp_path / "x.safetensors")
    assert_same(from_pretrained(tmp_path / "x.safetensors"), ghn)
    assert_same(from_pretrained(str(tmp_path / "x.safetensors")), ghn)


def test_the_loaded_ghn_predicts_and_trains(tmp_path: Path, ghn: GHN) -> None:
    save(ghn, tmp_path / "x.safetensors")
    loaded, model = from_pretrained(tmp_path / "x.safetensors"), SmallClassifier()
    expected = SmallClassifier()
    ghn.eval()(expected, small_classifier())
    loaded(model, small_classifier())
    for ours, theirs in zip(model.parameters(), expected.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    loaded.train()(model, small_classifier())
    model(torch.randn(2, 3, 8, 8)).sum().backward()
    assert all(p.grad is not None for p in loaded.parameters())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ghn2-cifar-10", "did you mean ghn2-cifar10"),
        ("ghn2-imagenet", "did you mean ghn2-cifar10 or ghn3-"),
        ("ghn3-x", "did you mean ghn3-xl"),
        ("resnet", "known are ghn2-cifar10, ghn3-t"),
        ("no/such/folder", "no GHN 'no/such/folder'"),
        ("runs/best.pt", "no GHN 'runs/best.pt', neither by name nor as a path"),
        ("", "no GHN ''|no checkpoint"),
    ],
)
def test_unlist_models(weights: Path, ghn: GHN, name: str, message: str) -> None:
    save(ghn, weights / "ghn2-cifar10.safetensors")
    with pytest.raises(CheckpointError, match=message):
        from_pretrained(name)


def test_neither_a_name_nor_a_path(ghn: GHN) -> None:
    with pytest.raises(TypeError, match="a name or a path, not GHN"):
        from_pretrained(ghn)  # type: ignore[arg-type]


def test_a_path_with_a_typing_mistake(tmp_path: Path, ghn: GHN) -> None:
    save(ghn, tmp_path / "best.safetensors")
    with pytest.raises(CheckpointError, match=r"did you mean .*/best\.safetensors"):
        from_pretrained(tmp_path / "bset.safetensors")


def test_repository_from_the_cache(tmp_path: Path, ghn: GHN) -> None:
    save(ghn, cached(tmp_path, "someone/a-ghn", "model.safetensors"))
    assert_same(from_pretrained("someone/a-ghn", cache_dir=tmp_path, local_files_only=True), ghn)


def test_repository_and_file_from_the_cache(tmp_path: Path, ghn: GHN) -> None:
    torch.save(
        {"state_dict": ghn.state_dict(), "config": ghn.config.to_dict()},
        cached(tmp_path, "someone/a-ghn", "runs/best.pt"),
    )
    found = from_pretrained("someone/a-ghn:runs/best.pt", cache_dir=tmp_path, local_files_only=True)
    assert_same(found, ghn)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("ghn3-t", "ghn3tm8.pt"),
        ("ghn3-tiny", "ghn3tm8.pt"),
        ("ghn3tm8.pt", "ghn3tm8.pt"),
        ("SamsungSAILMontreal/ghn3:ghn3sm8.pt", "ghn3sm8.pt"),
        ("SamsungSAILMontreal/ghn3", "ghn3xlm16.pt"),
        ("ghn3-xl", "ghn3xlm16.pt"),
    ],
)
def test_published_ghn3_from_the_cache(tmp_path: Path, name: str, file: str) -> None:
    joblib = pytest.importorskip("joblib")
    ghn = ghn3(hid=8, max_shape=(8, 8, 3, 3), num_classes=10, heads=2)
    joblib.dump(ghn.state_dict(), cached(tmp_path, "SamsungSAILMontreal/ghn3", file))
    found = from_pretrained(name, cache_dir=tmp_path, local_files_only=True)
    assert isinstance(found, GHN3)
    assert_same(found, ghn)


@pytest.mark.parametrize(
    "environment",
    [{"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9", "NO_PROXY": "127.0.0.1"}],
    ids=["offline", "unreachable"],
)
def test_default_cache_without_a_network(tmp_path: Path, environment: dict[str, str]) -> None:
    """As set by the variables of ``huggingface_hub``, which reads them when it is imported."""
    joblib = pytest.importorskip("joblib")
    ghn = ghn3(hid=8, max_shape=(8, 8, 3, 3), num_classes=10, heads=2)
    file = cached(tmp_path / "hub", "SamsungSAILMontreal/ghn3", "ghn3tm8.pt")
    joblib.dump(ghn.state_dict(), file)
    code = (
        "import torch, ghn_fast; ghn = ghn_fast.from_pretrained('ghn3-t');"
        "model = ghn_fast.predict(torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(),"
        "torch.nn.Linear(8, 10)), ghn='ghn3-t');"
        "print(type(ghn).__name__, ghn.config.hid, float(model[0].weight.std()) > 0)"
    )
    command = [sys.executable, "-c", code]
    variables = {**os.environ, "HF_HOME": str(tmp_path), **environment}
    result = subprocess.run(
        command, cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=120
    )
    assert result.stdout.strip() == "GHN3 8 True", result.stderr


def test_download(tmp_path: Path, ghn: GHN, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is asked of the hub, in place of which stands a folder."""
    huggingface_hub = pytest.importorskip("huggingface_hub")
    save(ghn, tmp_path / "model.safetensors")
    asked = []

    def download(repository: str, file: str, **options: Any) -> str:
        asked.append((repository, file, options["revision"], options["token"]))
        return str(tmp_path / file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert_same(from_pretrained("someone/a-ghn", revision="v2", token="secret"), ghn)
    assert_same(GHN.from_pretrained("someone/a-ghn"), ghn)
    assert asked == [
        ("someone/a-ghn", "model.safetensors", "v2", "secret"),
        ("someone/a-ghn", "model.safetensors", None, None),
    ]


def test_offline_and_not_in_the_cache(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"not in the cache .*`hf download someone/a-ghn"):
        from_pretrained("someone/a-ghn", cache_dir=tmp_path, local_files_only=True)


def test_save_pretrained(tmp_path: Path, ghn: GHN) -> None:
    assert ghn.save_pretrained(tmp_path / "folder") is None
    names = {path.name for path in (tmp_path / "folder").iterdir()}
    assert names == {"model.safetensors", "config.json", "README.md"}
    config = json.loads((tmp_path / "folder" / "config.json").read_text())
    assert config == json.loads(json.dumps(ghn.config.to_dict()))
    assert_same(GHN.from_pretrained(tmp_path / "folder"), ghn)
    assert_same(from_pretrained(tmp_path / "folder"), ghn)


def test_save_pretrained_keeps_a_card(tmp_path: Path, ghn: GHN) -> None:
    (tmp_path / "README.md").write_text("mine")
    ghn.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"


def test_from_pretrained_of_another_class(tmp_path: Path, ghn: GHN) -> None:
    ghn.save_pretrained(tmp_path)
    with pytest.raises(TypeError, match="is a GHN, not a GHN3"):
        GHN3.from_pretrained(tmp_path)


def test_push_to_hub(tmp_path: Path, ghn: GHN, monkeypatch: pytest.MonkeyPatch) -> None:
    huggingface_hub = pytest.importorskip("huggingface_hub")
    uploaded: dict[str, Any] = {}

    class Repository:
        repo_id = "someone/a-ghn"

    def create_repo(self: object, **options: Any) -> Repository:
        return Repository()

    def upload_folder(self: object, *, folder_path: Path, **options: Any) -> str:
        uploaded.update(options, ghn=from_pretrained(folder_path))
        return "https://huggingface.co/someone/a-ghn/commit/0"

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", create_repo)
    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", upload_folder)
    url = ghn.push_to_hub("someone/a-ghn", commit_message="trained")
    assert url.endswith("commit/0")
    assert uploaded["commit_message"] == "trained"
    assert uploaded["repo_id"] == "someone/a-ghn"
    assert_same(uploaded["ghn"], ghn)
    assert ghn.save_pretrained(tmp_path, repo_id="someone/a-ghn", push_to_hub=True) == url


def test_what_loading_imports(tmp_path: Path, ghn: GHN) -> None:
    """SymPy, for example, takes longer to import than a checkpoint to load."""
    torch.save({"state_dict": ghn.state_dict(), "config": ghn.config.to_dict()}, tmp_path / "x.pt")
    code = (
        "import sys; from ghn_fast.checkpoint import from_pretrained;"
        "heavy = 'huggingface_hub', 'joblib', 'safetensors', 'sympy', 'torchvision';"
        f"from_pretrained({str(tmp_path / 'x.pt')!r});"
        "print([name for name in heavy if name in sys.modules])"
    )
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.stdout.strip() == "[]", result.stderr
