"""Media and uninterrupted runs that all tests of this folder compare with."""

import pytest

from tests.small_runs import FINETUNE, PRETRAIN, Run, finish, make_media


@pytest.fixture(scope="session")
def media(tmp_path_factory):
    """Thirteen clips: a last batch is left out, and two ranks do not share them equally."""
    return make_media(tmp_path_factory.mktemp("faults"), count=13)


@pytest.fixture(scope="session")
def pretrain(media):
    """Arguments of a pre-training run of three epochs of three steps, all randomness on."""
    return [*PRETRAIN, "--data_path", str(media / "lists"), "--epochs", "3", "--accum_iter", "2",
            "--drop_path", "0.2", "--image_freq", "0", "--output_dir"]  # fmt: skip


@pytest.fixture(scope="session")
def finetune(media):
    """The same of fine-tuning: mixup, cutmix, RandAugment, erasing and drop path are on."""
    return [*FINETUNE, "--data_path", str(media / "fold"), "--nb_classes", "3", "--epochs", "3",
            "--accum_iter", "2", "--roll_mag_aug", "--no-export", "--output_dir"]  # fmt: skip


@pytest.fixture(scope="session")
def whole(media, pretrain, finetune):
    """Both runs, never interrupted."""
    folder = media / "whole"
    folder.mkdir()
    commands = {"run_pretraining": pretrain, "run_finetuning": finetune}
    finish([Run(n, [*c, folder / n], folder / f"{n}.out") for n, c in commands.items()])
    return folder
