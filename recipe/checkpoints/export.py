"""Write an engine's weights as a HuggingFace folder in the interchange layout: one tensor per expert and matrix.

DeepSpeed has no 16-bit export for ZeRO-3 with AutoEP. Here the ranks gather one tensor after another: each
parameter from its ZeRO partitions, each expert's matrices from the ranks of rank 0's expert-parallel group.
Rank 0 writes a tensor and forgets it before the next. A layer is one file.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from safetensors import safe_open
from torch import nn

from recipe.base.errors import UserError
from recipe.base.files import flush_file, rename_folder, write_json, write_text
from recipe.base.model_shape import ModelShape
from recipe.base.output_paths import check_export_folder, partial_export
from recipe.base.run_config.routing import Routing
from recipe.checkpoints.fingerprints import Fingerprints, described, engine_fingerprints, folder_fingerprints
from recipe.engine.collectives import any_rank, from_first_rank
from recipe.engine.deepspeed_private import full_shape, is_partitioned
from recipe.engine.moe.autoep import MATRICES, AutoEPMoELayer, interchange_name, moe_layers
from recipe.huggingface.architectures import (
    EXPERT_BIAS,
    Architecture,
    export_architecture,
    export_config,
    is_expert_bias,
)
from recipe.huggingface.safetensors_writer import Declared, SafetensorsWriter
from recipe.huggingface.tokenizer_folder import check_tokenizer_export, special_ids, write_tokenizer


@dataclass(frozen=True)
class Export:
    """What an exported folder holds besides the weights; all of it is known before the engine is built.

    Args:
        max_position_embeddings: that its config.json states, tokens.
        chat_template: of its tokenizer, in Jinja; None: none.
        card: its README.md; None: none.
    """

    output: Path
    shape: ModelShape
    tokenizer: Path
    max_position_embeddings: int
    chat_template: str | None = None
    card: str | None = None

    @property
    def partial(self) -> Path:
        return partial_export(self.output)


def check_exportable(shape: ModelShape, tokenizer: Path, output: Path) -> Architecture:
    """Refuse what would make the export fail, before anything is gathered.

    Returns:
        the architecture of the exported model.

    Raises:
        UserError: `output` exists or cannot be written, no architecture computes what the model does, or transformers
            would read the tokenizer otherwise than it was read for the tokens.
    """
    check_export_folder(output)
    architecture = export_architecture(shape)
    check_tokenizer_export(tokenizer)
    return architecture


def check_bias_has_place(architecture: Architecture, routing: Routing, steps: int) -> None:
    """Refuse a model whose expert biases were trained and have no place in its architecture, by the run's settings.

    Raises:
        UserError: what to train with.
    """
    if steps and routing.trains_bias and not architecture.correction_bias:
        raise _no_place_for_bias(architecture, f"routing.{routing.bias_setting} moved it")


def check_bias(engine: deepspeed.DeepSpeedEngine, architecture: Architecture) -> None:
    """As `check_bias_has_place`, by the biases themselves. Called by all ranks together.

    Raises:
        UserError: on all ranks.
    """
    if architecture.correction_bias:
        return
    biased = [name for name, layer in moe_layers(engine.module) if getattr(layer.router, EXPERT_BIAS).any()]
    if any_rank(bool(biased)):
        raise _no_place_for_bias(architecture, f"in the checkpoint it is not zero ({', '.join(biased[:1])})")


def _no_place_for_bias(architecture: Architecture, reason: str) -> UserError:
    return UserError(
        f"the model routes by softmax and would be exported as {architecture.model_type}, which has no {EXPERT_BIAS}, but {reason}; "
        "train with routing.bias_update_rate 0, or with scoring_func sigmoid, which is exported as glm4_moe"
    )


def export_hf(
    engine: deepspeed.DeepSpeedEngine, export: Export, file_is_done: Callable[[], None] = lambda: None
) -> None:
    """Write `export.output`, which appears only when complete. Called by all ranks together, after `check_exportable`.

    What was written is read again, and has to be what the engine holds, expert by expert.

    Args:
        file_is_done: called after each of the `number_of_files`.

    Raises:
        UserError: on all ranks: the disk is full, the biases have no place, or a file does not hold the engine's weights;
            nothing is left behind.
    """
    architecture = export_architecture(export.shape)
    check_bias(engine, architecture)
    expected = engine_fingerprints(engine)
    from_first_rank(lambda: _begin(export.partial))
    try:
        file_of, total_bytes = _write_weights(engine, architecture, export, expected, file_is_done)
        dtype = next(engine.module.parameters()).dtype
        from_first_rank(lambda: _finish(export, file_of, total_bytes, str(dtype).removeprefix("torch.")))
    except Exception:
        if dist.get_rank() == 0:
            shutil.rmtree(export.partial, ignore_errors=True)
        raise


def _begin(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)  # of an export that was killed
    folder.mkdir(parents=True)


def _write_weights(
    engine: deepspeed.DeepSpeedEngine,
    architecture: Architecture,
    export: Export,
    expected: Fingerprints,
    file_is_done: Callable[[], None],
) -> tuple[dict[str, str], int]:
    """Write a file for each part of the model.

    Returns:
        the file of each tensor, and the bytes of all.
    """
    parts = list(_parts(engine.module))
    file_of: dict[str, str] = {}
    written: set[str] = set()
    total_bytes = 0
    assert len(parts) == number_of_files(export.shape)
    for number, (prefix, module) in enumerate(parts, start=1):
        file = f"model-{number:05d}-of-{len(parts):05d}.safetensors"
        pieces = list(_pieces(module, prefix, architecture, export.shape))
        declared = {name: tensor for piece in pieces for name, tensor in piece.declared(architecture)}
        check = partial(_check_file, export.partial / file, declared, expected, engine)
        _write_file(export.partial / file, list(declared.values()), pieces, check)
        file_of.update((tensor.name, file) for tensor in declared.values())
        total_bytes += sum(tensor.nbytes for tensor in declared.values())
        written |= declared.keys()
        file_is_done()
    # A bias that the architecture has no place for is zero.
    missing = {name for name in expected.keys() - written if architecture.correction_bias or not is_expert_bias(name)}
    assert not missing, f"the export lacks {sorted(missing)}"
    return file_of, total_bytes


def _write_file(path: Path, declared: list[Declared], pieces: list[Piece], check: Callable[[], None]) -> None:
    """Gather by all ranks together, write on rank 0; where it cannot, it takes part until the end, and then all ranks learn of it."""
    writer: SafetensorsWriter | None = None
    failure: Exception | None = None
    names = iter(declared)
    for piece in pieces:
        for tensor in piece.gather():
            if tensor is None or failure is not None:
                continue
            try:
                writer = writer or SafetensorsWriter(path, declared)
                writer.write(next(names).name, tensor)
            except Exception as error:
                failure = error

    def conclude() -> None:
        if failure is not None:
            raise failure
        assert writer is not None
        writer.close()
        check()

    from_first_rank(conclude)


def _check_file(
    path: Path, declared: dict[str, Declared], expected: Fingerprints, engine: deepspeed.DeepSpeedEngine
) -> None:
    """Compare a written file with the engine's weights.

    Raises:
        UserError: it does not hold them.
    """
    with safe_open(path, "pt") as file:
        names = [name for name, tensor in declared.items() if tensor.nbytes]  # empty ones are no weights of the engine
        read = lambda name: file.get_tensor(declared[name].name).to(engine.device)  # noqa: E731
        written = folder_fingerprints(read, names, next(engine.module.parameters()).dtype)
    if wrong := [name for name in names if written[name] != expected.get(name)]:
        raise UserError(
            f"{path.name} does not hold the engine's {described(wrong)}; run the export again, and report it if it stays"
        )


def _parts(model: Any) -> Iterator[tuple[str, nn.Module]]:
    """The parts that are a file each."""
    yield "model.embed_tokens", model.model.embed_tokens
    for number, layer in enumerate(model.model.layers):
        yield f"model.layers.{number}", layer
    yield "model.norm", model.model.norm
    yield "lm_head", model.lm_head


def number_of_files(shape: ModelShape) -> int:
    """Files of weights: embedding, layers, norm, head."""
    return shape.num_hidden_layers + 3


@dataclass(frozen=True)
class Piece:
    """Tensors of one parameter or buffer, which are gathered together.

    Args:
        names: in the interchange layout, in the order in which `gather` gives the tensors.
        shape: of each.
        gather: called by all ranks together; gives as many tensors as names on rank 0, and None as often on the others.
    """

    names: list[str]
    dtype: torch.dtype
    shape: tuple[int, ...]
    gather: Callable[[], Iterator[torch.Tensor | None]]

    def declared(self, architecture: Architecture) -> list[tuple[str, Declared]]:
        """The tensors as they are written, with their names in the interchange layout."""
        return [(name, Declared(architecture.export_name(name), self.dtype, self.shape)) for name in self.names]


def _pieces(module: nn.Module, prefix: str, architecture: Architecture, shape: ModelShape) -> Iterator[Piece]:
    """All of a module that the architecture has."""
    for name, parameter in module.named_parameters(prefix=prefix):
        if ".mlp.experts." not in name:
            yield Piece([interchange_name(name)], parameter.dtype, full_shape(parameter), _gather_of(parameter))
    for name, buffer in module.named_buffers(prefix=prefix):
        if is_expert_bias(name) and architecture.correction_bias:
            yield Piece([interchange_name(name)], torch.float32, tuple(buffer.shape), _values_of(buffer.detach().float))
    for name, layer in module.named_modules(prefix=prefix):
        if isinstance(layer, AutoEPMoELayer):
            yield from _expert_pieces(layer, name)
            if architecture.model_type == "glm4_moe" and not shape.n_shared_experts:
                yield from _empty_shared_experts(name, shape, layer.experts.w1.dtype)


def _expert_pieces(layer: AutoEPMoELayer, name: str) -> Iterator[Piece]:
    # Each rank of a group has consecutive experts; the first of every rank arrive together, then the second ones.
    order = [
        rank * layer.num_local_experts + row for row in range(layer.num_local_experts) for rank in range(layer.ep_size)
    ]
    for own, theirs in MATRICES.items():
        weight = getattr(layer.experts, own)
        names = [f"{name}.experts.{expert}.{theirs}.weight" for expert in order]
        yield Piece(names, weight.dtype, full_shape(weight)[1:], _experts_of(layer, weight))


def _empty_shared_experts(name: str, shape: ModelShape, dtype: torch.dtype) -> Iterator[Piece]:
    """transformers 4.57 and 5 build shared experts of width 0 where `glm4_moe` has none, and want their weights."""
    hidden = shape.hidden_size
    for matrix, size in (("gate_proj", (0, hidden)), ("up_proj", (0, hidden)), ("down_proj", (hidden, 0))):
        gather = _values_of(partial(torch.empty, size, dtype=dtype))
        yield Piece([f"{name}.shared_experts.{matrix}.weight"], dtype, size, gather)


def _values_of(make: Callable[[], torch.Tensor]) -> Callable[[], Iterator[torch.Tensor | None]]:
    """Gathering of what every rank has, or can make."""

    def gather() -> Iterator[torch.Tensor | None]:
        yield make() if dist.get_rank() == 0 else None

    return gather


def _gather_of(parameter: nn.Parameter) -> Callable[[], Iterator[torch.Tensor | None]]:
    def gather() -> Iterator[torch.Tensor | None]:
        with deepspeed.zero.GatheredParameters([parameter], enabled=is_partitioned(parameter)):
            yield parameter.detach() if dist.get_rank() == 0 else None

    return gather


def _experts_of(layer: AutoEPMoELayer, weight: nn.Parameter) -> Callable[[], Iterator[torch.Tensor | None]]:
    """Gathering of one matrix of all experts, from rank 0's expert-parallel group."""

    def gather() -> Iterator[torch.Tensor | None]:
        first = dist.get_rank() == 0
        takes_part = layer.ep_size == 1 or 0 in dist.get_process_group_ranks(layer.ep_group)
        with deepspeed.zero.GatheredParameters([weight], enabled=is_partitioned(weight)):
            for local in weight.detach():
                parts: list[torch.Tensor] | None = [local] if first else None
                if layer.ep_size > 1 and takes_part:
                    parts = [torch.empty_like(local) for _ in range(layer.ep_size)] if first else None
                    dist.gather(local.contiguous(), parts, dst=0, group=layer.ep_group)
                if parts is None:
                    yield from [None] * layer.ep_size
                else:
                    yield from parts

    return gather


def _finish(export: Export, file_of: dict[str, str], total_bytes: int, dtype: str) -> None:
    """Write what stands beside the weights, and give the folder its name; by rank 0."""
    folder = export.partial
    index = {"metadata": {"total_size": total_bytes}, "weight_map": dict(sorted(file_of.items()))}
    write_json(folder / "model.safetensors.index.json", index)
    special = special_ids(export.tokenizer)
    positions = export.max_position_embeddings
    config = export_config(export.shape, dtype=dtype, max_position_embeddings=positions, **special)
    write_json(folder / "config.json", config)
    # How to sample is left to who samples.
    write_json(
        folder / "generation_config.json", {name: number for name, number in special.items() if number is not None}
    )
    write_tokenizer(export.tokenizer, folder, model_max_length=positions, chat_template=export.chat_template)
    if export.card is not None:
        write_text(folder / "README.md", export.card)
    for path in folder.iterdir():
        flush_file(path)
    if export.output.exists():
        raise UserError(f"--output {export.output} was made by another meanwhile; choose a new folder")
    rename_folder(folder, export.output)
