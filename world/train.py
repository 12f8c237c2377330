"""Train the embedded model: `python -m kinema.world.train FOLDER`.

First the picture autoencoder, then the transformer with its text encoder, then the checkpoint in
the published layout under FOLDER/checkpoint. Every stage saves its state and goes on from it when
the command is given again. On a CPU it runs a process of one thread on each core: those keep a
small machine busier than one process of many threads. On CUDA it runs one process.
"""

from __future__ import annotations

import argparse
import datetime
import json
import socket
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from ..runtime.vaes.audio import KinemaSound
from ..runtime.vaes.kinema import AutoencoderKinema
from . import train_transformer, train_vae
from .captions import vocabulary
from .run import Process
from .scene import FPS, NUM_FRAMES, SIZE
from .text import write_tokenizer
from .train_transformer import Generator

EXAMPLES = (
    "a red ball bounces on the grass",
    "a blue square moves left in the snow",
    "a green triangle rises at night",
    "a big yellow ball falls in front of a brick wall",
    "on the beach a purple cube drifts to the right",
    "a cyan pyramid rests in the park",
)


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line and run every stage that is not finished."""
    parser = argparse.ArgumentParser(prog="python -m kinema.world.train", description=__doc__)
    parser.add_argument("folder", type=Path, help="where states and the checkpoint go")
    parser.add_argument("--vae-minutes", type=float, default=16.0)
    parser.add_argument("--minutes", type=float, default=100.0, help="for the transformer")
    parser.add_argument("--clips", type=int, default=20_000, help="encoded before training")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--processes", type=int, help="on a CPU; default: one a core")
    parser.add_argument("--no-compile", action="store_true")
    options = parser.parse_args(arguments)
    options.folder.mkdir(parents=True, exist_ok=True)
    on_cpu = options.device == "cpu"
    count = (options.processes or torch.get_num_threads()) if on_cpu else 1
    if count == 1:
        run(0, 1, 0, options)
    else:
        mp.spawn(run, args=(count, _free_port(), options), nprocs=count)


def run(rank: int, count: int, port: int, options: argparse.Namespace) -> None:
    """All stages in process `rank` of `count`, which meet at `port` of this machine."""
    if count > 1:
        torch.set_num_threads(1)
        dist.init_process_group(
            "gloo",
            init_method=f"tcp://127.0.0.1:{port}",
            rank=rank,
            world_size=count,
            timeout=datetime.timedelta(hours=1),
        )
    process = Process(rank, count, torch.device(options.device))
    folder = options.folder
    vae = train_vae.train(folder, options.vae_minutes, process)
    vae.half().float()  # what ships is half precision, so that is what the transformer sees
    statistics = train_vae.statistics(vae, process.device)
    model, codec = train_transformer.train(
        folder,
        options.minutes,
        process,
        vae=vae,
        statistics=statistics,
        clips=options.clips,
        compile_blocks=not options.no_compile,
    )
    if rank == 0:
        write_checkpoint(folder / "checkpoint", vae, statistics, model, codec)
        print(f"wrote {folder / 'checkpoint'}")
    if count > 1:
        dist.destroy_process_group()


def write_checkpoint(
    folder: Path,
    vae: AutoencoderKinema,
    statistics: dict[str, list[float]],
    model: Generator,
    codec: KinemaSound,
) -> None:
    """Write every component in half precision, laid out as published checkpoints are."""
    config = train_transformer.CONFIG
    transformer = model.transformer
    _component(
        folder / "transformer",
        {"_class_name": "WanTransformer3DModel"} | _fields(config),
        transformer.to_published(),
    )
    _component(
        folder / "vae",
        {"_class_name": "AutoencoderKinema"} | _fields(vae.config) | statistics,
        vae.state_dict(),
    )
    _component(
        folder / "audio", {"_class_name": "KinemaSound"} | _fields(codec.config), codec.state_dict()
    )
    model.text_encoder.half().save_pretrained(folder / "text_encoder")
    write_tokenizer(folder / "tokenizer")
    _json(
        folder / "scheduler" / "scheduler_config.json",
        {
            "_class_name": "FlowMatchEulerDiscreteScheduler",
            "num_train_timesteps": 1000,
            "shift": 3.0,
            "use_dynamic_shifting": False,
        },
    )
    _json(folder / "vocabulary.json", {"words": vocabulary(), "examples": list(EXAMPLES)})
    _json(folder / "model_index.json", _index(codec))


def _index(codec: KinemaSound) -> dict[str, object]:
    return {
        "_class_name": "WanPipeline",
        "_diffusers_version": "0.42.1",
        "_name_or_path": "kinema/embedded",
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "UMT5EncoderModel"],
        "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
        "transformer": ["diffusers", "WanTransformer3DModel"],
        "vae": ["kinema", "AutoencoderKinema"],
        "audio": ["kinema", "KinemaSound"],
        "kinema": {
            "name": "embedded",
            "presets": {
                "num_frames": NUM_FRAMES,
                "height": SIZE,
                "width": SIZE,
                "fps": FPS,
                "num_inference_steps": 20,
                "guidance_scale": 3.0,
                "max_num_frames": NUM_FRAMES,
                "min_size": SIZE,
                "max_size": SIZE,
                "bearings": True,
                "conditions": "ends",
                "sound": {
                    "rows": 2,
                    "sample_rate": codec.config.sample_rate,
                    "guidance_scale": 1.0,
                    "shift": train_transformer.SOUND_LAG,
                },
            },
        },
    }


def _component(folder: Path, config: dict[str, object], tensors: dict[str, torch.Tensor]) -> None:
    from safetensors.torch import save_file

    _json(folder / "config.json", config)
    halves = {name: tensor.detach().half().contiguous() for name, tensor in tensors.items()}
    save_file(halves, folder / "diffusion_pytorch_model.safetensors")


def _fields(config: object) -> dict[str, object]:
    return {key: value for key, value in vars(config).items() if value is not None}


def _json(path: Path, values: dict[str, object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=2) + "\n")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    main()
