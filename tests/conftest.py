"""For all tests: what needs a CUDA device is skipped where there is none, else computes as a run does; Triton's library
is the first of its kind; of several processes none is left with a long file at the end."""

from collections import Counter
from collections.abc import Iterator

import pytest


def pytest_sessionstart() -> None:
    """Whichever tests a process gets, some may draw pictures, and then others must not be the first to load Triton."""
    from planet import gl  # not before the shape checks are installed

    gl.load_triton_first()


@pytest.hookimpl(trylast=True)  # what `-m` leaves out is no longer there
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if hasattr(config, "workerinput"):  # with `--no-loadscope-reorder` files are given out in this order
        slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
        items.sort(key=lambda item: -slow[item.path])
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(autouse=True)
def as_a_run_computes(request: pytest.FixtureRequest) -> Iterator[None]:
    """Of a test on a GPU: TF32, deterministic convolutions (`hardware.use`), which decide what kernels are tried."""
    if not request.node.get_closest_marker("gpu"):
        yield
        return
    import torch

    from planet import hardware

    matmul = torch.get_float32_matmul_precision()
    convolutions, deterministic = torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic
    hardware.use(torch.device("cuda:0"))
    yield
    torch.set_float32_matmul_precision(matmul)
    torch.backends.cudnn.allow_tf32 = convolutions
    torch.backends.cudnn.deterministic = deterministic
