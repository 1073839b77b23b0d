"""A step on a GPU waits for no copy from the CPU, shown without a GPU by tensors that have none."""

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hicmae.io import imagenet
from hicmae.models import losses
from hicmae.models.layers import TokenSplit, split_tokens
from tests.small_models import classifier, clips, pretraining_model


class CpuOperators(TorchDispatchMode):
    """Name every operator that reads or makes a tensor on the CPU."""

    def __init__(self):
        super().__init__()
        self.names, self.count = [], 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        tensors = [t for t in tree_leaves((args, kwargs, output)) if isinstance(t, torch.Tensor)]
        if any(tensor.device.type == "cpu" for tensor in tensors):
            self.names.append(str(func))
        self.count += 1
        return output


@pytest.fixture
def fake():
    """Return the mode in which tensors are on a GPU that is not there; none is ever computed."""
    imagenet.cache_clear()
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    try:
        on_gpu(mode, torch.ones(1))
    except RuntimeError as error:
        pytest.skip(f"torch {torch.__version__} wants a GPU for such tensors: {error}")
    yield mode
    imagenet.cache_clear()


def on_gpu(fake, *tensors):
    tensors = [fake.from_tensor(tensor.detach()) for tensor in tensors]
    with fake:
        return [tensor.to("cuda") for tensor in tensors]


def runner(fake, model):
    """Return the model as a function whose parameters and buffers are on that GPU."""
    tensors = dict([*model.named_parameters(), *model.named_buffers()])
    state = dict(zip(tensors, on_gpu(fake, *tensors.values()), strict=True))
    return lambda *inputs: torch.func.functional_call(model, state, inputs)


def pretraining_step(fake, **options):
    run = runner(fake, pretraining_model(cpu_gemm="mkl"))
    video, video_mask, audio, audio_mask = clips()
    splits = split_tokens(video_mask, 12, "video"), split_tokens(audio_mask, 8, "audio")
    first, second = (TokenSplit(*on_gpu(fake, *split)) for split in splits)
    video, audio = on_gpu(fake, video, audio)
    inputs = video, first, audio, second
    return lambda: losses.pretrain_loss(run(*inputs), *inputs, **options).total


def finetuning_step(fake):
    run = runner(fake, classifier(cpu_gemm="mkl"))
    video, audio, labels = on_gpu(fake, *clips()[::2], torch.tensor([1, 3]))
    return lambda: F.cross_entropy(run(video, audio), labels)


@pytest.mark.parametrize(
    "make, options",
    [(pretraining_step, {"frame_diff": True}), (pretraining_step, {"frame_diff": False}),
     (pretraining_step, {"frame_diff": True, "frame_diff_group_size": 4}), (finetuning_step, {})],
)  # fmt: skip
def test_a_step_after_the_first_touches_no_tensor_on_the_cpu(fake, make, options):
    step = make(fake, **options)
    with fake:
        step()  # constants are sent once
        with CpuOperators() as seen:
            assert step().device.type == "cuda"
    assert seen.count > 300 and seen.names == []
