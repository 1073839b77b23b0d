"""Exports as model hubs have them: there and back by a folder and by a hub that is none."""

import json
import shutil

import huggingface_hub
import pytest
import torch
from safetensors import safe_open

from hicmae import EmotionRecognizer
from hicmae.inference import cli
from hicmae.inference.export import export_checkpoint, export_run
from hicmae.models.finetune import HiCMAEClassifier
from hicmae.models.pretrain import HiCMAE
from tests.report.fold_files import write_predictions
from tests.small_models import pretraining_model
from tests.small_recognizers import GEOMETRY, classifier

FILES = {"config.json", "model.safetensors", "README.md"}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub in a folder: <hub>/<user>/<model>."""
    root = tmp_path / "hub"

    def create_repo(self, repo_id, **options):
        (root / repo_id).mkdir(parents=True, exist_ok=options["exist_ok"])
        return huggingface_hub.RepoUrl(f"https://huggingface.co/{repo_id}")

    def upload_folder(self, *, repo_id, folder_path, **options):
        shutil.copytree(folder_path, root / repo_id, dirs_exist_ok=True)
        return f"https://huggingface.co/{repo_id}/commit/1"

    def snapshot_download(repo_id, **options):
        if not (root / repo_id).is_dir():
            raise huggingface_hub.errors.LocalEntryNotFoundError("no\nnetwork")
        return str(root / repo_id)

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", create_repo)
    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", upload_folder)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return root


def test_a_recognizer_goes_to_a_hub_and_back(hub, recognizer, clip):
    mine = recognizer("av")
    address = mine.push_to_hub("me/emotions")
    assert address.startswith("https://huggingface.co/me/emotions")
    assert {path.name for path in (hub / "me/emotions").iterdir()} == FILES
    back = EmotionRecognizer.from_pretrained("me/emotions", device="cpu")
    frames, wav = clip
    assert back.predict(frames, audio=wav) == mine.predict(frames, audio=wav)
    assert back.config == mine.config
    # the network alone reads the same folder
    network = HiCMAEClassifier.from_pretrained("me/emotions")
    for name, weight in mine.model.state_dict().items():
        assert torch.equal(network.state_dict()[name], weight)


def test_the_networks_go_to_a_hub_and_back(hub):
    for model in (classifier(), pretraining_model(img_size=32)):
        assert "me/net" in model.push_to_hub("me/net")
        back = type(model).from_pretrained("me/net")
        assert back.arguments == model.arguments and not back.training
        for name, weight in model.state_dict().items():
            assert torch.equal(back.state_dict()[name], weight)
        # what is not among the arguments is assumed, as of a bare .pth
        read = EmotionRecognizer.from_pretrained("me/net", device="cpu")
        assert read.config.preprocessing.num_frames == 4


def test_an_export_of_a_pretraining_keeps_its_network(tmp_path):
    folder = export_checkpoint("toy_pretrained", tmp_path / "out")
    model = HiCMAE.from_pretrained(folder)
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert set(file.keys()) == set(model.state_dict())
    assert "feature-extraction" in (folder / "README.md").read_text()


def test_what_no_hub_gives_is_one_line(hub, recognizer, tmp_path, monkeypatch):
    for load in (EmotionRecognizer.from_pretrained, HiCMAEClassifier.from_pretrained):
        with pytest.raises(OSError, match="'nobody/nothing'.*no network") as error:
            load("nobody/nothing")
        assert "\n" not in str(error.value)
    recognizer_folder = tmp_path / "saved"
    recognizer("av").save_pretrained(recognizer_folder)
    with pytest.raises(FileNotFoundError, match="holds no config.json"):
        HiCMAEClassifier.from_pretrained(tmp_path)

    def refuse(*args, **options):
        raise ConnectionError("no\nnetwork")

    with pytest.raises(ValueError, match="do not fit HiCMAE "):
        HiCMAE.from_pretrained(recognizer_folder)
    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", refuse)
    for model in (recognizer("av"), classifier(**GEOMETRY)):
        with pytest.raises(OSError, match="'me/x'.*no network"):
            model.push_to_hub("me/x")


def front_of(card: str) -> list[str]:
    return card.split("---\n")[1].splitlines()


def test_a_card_says_what_is_known_and_what_is_not(models, tmp_path, caplog):
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(models / "av.pth", run / "checkpoint-0.pth")
    labels = torch.arange(30).numpy() % 3
    write_predictions(run / "pred.csv", [f"c{k}" for k in range(30)], labels, labels)
    calibration = {"temperature": 1.5, "before": {"ece": 0.25, "nll": 1.0},
                   "after": {"ece": 0.125, "nll": 0.5}}  # fmt: skip
    metrics = {"uar": 1.0, "war": 1.0, "clips": 30, "calibration": calibration}
    (run / "metrics.json").write_text(json.dumps(metrics))
    card = (export_run(run)[0] / "README.md").read_text()
    assert "| UAR | 1.0000 | 1.0000 to 1.0000 |" in card and "30 clips" in card
    assert "| 1.500 | 0.1250 | 0.5000 |" in card
    assert "| licence of the data | unknown" in card and "license: other" in front_of(card)
    assert "library_name: hicmae" in front_of(card)
    assert "pipeline_tag: video-classification" in front_of(card)
    # flags say what files cannot; an export of an export says the same again
    flags = ["--license", "mit", "--data_license", "drawn | no people"]
    assert cli.export([str(run / "export" / "last"), str(tmp_path / "again"), *flags]) == 0
    again = (tmp_path / "again" / "README.md").read_text()
    assert "license: mit" in front_of(again) and "1.0000 to 1.0000" in again
    assert r"drawn \| no people |" in again
    # without files of a run; a page that is no card stays
    bare = export_checkpoint(models / "regression.pth", tmp_path / "bare") / "README.md"
    assert "Unknown" in bare.read_text() and "UAR" not in bare.read_text()
    bare.write_text("mine")
    export_checkpoint(models / "regression.pth", bare.parent)
    assert bare.read_text() == "mine" and str(bare) in caplog.text
