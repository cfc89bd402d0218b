"""Which tiles of `planet.fused` are the fastest on a GPU: `python -m benchmarks.speed.gpu_tiles [FILE [KERNEL ...]]`.

Times each kernel alone at the paper's size, as it lies in an update (50 rows) and in decisions of one and ten
environments, with many tiles; prints the five fastest of each, which `planet.fused.TABLE` should begin with, and writes
all to FILE. All are compiled first, in many processes.
"""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from typing import Any, TextIO

import torch
import torch.nn.functional as F

from benchmarks.speed.test_model import ACTIONS, config_of, model_of
from planet import fused
from planet.fused import Tile, Tiles
from planet.fused_rollout import FusedRollout
from planet.rssm import RSSM

X, D, S, A, H, WIDE = 200, 200, 30, 6, 12, 232
DEVICE = torch.device("cuda:0")
LAUNCHES = 20
TYPES = {"tf32": torch.float32, "bf16": torch.bfloat16}


Job = tuple[str, int, str, Tile]
"""Kernel, rows, type of products, tile."""


# Rows, units, inputs, warps, stages, early: see `planet.fused.Tile`.


def tiles(*options: tuple[int, int, int, int, int] | tuple[int, int, int, int, int, bool]) -> list[Tile]:
    return [Tile(*option[:5], early=len(option) == 6) for option in options]


DETER = {
    50: tiles((16, 32, 32, 4, 3), (16, 32, 32, 4, 2), (16, 32, 32, 4, 4), (16, 32, 32, 2, 3), (16, 64, 32, 4, 3),
              (16, 32, 16, 4, 4), (16, 32, 64, 4, 3), (16, 16, 32, 4, 3), (32, 32, 32, 4, 3)),
    1000: tiles((64, 32, 32, 4, 3), (64, 32, 32, 4, 4), (64, 32, 32, 4, 2), (64, 16, 32, 4, 3), (64, 32, 32, 8, 3),
                (128, 16, 32, 8, 3), (64, 64, 32, 4, 3), (64, 32, 64, 4, 3), (64, 32, 64, 4, 2), (64, 32, 64, 8, 3),
                (64, 16, 64, 4, 3), (128, 16, 64, 8, 3)),
    10_000: tiles((64, 32, 32, 4, 3), (64, 32, 32, 4, 4), (64, 32, 32, 8, 3), (64, 64, 32, 4, 3), (64, 64, 32, 8, 3),
                  (128, 32, 32, 4, 3), (128, 32, 32, 8, 3), (128, 64, 32, 8, 2), (128, 64, 32, 8, 3),
                  (128, 64, 16, 8, 4), (128, 64, 32, 16, 3), (64, 128, 32, 8, 3), (256, 32, 32, 8, 3),
                  (256, 64, 32, 16, 3)),
}  # fmt: skip
STOCH = {
    50: tiles((16, 0, 32, 8, 3, True), (16, 0, 32, 8, 2, True), (16, 0, 32, 8, 4, True), (16, 0, 32, 8, 4),
              (16, 0, 64, 8, 2, True), (16, 0, 64, 4, 2, True), (16, 0, 16, 8, 4, True)),
    1000: tiles((16, 0, 32, 8, 3), (16, 0, 32, 8, 4), (16, 0, 32, 8, 3, True), (16, 0, 32, 8, 4, True),
                (16, 0, 32, 4, 3), (16, 0, 64, 8, 3), (16, 0, 64, 8, 2, True), (16, 0, 64, 8, 3, True)),
    # No 64 rows with 8 warps: see `planet.fused.TABLE`.
    10_000: tiles((64, 0, 32, 4, 3), (64, 0, 64, 4, 3), (128, 0, 32, 8, 3), (128, 0, 32, 8, 2), (128, 0, 64, 8, 3),
                  (16, 0, 64, 8, 3, True), (16, 0, 64, 4, 3, True), (16, 0, 32, 4, 3), (32, 0, 32, 4, 3),
                  (32, 0, 64, 4, 3), (32, 0, 64, 4, 2), (32, 0, 64, 8, 3, True)),
}  # fmt: skip
REWARDS = tiles(
    (64, 32, 32, 4, 2), (64, 32, 32, 4, 3), (64, 64, 64, 4, 2), (64, 64, 64, 4, 3), (64, 64, 32, 8, 3),
    (128, 32, 32, 8, 2), (128, 32, 32, 8, 3), (128, 64, 32, 8, 3), (128, 64, 64, 8, 2), (128, 64, 64, 8, 3),
    (128, 128, 64, 8, 2),
)  # fmt: skip
TO_DETER = [Tile(16, u, 0, w, 1) for u, w in ((16, 2), (16, 4), (16, 8), (32, 2), (32, 4), (32, 8), (64, 4), (64, 8))]
OF_CELL = [
    Tile(16, u, i, w, s)
    for u, i, w, s in (
        (32, 32, 4, 3),
        (32, 64, 4, 4),
        (32, 64, 4, 6),
        (32, 128, 4, 4),
        (16, 64, 4, 6),
        (16, 128, 4, 5),
        (16, 64, 2, 6),
        (64, 64, 4, 5),
        (32, 64, 8, 5),
        (16, 128, 2, 4),
    )
]
JOBS: list[Job] = [
    *(("next_deter", rows, kind, tile) for rows, tiles in DETER.items() for kind in (["tf32"] if rows == 50 else TYPES)
      for tile in tiles),
    *(("next_stoch", rows, kind, tile) for rows, tiles in STOCH.items() for kind in (["tf32"] if rows == 50 else TYPES)
      for tile in tiles),
    *(("rewards", 12 * rows, kind, tile) for rows in (1000, 10_000) for kind in TYPES for tile in REWARDS),
    *(("gradient_to_deter", 50, "tf32", tile) for tile in TO_DETER),
    *(("gradient_of_cell", 50, "tf32", tile) for tile in OF_CELL),
]  # fmt: skip


@functools.cache
def setting(rows: int, kind: str) -> dict[str, Any]:
    """Memory as it lies in an update (50 rows) or in planning, and what the kernels should write."""
    torch.set_float32_matmul_precision("highest")
    dtype, numbers, train = TYPES[kind], fused._numbers(DEVICE), rows == 50
    if rows > 10_000:  # of all steps
        w_1, w_2, w_3 = (numbers(*of, scale=of[1] ** -0.5).to(dtype) for of in ((X, WIDE), (X, X), (1, X)))
        head, inputs = fused.Rewards(w_1, numbers(X), w_2, numbers(X), w_3, numbers(1), F.relu), numbers(rows, WIDE)
        inputs = inputs.to(dtype)
        p = F.relu(F.linear(F.relu(F.linear(inputs.float(), w_1.float(), head.b_1)), w_2.float(), head.b_2))
        wanted = F.linear(p, w_3.float(), head.b_3)[:, 0]
        return {"inputs": inputs, "head": head, "rewards": torch.empty(rows, device=DEVICE), "want_rewards": wanted}
    cell, head, w_stoch = fused._weights(numbers, (X, D, S))
    wide = numbers(X, 1224, scale=D**-0.5)
    if train:
        head = fused.Head(wide[:, :D], head.w_out, head.b_out, head.options)
    w_action = numbers(X, A, scale=0.3)
    short, short_head = fused.shortened(cell, head, dtype)
    x, h = numbers(rows, X).to(dtype), numbers(rows, D, scale=0.7)
    features = torch.zeros(2, rows, D if train else WIDE, device=DEVICE, dtype=dtype)
    features[0, :, :D] = h
    noise = numbers(rows, 1, S) if train else numbers(rows // 1000, 3 * 1000 * S).view(-1, 3, 1000, S)[:, 1]
    known = numbers(rows, X, scale=0.1) if train else numbers(X, scale=0.1).expand(rows, -1)
    action = numbers(rows, H, A)[:, 3]
    o: dict[str, Any] = {
        "short": short, "short_head": short_head, "x": x, "h": features[0, :, :D], "noise": noise, "known": known,
        "action": action, "w_action": w_action.to(dtype), "w_stoch": w_stoch.to(dtype), "train": train, "head": head,
    }  # fmt: skip
    o["out"] = torch.empty(rows, D, device=DEVICE) if train else features[1, :, :D]
    o["carry"] = None if dtype is torch.float32 else (h, torch.empty_like(h))
    o["s"] = torch.empty(rows, S, device=DEVICE) if train else features[1, :, D : D + S]
    o["following"] = torch.empty(rows, X, device=DEVICE, dtype=dtype)
    o["save_deter"] = tuple(torch.empty(rows, n, device=DEVICE) for n in (2 * D, D, D)) if train else None
    o["save_stoch"] = tuple(torch.empty(rows, n, device=DEVICE) for n in (X, 2 * S, S)) if train else None
    o["want_out"] = torch.gru_cell(x.float(), h, short.w_ih.float(), short.w_hh.float(), cell.b_ih, cell.b_hh)
    mean, raw = F.linear(
        F.elu(known + o["h"].float() @ short_head.w_deter.float().T), head.w_out.float(), head.b_out
    ).chunk(2, dim=1)
    o["want_s"] = mean + (F.softplus(raw) + 0.1) * noise.reshape(rows, S)
    add = 0 if train else action @ w_action.T
    o["want_x"] = F.elu(known + o["want_s"] @ w_stoch.T + add)
    if train:
        o |= dict(later=(numbers(rows, X), numbers(rows, D, scale=0.3)), g_h=numbers(rows, D), cell=cell,
                  g_output=numbers(rows, 2, S), slope_s=numbers(rows, 2, S), slope_p=numbers(rows, X),
                  slopes=numbers(rows, 5, D), g_p=torch.empty(rows, X, device=DEVICE),
                  g_cell=torch.empty(rows, 5, D, device=DEVICE), g_pair=torch.empty(rows, 2, S, device=DEVICE),
                  g_x=torch.empty(rows, X, device=DEVICE), g_before=torch.empty(rows, D, device=DEVICE),
                  made=numbers(rows, 5, D))  # fmt: skip
        pair = o["g_output"] + (o["later"][0] @ w_stoch)[:, None] * o["slope_s"]
        p = (pair.flatten(1) @ head.w_out) * o["slope_p"]
        o["want_p"], o["want_pair"] = p, pair
        o["want_cell"] = (o["g_h"] + o["later"][1] + p @ head.w_deter)[:, None] * o["slopes"]
        whole = o["made"].flatten(1)
        o["want_g_x"] = (whole[:, : 3 * D] @ cell.w_ih) * o["slope_p"]
        o["want_before"] = whole[:, D : 4 * D] @ cell.w_hh + whole[:, 4 * D :]
    return o


def launch(name: str, o: dict[str, Any], tile: Tile) -> None:
    torch.set_float32_matmul_precision("high")
    tiles = Tiles(tile, tile, tile, tile, tile)
    if name == "rewards":
        fused.rewards(o["inputs"], o["head"], out=o["rewards"], tiles=tiles)
    elif name == "next_deter":
        fused.next_deter(o["x"], o["h"], o["short"], out=o["out"], tiles=tiles, carry=o["carry"], save=o["save_deter"])
    elif name == "next_stoch":
        action = (None, None) if o["train"] else (o["action"], o["w_action"])
        then = fused.Following(o["known"], o["w_stoch"], o["following"], *action)
        fused.next_stoch(
            o["h"],
            o["known"],
            o["short_head"],
            o["noise"],
            out=o["s"],
            tiles=tiles,
            following=then,
            save=o["save_stoch"],
        )
    elif name == "gradient_to_deter":
        fused.gradient_to_deter(
            o["later"], o["w_stoch"], o["g_h"], o["g_output"], o["slope_s"], o["head"], o["slope_p"], o["slopes"],
            g_pair=o["g_pair"], g_p=o["g_p"], g_cell=o["g_cell"], tiles=tiles,
        )  # fmt: skip
    else:
        fused.gradient_of_cell(
            o["made"], o["cell"].w_ih, o["cell"].w_hh, o["slope_p"], g_x=o["g_x"], g_h=o["g_before"], tiles=tiles
        )


def worst(name: str, o: dict[str, Any]) -> float:
    """The largest error, as a part of the largest number."""
    pairs = {
        "rewards": [("rewards", "want_rewards")],
        "next_deter": [("out", "want_out")],
        "next_stoch": [("s", "want_s"), ("following", "want_x")],
        "gradient_to_deter": [("g_pair", "want_pair"), ("g_p", "want_p"), ("g_cell", "want_cell")],
        "gradient_of_cell": [("g_x", "want_g_x"), ("g_before", "want_before")],
    }[name]
    of = [float((o[a].float() - o[b]).abs().max() / o[b].abs().max()) for a, b in pairs]
    return max(of) if all(x == x for x in of) else float("nan")


def compile_one(job: Job) -> None:
    """Fill Triton's cache on disk; what goes wrong is told when it is timed."""
    name, rows, kind, tile = job
    with contextlib.suppress(Exception):
        launch(name, setting(rows, kind), tile)


def microseconds(run: Callable[[], object]) -> float:
    """Return the median time of one of many launches in a graph."""
    for _ in range(3):
        run()
    torch.cuda.synchronize()
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    with torch.cuda.graph(graph, stream=stream):
        for _ in range(LAUNCHES):
            run()
    for _ in range(3):
        graph.replay()
    times = []
    for _ in range(15):
        a, b = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        a.record()
        graph.replay()
        b.record()
        b.synchronize()
        times.append(1000 * a.elapsed_time(b) / LAUNCHES)
    return sorted(times)[len(times) // 2]


def main() -> int:
    if not torch.cuda.is_available():
        print("gpu_tiles: torch sees no GPU; python -m planet.doctor says why", file=sys.stderr)
        return 2
    with open(sys.argv[1] if len(sys.argv) > 1 else os.devnull, "w") as file:
        measure(file, [job for job in JOBS if not sys.argv[2:] or job[0] in sys.argv[2:]])
    return 0


def measure(file: TextIO, jobs: list[Job]) -> None:
    def say(text: str) -> None:
        print(text, flush=True)
        print(text, file=file, flush=True)

    begin = time.monotonic()
    with multiprocessing.get_context("spawn").Pool(max(1, len(os.sched_getaffinity(0)) - 2)) as pool:
        try:
            pool.map_async(compile_one, jobs, chunksize=1).get(timeout=100)
        except multiprocessing.TimeoutError:
            say("compiling took too long; going on with what is there")
        pool.terminate()
    say(f"{torch.cuda.get_device_name()}, compiled after {time.monotonic() - begin:.0f} s")
    found: dict[tuple[str, int, str], list[tuple[float, Tile]]] = {}
    done = 0
    while done < len(jobs):  # a kernel that fails for good takes its process with it
        mine, theirs = multiprocessing.Pipe(duplex=False)
        process = multiprocessing.get_context("spawn").Process(target=time_each, args=(jobs[done:], theirs))
        process.start()
        theirs.close()
        before = done
        with contextlib.suppress(EOFError):
            while True:
                told = mine.recv()
                name, rows, kind, tile = jobs[done]
                print(f"{name} {rows} {kind} {tile}: {told}", file=file, flush=True)
                if isinstance(told, float):
                    found.setdefault((name, rows, kind), []).append((told, tile))
                done += 1
        process.join()
        if done == before:
            print(*jobs[done], f"ended its process with {process.exitcode}", file=file, flush=True)
            done += 1
    for (name, rows, kind), times in found.items():
        times.sort(key=lambda found: found[0])
        say(f"{name}, {rows} rows, {kind}: {len(times)} worked")
        for time_of_one, tile in times[:5]:
            say(f"  {time_of_one:6.2f} us  {tile}")
    for pair in (("next_deter", "next_stoch"), ("gradient_to_deter", "gradient_of_cell")):
        if all((name, 50, "tf32") in found for name in pair):
            say(step_of_an_update(pair, [found[name, 50, "tf32"][0][1] for name in pair]))
    for envs in (1, 10):
        for kind in TYPES:
            of = (("next_deter", 1000 * envs), ("next_stoch", 1000 * envs), ("rewards", 12_000 * envs))
            if all((*job, kind) in found for job in of):
                deter, stoch, rewards = (found[*job, kind][0][1] for job in of)
                say(whole_rollout(envs, kind, Tiles(deter, stoch, rewards=rewards)))
        if fused.refits(DEVICE, 1000):
            scores, noise = (torch.randn(envs, 1000, *of, device=DEVICE) for of in ((), (H, A)))
            refit = functools.partial(fused.refit, torch.rand_like(noise), scores, elites=100, min_std=0.0, noise=noise)
            say(f"refit of {envs}: {microseconds(refit):.2f} us")


def time_each(jobs: list[Job], connection: Any) -> None:
    """Tell of each job the microseconds, or what is wrong."""
    for name, rows, kind, tile in jobs:
        try:
            o = setting(rows, kind)
            launch(name, o, tile)
            if not (error := worst(name, o)) < (0.02 if kind == "tf32" else 0.08):
                raise ValueError(f"wrong by {error:.3f}")
            told: float | str = microseconds(functools.partial(launch, name, o, tile))
        except Exception as error:  # one that does not fit this card: the others are still of interest
            told = f"{type(error).__name__} {str(error)[:150]}"
        connection.send(told)
        torch.cuda.synchronize()


def step_of_an_update(pair: tuple[str, str], of: list[Tile]) -> str:
    """Say how long two kernels take that follow each other."""
    o = setting(50, "tf32")

    def step() -> None:
        for name, tile in zip(pair, of, strict=True):
            launch(name, o, tile)

    return f"{' and '.join(pair)}: {microseconds(step):.2f} us"


def whole_rollout(envs: int, kind: str, tiles: Tiles) -> str:
    """Say how long one iteration's rollout takes, and how far its returns are from float32's."""
    model = model_of(config_of("paper")).to(DEVICE)
    assert isinstance(model.transition, RSSM)
    state = model.initial(envs)
    actions = torch.rand(envs, 1000, H, ACTIONS, device=DEVICE) * 2 - 1
    noise = torch.randn(envs, H, 1000, S, device=DEVICE)
    with torch.no_grad():
        rollout = FusedRollout(
            model.transition, model.reward, state, rows=1000, horizon=H, tiles=tiles, dtype=TYPES[kind]
        )
        whole = microseconds(lambda: rollout(actions, noise))
        returns, features = rollout(actions, noise).clone(), rollout.features.flatten(0, 1)
        rewards = microseconds(lambda: rollout._rewards(features))
        torch.set_float32_matmul_precision("highest")
        total = torch.zeros(envs * 1000, device=DEVICE)
        state = state.map(lambda x: x.repeat_interleave(1000, dim=0))
        for t in range(H):
            state = model.transition.prior(state, actions[:, :, t].flatten(0, 1), noise[:, t].flatten(0, 1))
            total = total + model.reward(model.transition.features(state))
        torch.set_float32_matmul_precision("high")
    error = float((returns.flatten() - total).abs().mean() / total.std())
    return f"rollout of {envs}, {kind}: {whole:.0f} us, its rewards {rewards:.0f}; returns are off by {error:.4f} sd"


if __name__ == "__main__":
    sys.exit(main())
